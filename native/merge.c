/*
 * Merges plain frames into frames with a virtio_net_hdr, where this is safe.
 *
 * A frame joins the run of its flow if segmenting would produce exactly this frame next. Most frames continue the run of
 * the frame before, so that run is tried first. Otherwise, a table maps a flow to its latest run.
 */
#include "packet.h"

#include <stdlib.h>

enum {
    MOST_IN_RUN = 64,
    LARGEST_PACKET = 65535,
    SMALLEST_SEGMENT = 8, /* bytes of payload: some kernels make no smaller ones of TCP, whatever gso_size says */
    /*
     * The most runs in one slot of the table to look at. The table has at least twice as many slots as there are frames,
     * so without an attack a slot never has so many runs.
     */
    MOST_PROBES = 16,
};

#define NONE UINT32_MAX

/* -- the table of flows -------------------------------------------------------------------------------------------- */

/*
 * The hash of a flow: the sum of the products of pairs of keyed words. For two flows that are chosen without knowing the
 * key, the probability of equal hashes is below 2**-31.
 */
static uint32_t place_of(const struct plan *plan, const uint8_t *frame, const struct layout *l,
                         const struct flow_key *key)
{
    const uint64_t *k = key->words;
    const uint8_t *addresses = frame + addresses_at(l);
    uint32_t pair[2];
    uint64_t hash;

#define ADD_PAIR(i) (hash += (k[2 * (i)] + pair[0]) * (k[2 * (i) + 1] + pair[1]))
    memcpy(pair, frame + l->transport, 4);
    pair[1] = (uint32_t)l->version << 8 | l->protocol;
    hash = 0;
    ADD_PAIR(0);
    for (uint32_t i = 0; i < addresses_size(l) / 8; i++) {
        memcpy(pair, addresses + 8 * i, 8);
        ADD_PAIR(1 + i);
    }
    if (l->network) { /* 14, 18 or 22 bytes: the last 8 overlap those before */
        memcpy(pair, frame, 8);
        ADD_PAIR(5);
        memcpy(pair, frame + l->network - 8, 8);
        ADD_PAIR(6);
        if (l->network > 16) {
            memcpy(pair, frame + 8, 8);
            ADD_PAIR(7);
        }
    }
#undef ADD_PAIR
    hash ^= hash >> 32; /* otherwise, with some keys, consecutive numbers would fill few slots */
    hash *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(hash >> (64 - plan->table_bits));
}

static inline bool same_bytes(const uint8_t *a, const uint8_t *b, uint32_t size)
{
    return !size || !memcmp(a, b, size); /* TUN frames have no link layer: avoid the call */
}

static bool same_flow(const struct plan *plan, const struct run *run, const uint8_t *frame, const struct layout *l)
{
    const struct layout *other = &run->layout;
    const uint8_t *first = plan->frames[run->first].data, *a = first + addresses_at(l), *b = frame + addresses_at(l);

    return other->version == l->version && other->protocol == l->protocol && other->network == l->network &&
           !memcmp(first + other->transport, frame + l->transport, 4) && !memcmp(a, b, 8) &&
           (l->version == 4 || !memcmp(a + 8, b + 8, 24)) && same_bytes(first, frame, l->network);
}

/*
 * The link that points to the latest run of this flow, or where such a run has to be inserted: *found* says which. NULL
 * after too many other runs. In each slot, runs that still count come before outdated ones.
 */
static uint32_t *find_flow(struct plan *plan, const uint8_t *frame, const struct layout *l, const struct flow_key *key,
                           bool *found)
{
    uint32_t *place = &plan->table[place_of(plan, frame, l, key)], *link = place;

    for (int probes = 0; *link != NONE && *link >= plan->oldest; probes++) {
        struct run *run = &plan->runs[*link];

        if (probes == MOST_PROBES)
            return NULL;
        if (same_flow(plan, run, frame, l)) {
            *found = true;
            return link;
        }
        link = &run->below;
    }
    *found = false;
    return place;
}

/* -- runs ---------------------------------------------------------------------------------------------------------- */

static struct run *new_run(struct plan *plan, uint32_t index)
{
    struct run *run = &plan->runs[plan->run_count++];

    *run = (struct run){.first = index, .last = index, .count = 1, .below = NONE};
    return run;
}

static uint8_t offload_of(const struct layout *l)
{
    if (l->protocol == TCP)
        return l->version == 4 ? TSO4 : TSO6;
    return l->version == 4 ? USO4 : USO6;
}

