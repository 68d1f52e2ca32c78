/*
 * Segments frames from the kernel, and merges frames to the kernel. It uses neither Python nor descriptors, so it can be
 * tested alone. The rules are those of aiotuntap/_offload; the tests compare the results.
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
 * The most bytes before the payload of a frame. Frames with longer headers are neither merged nor segmented, because the
 * kernel refuses super-frames with them, the segments could need a thousand times the memory of the super-frame, and no
 * sender may cause more work per frame with long headers.
 */
enum { MOST_HEADERS = 256 };

struct frame {
    const uint8_t *data;
    uint32_t size;
    void *owner; /* used by the caller only */
};

/* Whether a virtio_net_hdr can have this size in bytes. */
bool is_header_size(long size);

/* -- segmenting: prepare, then size and write for each index ------------------------------------------------------- */

struct layout {
    uint32_t network, transport, payload, end; /* offsets into the frame */
    uint8_t version, protocol;
};

struct cut {
    const uint8_t *frame; /* after the virtio_net_hdr */
    uint32_t size, count;
    enum { PLAIN, PARTIAL, SUPER } kind; /* unchanged, its checksum to be completed, or to be segmented */
    uint16_t csum_start, csum_offset;    /* for PARTIAL */
    /* The rest is for SUPER. Both sums are of the fields that all segments share. */
    struct layout layout;
    uint32_t gso_size, sequence;
    uint16_t ident;
    uint8_t flags;
    uint64_t ip_sum, sum;
};

/* Returns the number of plain frames, or 0 if the frame is refused. *data* begins with the virtio_net_hdr. */
uint32_t cut_prepare(struct cut *cut, const uint8_t *data, uint32_t size, bool tap, uint32_t header_size);
uint32_t cut_size(const struct cut *cut, uint32_t index);
void cut_write(const struct cut *cut, uint32_t index, uint8_t *to);

/* -- merging: new, fill in the frames, make, then size and write for each run -------------------------------------- */

/* Random, so that no sender can choose flows that collide in the table. */
struct flow_key {
    uint64_t words[16];
};

/* Frames that are merged into one super-frame. */
struct run {
    struct layout layout;
    uint32_t first, last, count;      /* the numbers of its frames go from first to last by plan->next */
    uint32_t most, most_whole;        /* limits of count if the last frame is shorter, and if it is not */
    uint32_t sequence;                /* of the first frame, as ident */
    uint32_t below;                   /* the next run in the same slot of the table */
    uint16_t ident;
    uint8_t offload;                  /* the TUN_F_* flag that it requires */
    bool open, checked;               /* frames may join; the checksums of the first frame were checked */
};

struct plan {
    uint32_t frame_count, run_count;
    struct frame *frames;
    struct run *runs;
    uint32_t *next;
    uint32_t *table; /* the newest run of each slot */
    uint32_t table_bits;
    uint32_t oldest; /* the runs before it are closed, and were removed from the table */
};

enum { MOST_FRAMES = 1 << 20 }; /* in one plan */

struct plan *plan_new(uint32_t frame_count); /* NULL if there is no memory */
void plan_free(struct plan *plan);
void plan_make(struct plan *plan, bool tap, unsigned offload, const struct flow_key *key);
uint32_t run_size(const struct plan *plan, const struct run *run, uint32_t header_size);
void run_write(const struct plan *plan, const struct run *run, uint32_t header_size, uint8_t *to);

#endif
