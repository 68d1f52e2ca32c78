/*
 * native/offload.c without Python, on generated and spoiled frames, for sanitizers and for other machines.
 *
 * Usage: harness SEED ROUNDS. It checks what must hold for any input, and prints a digest of all results, which is the
 * same on every machine, whatever its byte order. Each buffer is as large as what is in it, so that a sanitizer sees
 * the first byte that is read or written beside it.
 */
#include "../../native/offload.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_IN_BATCH = 160, HEADER_SIZES = 4 };
static const uint32_t header_sizes[HEADER_SIZES] = {10, 12, 20, 24};

static uint64_t chance_state, digest = 0xcbf29ce484222325u;
static uint64_t frames_merged, frames_cut, refused;

static void check(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "harness: %s\n", what);
        abort();
    }
}

static uint32_t chance(uint32_t below)
{
    chance_state ^= chance_state << 13;
    chance_state ^= chance_state >> 7;
    chance_state ^= chance_state << 17;
    return (uint32_t)((chance_state * 0x2545f4914f6cdd1du) >> 33) % below;
}

static void note(const uint8_t *data, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++)
        digest = (digest ^ data[i]) * 0x100000001b3u;
}

static void note_number(uint32_t number)
{
    number = htonl(number);
    note((uint8_t *)&number, sizeof number);
}

/* The fields of a virtio_net_hdr are in the byte order of the machine. */
static void note_with_header(const uint8_t *data, uint32_t size)
{
    note(data, 2);
    for (int i = 0; i < 4; i++) {
        uint16_t field;

        memcpy(&field, data + 2 + 2 * i, sizeof field);
        note_number(field);
    }
    note(data + 10, size - 10);
}

static void *allocate(size_t size)
{
    void *memory = malloc(size ? size : 1);

    check(memory != NULL, "no memory");
    return memory;
}

/* -- frames -------------------------------------------------------------------------------------------------------- */

static void put(uint8_t *at, uint32_t value, int bytes)
{
    while (bytes--) {
        at[bytes] = (uint8_t)value;
        value >>= 8;
    }
}