/* Opens the run if its first frame can be merged. Its checksums are checked when a second frame comes. */
static void open_run(const struct plan *plan, struct run *run, unsigned offload)
{
    const struct layout *l = &run->layout;
    const struct frame *first = &plan->frames[run->first];
    const uint8_t *ip = first->data + l->network, *transport = first->data + l->transport;
    uint32_t payload_size = l->end - l->payload;

    run->offload = offload_of(l);
    if (l->end != first->size || !payload_size || !(run->offload & offload))
        return;
    run->most = MOST_IN_RUN;
    if (l->version == 4) {
        if (ip[6] & 0x80) /* a reserved bit */
            return;
        run->ident = get16(ip + 4);
        /* With DF, the identification has no meaning (RFC 6864). Without DF, it must not wrap. */
        if (!(ip[6] & 0x40) && run->most > 0x10000u - run->ident)
            run->most = 0x10000u - run->ident;
    }
    if (l->protocol == TCP) {
        uint32_t others;

        if ((transport[13] & ~ECE) != ACK || payload_size < SMALLEST_SEGMENT) /* a frame with PSH ends a run */
            return;
        run->sequence = get32(transport + 4);
        others = (UINT32_MAX - run->sequence) / payload_size; /* how many can follow before the number wraps */
        if (run->most > others)
            run->most = others + 1;
    } else if (get16(transport + 4) != l->end - l->transport) {
        return;
    }
    run->most_whole = (LARGEST_PACKET - (l->payload - l->network)) / payload_size;
    if (run->most_whole > run->most)
        run->most_whole = run->most;
    run->open = true;
}

/* Whether all checksums are correct. UDP must have one, because a UDP super-frame always has one. */
static bool is_sound(const struct frame *frame, const struct layout *l)
{
    uint32_t length = frame->size - l->transport;

    if (l->version == 4 && fold(sum_of(frame->data + l->network, l->transport - l->network)) != 0xffff)
        return false;
    if (l->protocol == UDP && !get16(frame->data + l->transport + 6))
        return false;
    return fold(add(pseudo_header_sum(frame->data, l, length), sum_of(frame->data + l->transport, length))) == 0xffff;
}

/* Whether the headers are those that the next frame of the run must have, except for PSH and checksums. */
static bool continues(const struct run *run, const struct frame *first, const struct frame *frame)
{
    const struct layout *l = &run->layout;
    const uint8_t *a = first->data + l->network, *b = frame->data + l->network;
    uint32_t length = frame->size - l->network, ip_size = l->transport - l->network;

    if (!same_bytes(first->data, frame->data, l->network))
        return false;
    if (l->version == 4) {
        if (memcmp(a, b, 2) || get16(b + 2) != length || memcmp(a + 6, b + 6, 4) ||
            memcmp(a + 12, b + 12, ip_size - 12) || (!(b[6] & 0x40) && get16(b + 4) != run->ident + run->count))
            return false;
    } else if (memcmp(a, b, 4) || get16(b + 4) != length - IPV6_HEADER || memcmp(a + 6, b + 6, ip_size - 6)) {
        return false;
    }
    a = first->data + l->transport;
    b = frame->data + l->transport;
    if (memcmp(a, b, 4))
        return false;
    if (l->protocol == UDP)
        return get16(b + 4) == frame->size - l->transport;
    return get32(b + 4) == run->sequence + run->count * (l->end - l->payload) && !memcmp(a + 8, b + 8, 5) &&
           (b[13] & ~PSH) == a[13] && !memcmp(a + 14, b + 14, 2) &&
           !memcmp(a + 18, b + 18, l->payload - l->transport - 18);
}

static bool join(struct plan *plan, struct run *run, uint32_t index)
{
    const struct layout *l = &run->layout;
    const struct frame *first = &plan->frames[run->first], *frame = &plan->frames[index];
    bool is_last;

    if (!run->open || frame->size > first->size || frame->size <= l->payload)
        return false;
    is_last = frame->size < first->size;
    if (run->count >= (is_last ? run->most : run->most_whole) ||
        run->count * (l->end - l->payload) + frame->size - l->network > LARGEST_PACKET)
        return false;
    if (!continues(run, first, frame))
        return false;
    if (!run->checked) {
        run->checked = run->open = is_sound(first, l);
        if (!run->open)
            return false;
    }
    if (!is_sound(frame, l))
        return false;
    plan->next[run->last] = index;
    run->last = index;
    run->count++;
    if (is_last || (l->protocol == TCP && frame->data[l->transport + 13] & PSH))
        run->open = false;
    return true;
}

/* -- all of it ----------------------------------------------------------------------------------------------------- */

struct plan *plan_new(uint32_t frame_count)
{
    uint32_t bits = 4;
    struct plan *plan;
    size_t size;

