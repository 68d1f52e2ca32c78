/*
 * What turns bytes into bytes: segmenting what the kernel hands out, and merging what goes to it. No Python and no
 * descriptor, so that this part is tested alone. The rules are those of aiotuntap/_offload, which the tests compare.
 *
 * Every offset is checked against the real size of a frame before anything is read there. All sizes fit into 32 bits:
 * the caller passes no frame that is larger.
 */
#ifndef AIOTUNTAP_OFFLOAD_H
#define AIOTUNTAP_OFFLOAD_H

#include <stdbool.h>
#include <stdint.h>

enum { TSO4 = 0x02, TSO6 = 0x04, USO4 = 0x20, USO6 = 0x40 }; /* TUN_F_* of <linux/if_tun.h> */

/*
 * Bytes from the start of a frame to its payload: one with longer headers is neither merged nor segmented here. The
 * kernel refuses super-frames of them, the segments of one could take a thousand times its memory, and what a sender
 * puts into headers must not cost more time than what other frames cost.
 */
enum { MOST_HEADERS = 256 };

struct frame {
    const uint8_t *data;
    uint32_t size;
    void *owner; /* the caller's */
};

/* Whether a virtio_net_hdr can have so many bytes. */
bool is_header_size(long size);

/* -- segmenting: prepare, then size and write for each index ------------------------------------------------------- */

struct layout {
    uint32_t network, transport, payload, end; /* offsets into the frame */
    uint8_t version, protocol;
};

struct cut {
    const uint8_t *frame; /* behind the virtio_net_hdr */
    uint32_t size, count;
    enum { PLAIN, PARTIAL, SUPER } kind; /* as it is, with its checksum to be completed, or to be segmented */
    uint16_t csum_start, csum_offset;    /* of PARTIAL */
    /* The rest is of SUPER. Both sums are of what all segments have in common. */
    struct layout layout;
    uint32_t gso_size, sequence;
    uint16_t ident;
    uint8_t flags;
    uint64_t ip_sum, sum;
};

/* How many plain frames there will be: 0 if it is refused. *data* begins with the virtio_net_hdr. */
uint32_t cut_prepare(struct cut *cut, const uint8_t *data, uint32_t size, bool tap, uint32_t header_size);
uint32_t cut_size(const struct cut *cut, uint32_t index);
void cut_write(const struct cut *cut, uint32_t index, uint8_t *to);

/* -- merging: new, fill in the frames, make, then size and write for each run -------------------------------------- */

/* Random, so that no sender knows which flows come to stand in one place of the table. */
struct flow_key {
    uint64_t words[16];
};

/* Frames that go to the kernel as one. */
struct run {
    struct layout layout;
    uint32_t first, last, count;      /* the numbers of its frames go from first to last by plan->next */
    uint32_t most, most_whole;        /* frames, if the last one is shorter, and if it is not */
    uint32_t sequence;                /* of the first frame, as ident */
    uint32_t below;                   /* the next one in its place of the table */
    uint16_t ident;
    uint8_t offload;                  /* the TUN_F_* flag that it takes */
    bool open, checked;               /* whether others may join, and whether the first one's checksums are right */
};

struct plan {
    uint32_t frame_count, run_count;
    struct frame *frames;
    struct run *runs;
    uint32_t *next;
    uint32_t *table; /* of each place, the topmost run */
    uint32_t table_bits;
    uint32_t oldest; /* the runs before it are closed, and not in the table any more */
};

enum { MOST_FRAMES = 1 << 20 }; /* of one plan */

struct plan *plan_new(uint32_t frame_count); /* NULL without memory */
void plan_free(struct plan *plan);
void plan_make(struct plan *plan, bool tap, unsigned offload, const struct flow_key *key);
uint32_t run_size(const struct plan *plan, const struct run *run, uint32_t header_size);
void run_write(const struct plan *plan, const struct run *run, uint32_t header_size, uint8_t *to);

#endif