static uint16_t internet_checksum(const uint8_t *data, uint32_t size, uint32_t sum)
{
    for (uint32_t i = 0; i < size; i++)
        sum += (uint32_t)data[i] << (i % 2 ? 0 : 8);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

struct packet {
    bool tap, tcp, partial;
    uint32_t version, tags, options, extensions, tcp_options, payload, port, source, sequence, ident, fragment, flags;
};

static struct packet any_packet(bool tap)
{
    static const uint32_t flags[] = {0x10, 0x10, 0x10, 0x10, 0x18, 0x50, 0xd9, 0x02};
    struct packet p = {.tap = tap, .tcp = chance(3), .version = chance(2) ? 4 : 6};

    p.tags = tap && !chance(3) ? chance(4) : 0;
    p.options = p.version == 4 && !chance(6) ? 4 * chance(11) : 0;
    p.extensions = p.version == 6 && !chance(4) ? 1 + chance(3) : 0;
    p.tcp_options = p.tcp && chance(2) ? 4 * chance(11) : 0;
    p.port = chance(4);
    p.source = chance(3);
    p.sequence = chance(4) ? chance(1u << 31) : 0u - chance(4000);
    p.ident = chance(4) ? chance(0x10000) : 0xffff - chance(40);
    p.fragment = chance(3) ? 0x4000 : chance(10) ? 0 : 1u << (12 + chance(4));
    p.flags = flags[chance(8)];
    return p;
}

/* Its size, and where the transport header begins and ends. */
static uint32_t build(const struct packet *p, uint8_t *to, uint32_t *transport, uint32_t *payload)
{
    uint32_t network = 0, at, length, sum, checksum_at;

    if (p->tap) {
        memset(to, 0x22, 12);
        network = 12;
        for (uint32_t i = 0; i < p->tags; i++, network += 4)
            put(to + network, (i ? 0x8100u : 0x88a8u) << 16 | 7, 4);
        put(to + network, p->version == 4 ? 0x0800 : 0x86dd, 2);
        network += 2;
    }
    at = network;
    if (p->version == 4) {
        memset(to + at, 0, 20 + p->options);
        to[at] = (uint8_t)(0x45 + p->options / 4);
        put(to + at + 4, p->ident, 2);
        put(to + at + 6, p->fragment, 2);
        to[at + 8] = 64;
        to[at + 9] = p->tcp ? 6 : 17;
        put(to + at + 12, 0x0a000000 + p->source, 4);
        put(to + at + 16, 0x0a000009, 4);
        at += 20 + p->options;
    } else {
        uint8_t *next = to + at + 6;

        memset(to + at, 0, 40);
        to[at] = 0x60;
        to[at + 7] = 64;
        to[at + 23] = (uint8_t)p->source;
        to[at + 39] = 9;
        at += 40;
        for (uint32_t i = 0; i < p->extensions; i++) {
            uint32_t units = chance(30) ? chance(3) : chance(40);

            *next = (uint8_t)(i == 0 ? 0 : i == 1 ? 43 : 60);
            next = to + at;
            memset(next, 1, 8 * units + 8);
            next[1] = (uint8_t)units;
            at += 8 * units + 8;
        }
        *next = p->tcp ? 6 : 17;
    }
    *transport = at;
    put(to + at, 40000 + p->port, 2);
    put(to + at + 2, 5201, 2);
    if (p->tcp) {
        memset(to + at + 4, 0, 16 + p->tcp_options);
        put(to + at + 4, p->sequence, 4);
        to[at + 12] = (uint8_t)((20 + p->tcp_options) / 4 << 4);
        to[at + 13] = (uint8_t)p->flags;
        at += 20 + p->tcp_options;
    } else {
        put(to + at + 4, 8 + p->payload, 2);
        put(to + at + 6, 0, 2);
        at += 8;
    }
    *payload = at;
    for (uint32_t i = 0; i < p->payload; i++)
        to[at + i] = (uint8_t)chance(256);
    at += p->payload;
    length = at - *transport;
    if (p->version == 4) {
        put(to + network + 2, at - network, 2);
        put(to + network + 10, internet_checksum(to + network, *transport - network, 0), 2);
    } else {
        put(to + network + 4, at - network - 40, 2);
    }
    checksum_at = *transport + (p->tcp ? 16 : 6);
    sum = length + (p->tcp ? 6 : 17);
    if (p->version == 4)
        sum += (uint16_t)~internet_checksum(to + network + 12, 8, 0);
    else
        sum += (uint16_t)~internet_checksum(to + network + 8, 32, 0);
    if (p->partial) {
        put(to + checksum_at, (uint16_t)~internet_checksum(to, 0, sum), 2);
    } else {
        uint16_t value = internet_checksum(to + *transport, length, sum);

        put(to + checksum_at, value || p->tcp ? value : 0xffff, 2);
    }
    return at;
}

/* Changes a few bytes, most of them in the headers, and sometimes the size. */
static uint32_t spoil(uint8_t *frame, uint32_t size)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};

    for (uint32_t i = 1 + chance(3); i && size; i--) {
        uint32_t at = chance(size < 90 || !chance(8) ? size : 90);

        frame[at] = chance(2) ? values[chance(5)] : (uint8_t)chance(256);
    }
    if (!chance(6))
        size = chance(size + 1);
    return size;
}

/* A copy in memory of just that size. */
static uint8_t *exact(const uint8_t *data, uint32_t size)
{
    uint8_t *copy = allocate(size);

    memcpy(copy, data, size);
    return copy;
}

/* -- segmenting ---------------------------------------------------------------------------------------------------- */

static uint8_t scratch[1 << 18];

