/*
 * The C sources for libFuzzer: any bytes are a frame to segment, or frames to merge. What must hold for any input is
 * checked by the harness of the other tests.
 */
#define main harness_main
#include "../native/harness.c"
#undef main

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct frame frames[MOST_IN_BATCH];
    uint32_t header_size, count = 0;
    bool tap;

    if (size < 2 || size > sizeof scratch)
        return 0;
    chance_state = 0x9e3779b97f4a7c15u;
    tap = data[0] & 1;
    header_size = header_sizes[data[0] >> 1 & 3];
    if (data[0] & 8) {
        uint8_t *frame = exact(data + 1, (uint32_t)size - 1);

        cut_and_note(frame, (uint32_t)size - 1, tap, header_size);
        free(frame);
        return 0;
    }
    /* Each frame has its length in front, in two bytes. */
    for (size_t at = 1; at + 2 <= size && count < MOST_IN_BATCH; count++) {
        uint32_t length = (uint32_t)(data[at] << 8 | data[at + 1]) & 0x7fff;

        at += 2;
        if (length > size - at)
            length = (uint32_t)(size - at);
        frames[count].data = exact(data + at, length);
        frames[count].size = length;
        at += length;
    }
    merge_and_note(frames, count, tap, header_size, true);
    chance_state = 0x9e3779b97f4a7c15u;
    merge_and_note(frames, count, tap, header_size, false);
    while (count)
        free((void *)(uintptr_t)frames[--count].data);
    return 0;
}