    if (frame_count > MOST_FRAMES)
        return NULL;
    while ((uint32_t)1 << bits < 2 * frame_count)
        bits++;
    size = sizeof *plan + frame_count * (sizeof *plan->frames + sizeof *plan->runs + sizeof *plan->next) +
           ((size_t)1 << bits) * sizeof *plan->table;
    if (!(plan = malloc(size)))
        return NULL;
    *plan = (struct plan){.frame_count = frame_count, .table_bits = bits};
    plan->frames = (struct frame *)(plan + 1); /* ordered by alignment, largest first */
    plan->runs = (struct run *)(plan->frames + frame_count);
    plan->next = (uint32_t *)(plan->runs + frame_count);
    plan->table = plan->next + frame_count;
    for (uint32_t i = 0; i < frame_count; i++)
        plan->frames[i].owner = NULL;
    memset(plan->table, 0xff, ((size_t)1 << bits) * sizeof *plan->table); /* NONE */
    return plan;
}

void plan_free(struct plan *plan)
{
    free(plan);
}

void plan_make(struct plan *plan, bool tap, unsigned offload, const struct flow_key *key)
{
    struct run *latest = NULL;

    for (uint32_t i = 0; i < plan->frame_count; i++) {
        const struct frame *frame = &plan->frames[i];
        struct layout layout;
        struct run *run;
        uint32_t *link = NULL;
        bool found = false;

        if (latest && join(plan, latest, i))
            continue;
        if (parse(frame->data, frame->size, tap, &layout))
            link = find_flow(plan, frame->data, &layout, key, &found);
        if (!link) { /* the flow is unknown: no later frame may overtake this one */
            new_run(plan, i);
            plan->oldest = plan->run_count;
            latest = NULL;
            continue;
        }
        run = found ? &plan->runs[*link] : NULL;
        if (run && run != latest && join(plan, run, i)) {
            latest = run;
            continue;
        }
        latest = new_run(plan, i);
        latest->layout = layout;
        latest->below = run ? run->below : *link; /* replaces the flow's last run, or becomes the first in the slot */
        open_run(plan, latest, offload);
        *link = plan->run_count - 1;
    }
}

uint32_t run_size(const struct plan *plan, const struct run *run, uint32_t header_size)
{
    uint32_t whole = plan->frames[run->first].size, last = plan->frames[run->last].size;
    uint32_t payload = run->layout.payload;

    if (run->count == 1)
        return header_size + whole;
    return header_size + whole + (run->count - 2) * (whole - payload) + last - payload;
}

/* Writes the virtio_net_hdr, and the headers of the super-frame. */
static void write_headers(const struct plan *plan, const struct run *run, uint32_t size, uint8_t *to, uint8_t *frame)
{
    const struct layout *l = &run->layout;
    const uint8_t *first = plan->frames[run->first].data;
    uint8_t *ip = frame + l->network, *transport = frame + l->transport;
    uint32_t length = size - l->transport;
    struct vnet vnet = {
        .flags = NEEDS_CSUM,
        .gso_type = l->protocol == UDP ? GSO_UDP_L4 : l->version == 4 ? GSO_TCPV4 : GSO_TCPV6,
        .hdr_len = (uint16_t)l->payload,
        .gso_size = (uint16_t)(l->end - l->payload),
        .csum_start = (uint16_t)l->transport,
        .csum_offset = (uint16_t)checksum_at(l),
    };

    memcpy(to, &vnet, sizeof vnet);
    memcpy(frame, first, l->payload);
    if (l->version == 4) {
        put16(ip + 2, size - l->network);
        put16(ip + 10, 0);
        put_sum(ip + 10, checksum(sum_of(ip, l->transport - l->network)));
    } else {
        put16(ip + 4, size - l->network - IPV6_HEADER);
    }
    if (l->protocol == TCP)
        transport[13] |= plan->frames[run->last].data[l->transport + 13] & PSH;
    else
        put16(transport + 4, length);
    put_sum(transport + checksum_at(l), fold(pseudo_header_sum(first, l, length)));
}

void run_write(const struct plan *plan, const struct run *run, uint32_t header_size, uint8_t *to)
{
    uint8_t *frame = to + header_size;
    uint32_t index = run->first, skip = 0;

    memset(to, 0, header_size);
    if (run->count > 1) {
        write_headers(plan, run, run_size(plan, run, 0), to, frame);
        skip = run->layout.payload;
        frame += skip;
    }
    for (uint32_t i = 0; i < run->count; i++, index = plan->next[index]) {
        const struct frame *piece = &plan->frames[index];

        memcpy(frame, piece->data + skip, piece->size - skip);
        frame += piece->size - skip;
    }
}