static void cut_and_note(const uint8_t *data, uint32_t size, bool tap, uint32_t header_size)
{
    struct cut cut;
    uint32_t count = cut_prepare(&cut, data, size, tap, header_size);

    note_number(count);
    refused += !count;
    frames_cut += count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t piece = cut_size(&cut, i);
        uint8_t *to = allocate(piece);

        check(piece <= size, "a segment is larger than the whole");
        cut_write(&cut, i, to);
        note(to, piece);
        free(to);
    }
}

static void try_segment(void)
{
    bool tap = chance(2);
    struct packet p = any_packet(tap);
    uint32_t header_size = header_sizes[chance(HEADER_SIZES)], transport, payload, size;
    uint16_t fields[4];
    uint8_t *data;

    p.partial = true;
    p.payload = chance(3) ? chance(3000) : chance(60000);
    memset(scratch, 0, header_size);
    size = build(&p, scratch + header_size, &transport, &payload) + header_size;
    fields[0] = (uint16_t)payload;
    fields[1] = (uint16_t)(p.payload > 3000 ? 100 + chance(2000) : 1 + chance(1500));
    fields[2] = (uint16_t)transport;
    fields[3] = p.tcp ? 16 : 6;
    scratch[0] = 1;
    scratch[1] = !chance(8) ? 0 : !p.tcp ? 5 : p.version == 4 ? 1 : 4;
    if (!chance(8))
        fields[chance(4)] = (uint16_t)chance(0x10000);
    memcpy(scratch + 2, fields, sizeof fields);
    for (int i = 0; i < 3; i++) {
        data = exact(scratch, size);
        cut_and_note(data, size, tap, header_size);
        free(data);
        if (chance(3))
            size = header_size + spoil(scratch + header_size, size > header_size ? size - header_size : 0);
        else
            scratch[chance(2)] = (uint8_t)chance(256);
    }
    size = chance(80);
    for (uint32_t i = 0; i < size; i++)
        scratch[i] = (uint8_t)chance(256);
    data = exact(scratch, size);
    cut_and_note(data, size, tap, header_size);
    free(data);
}

/* -- merging ------------------------------------------------------------------------------------------------------- */

/* The segments of a run are its frames, but for the checksums that nobody looked at. */
static void check_run(const struct plan *plan, const struct run *run, const uint8_t *data, uint32_t size, bool tap,
                      uint32_t header_size)
{
    struct cut cut;
    uint32_t index = run->first, count = cut_prepare(&cut, data, size, tap, header_size);

    check(count == run->count, "a run cannot be segmented again");
    check(run->count <= 64 && cut.layout.payload <= MOST_HEADERS, "a run is too large");
    for (uint32_t i = 0; i < count; i++, index = plan->next[index]) {
        const struct frame *frame = &plan->frames[index];
        uint8_t *to = allocate(cut_size(&cut, i));
        /* With DF, identifications are free; they and the IPv4 checksum are as the first frame has them. */
        uint32_t ip = cut.layout.network, checksum_at = cut.layout.protocol == 6 ? 16 : 6;

        check(cut_size(&cut, i) == frame->size, "a segment has another size than its frame");
        cut_write(&cut, i, to);
        if (cut.layout.version == 4 && frame->data[ip + 6] & 0x40) {
            memcpy(to + ip + 4, frame->data + ip + 4, 2);
            memcpy(to + ip + 10, frame->data + ip + 10, 2);
        }
        /* 0 and 0xffff are the same in a checksum. */
        for (uint32_t at = 0; at < frame->size; at++)
            check(to[at] == frame->data[at] || (to[at] + frame->data[at] == 0xff &&
                                                (at - ip - 10 < 2 || at - cut.layout.transport - checksum_at < 2)),
                  "a segment is not its frame");
        free(to);
    }
}

static void merge_and_note(struct frame *frames, uint32_t count, bool tap, uint32_t header_size, bool note_it)
{
    static const unsigned offloads[] = {0x7f, 0x7f, 0x7f, TSO4 | USO6, 0};
    unsigned offload = offloads[note_it ? chance(5) : 0];
    /* Who knows the key can choose flows that stand in one place: with this one, TCP over IPv4 with other ports. */
    struct flow_key key = {{0, 0u - (uint64_t)(4 << 8 | 6)}};
    struct plan *plan = plan_new(count);
    bool seen[MOST_IN_BATCH] = {false};
    uint32_t before = 0, total = 0;

    check(plan != NULL, "no memory");
    for (int i = 0; note_it && i < 16; i++)
        key.words[i] = (uint64_t)chance(1u << 31) << 32 | chance(1u << 31);
    memcpy(plan->frames, frames, count * sizeof *frames);
    plan_make(plan, tap, offload, &key);
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const struct run *run = &plan->runs[i];
        uint32_t size = run_size(plan, run, header_size), index = run->first;
        uint8_t *to = allocate(size);

        check(!i || run->first > before, "runs are not in the order of their first frames");
        before = run->first;
        for (uint32_t j = 0; j < run->count; j++, index = plan->next[index]) {
            check(index < count && !seen[index], "a frame is in two runs");
            seen[index] = true;
            check(j + 1 < run->count ? plan->next[index] > index : index == run->last, "a run is not in order");
            total++;
        }
        run_write(plan, run, header_size, to);
        if (run->count > 1) {
            check(offload & run->offload, "merged without the offload");
            check_run(plan, run, to, size, tap, header_size);
        }
        if (note_it) {
            frames_merged += run->count > 1 ? run->count : 0;
            note_number(run->count);
            note_with_header(to, size);
        }
        free(to);
    }
    check(total == count, "a frame is in no run");
    plan_free(plan);
}

static void try_merge(void)
{
    static const uint32_t sizes[] = {0, 1, 8, 100, 536, 1448};
    bool tap = chance(2);
    struct frame frames[MOST_IN_BATCH] = {{0}};
    struct packet flows[4];
    uint32_t count = 0, turn = 0, flow_count = 1 + chance(4), size = sizes[chance(6)], most = 1 + chance(MOST_IN_BATCH);
    uint32_t stay = 1 + chance(8), transport, payload, header_size = header_sizes[chance(HEADER_SIZES)];
    bool many_flows = !chance(8);

    for (uint32_t i = 0; i < flow_count; i++) {
        flows[i] = any_packet(tap);
        flows[i].payload = size;
    }
    while (count < most) {
        struct packet *p = &flows[turn], now = *p;
        uint32_t bytes;

        if (!chance(12))
            now.payload = chance(size + 1);
        if (!chance(40))
            now.flags = 0x18;
        if (many_flows)
            now.port = chance(200);
        bytes = build(&now, scratch, &transport, &payload);
        if (!chance(30))
            bytes = spoil(scratch, bytes);
        frames[count].data = exact(scratch, bytes);
        frames[count++].size = bytes;
        p->sequence += now.payload;
        p->ident = (p->ident + 1) & 0xffff;
        if (!chance(stay))
            turn = chance(flow_count);
    }
    merge_and_note(frames, count, tap, header_size, true);
    merge_and_note(frames, count, tap, header_size, false);
    while (count)
        free((void *)(uintptr_t)frames[--count].data);
}

int main(int argc, char **argv)
{
    unsigned long rounds;

    if (argc != 3) {
        fprintf(stderr, "Usage: harness SEED ROUNDS\n");
        return 2;
    }
    chance_state = strtoul(argv[1], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    rounds = strtoul(argv[2], NULL, 10);
    for (unsigned long i = 0; i < rounds; i++) {
        try_segment();
        try_merge();
    }
    printf("digest %016llx: %llu frames cut, %llu refused, %llu merged\n", (unsigned long long)digest,
           (unsigned long long)frames_cut, (unsigned long long)refused, (unsigned long long)frames_merged);
    return 0;
}
