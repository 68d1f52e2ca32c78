#include "offload.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

enum { TCP = 6, UDP = 17 };
enum { NEEDS_CSUM = 1, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5, GSO_ECN = 0x80 };
enum { FIN = 0x01, PSH = 0x08, ACK = 0x10, ECE = 0x40, CWR = 0x80 };
enum { ETHERNET_HEADER = 14, VLAN_TAG = 4, MOST_VLAN_TAGS = 2, IPV4_HEADER = 20, IPV6_HEADER = 40 };

enum {
    MOST_IN_RUN = 64,
    LARGEST_PACKET = 65535,
    /*
     * Runs in one place of the table that are looked at. The table has at least twice as many places as frames, so that
     * this many in one place do not come by chance.
     */
    MOST_PROBES = 16,
};

#define NONE UINT32_MAX

struct vnet { /* the first bytes of a virtio_net_hdr, in the byte order of the machine */
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
_Static_assert(sizeof(struct vnet) == 10, "struct virtio_net_hdr has 10 bytes");

bool is_header_size(long size)
{
    return size == 10 || size == 12 || size == 20 || size == 24;
}

/* -- words and sums ------------------------------------------------------------------------------------------------ */

static inline uint16_t get16(const uint8_t *at)
{
    uint16_t word;

    memcpy(&word, at, sizeof word);
    return ntohs(word);
}

static inline uint32_t get32(const uint8_t *at)
{
    uint32_t word;

    memcpy(&word, at, sizeof word);
    return ntohl(word);
}

static inline void put16(uint8_t *at, uint32_t value)
{
    uint16_t word = htons((uint16_t)value);

    memcpy(at, &word, sizeof word);
}

static inline void put32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, sizeof value);
}

/*
 * A one's complement sum may be taken in the byte order of the machine and over words of any size (RFC 1071, 2): a
 * number that is added goes through `number`, and the result is stored as it is.
 */
static inline uint64_t add(uint64_t sum, uint64_t word)
{
    sum += word;
    return sum + (sum < word);
}

static inline uint64_t number(uint32_t value)
{
    return htons((uint16_t)value);
}

static inline uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static inline void put_sum(uint8_t *at, uint16_t sum)
{
    memcpy(at, &sum, sizeof sum);
}

static inline uint16_t checksum(uint64_t sum)
{
    return (uint16_t)~fold(sum);
}

/* Of the last bytes, fewer than 8. What is missing counts as zeros that follow, whatever the byte order. */
static inline uint64_t rest_sum(const uint8_t *from, uint32_t size)
{
    uint64_t word = 0;

    memcpy(&word, from, size);
    return word;
}

/* Four sums that do not wait for each other. */
static uint64_t sum_of(const uint8_t *from, uint32_t size)
{
    uint64_t a = 0, b = 0, c = 0, d = 0, words[4];

    for (; size >= sizeof words; size -= (uint32_t)sizeof words, from += sizeof words) {
        memcpy(words, from, sizeof words);
        a = add(a, words[0]);
        b = add(b, words[1]);
        c = add(c, words[2]);
        d = add(d, words[3]);
    }
    for (; size >= 8; size -= 8, from += 8) {
        memcpy(words, from, 8);
        a = add(a, words[0]);
    }
    if (size)
        b = add(b, rest_sum(from, size));
    return add(add(a, b), add(c, d));
}

static uint64_t copy_and_sum(uint8_t *to, const uint8_t *from, uint32_t size)
{
    uint64_t a = 0, b = 0, c = 0, d = 0, words[4];

    for (; size >= sizeof words; size -= (uint32_t)sizeof words, from += sizeof words, to += sizeof words) {
        memcpy(words, from, sizeof words);
        memcpy(to, words, sizeof words);
        a = add(a, words[0]);
        b = add(b, words[1]);
        c = add(c, words[2]);
        d = add(d, words[3]);
    }
    for (; size >= 8; size -= 8, from += 8, to += 8) {
        memcpy(words, from, 8);
        memcpy(to, words, 8);
        a = add(a, words[0]);
    }
    if (size) {
        memcpy(to, from, size);
        b = add(b, rest_sum(from, size));
    }
    return add(add(a, b), add(c, d));
}

/* -- where the headers are ----------------------------------------------------------------------------------------- */

static inline uint32_t ip_header_size(uint8_t version)
{
    return version == 4 ? IPV4_HEADER : version == 6 ? IPV6_HEADER : 0;
}

/* Offset and IP version of the network header, version 0 for anything else; false if the frame ends before it does. */
static bool network_header(const uint8_t *frame, uint32_t size, bool tap, uint32_t *network, uint8_t *version)
{
    uint32_t at = 0;

    *version = 0;
    if (tap) {
        uint16_t type;

        at = ETHERNET_HEADER;
        if (size < at)
            return false;
        type = get16(frame + at - 2);
        for (int i = 0; i < MOST_VLAN_TAGS && (type == 0x8100 || type == 0x88a8); i++) {
            at += VLAN_TAG;
            if (size < at)
                return false;
            type = get16(frame + at - 2);
        }
        *version = type == 0x0800 ? 4 : type == 0x86dd ? 6 : 0;
    } else if (size) {
        *version = frame[0] >> 4;
        if (*version != 4 && *version != 6)
            *version = 0;
    }
    *network = at;
    return at + ip_header_size(*version) <= size;
}

/* IPv6 extension headers that may stand before TCP and UDP: hop-by-hop, routing, destination options (RFC 8200). */
static inline bool is_extension(uint8_t protocol)
{
    return protocol == 0 || protocol == 43 || protocol == 60;
}

/* Finds the headers of an unfragmented TCP or UDP packet; false for anything else, and where lengths are wrong. */
static bool parse(const uint8_t *frame, uint32_t size, bool tap, struct layout *layout)
{
    uint32_t network, transport, payload, end;
    uint8_t version, protocol;

    if (!network_header(frame, size, tap, &network, &version) || !version || frame[network] >> 4 != version)
        return false;
    if (version == 4) {
        transport = network + (frame[network] & 15u) * 4;
        protocol = frame[network + 9];
        end = network + get16(frame + network + 2);
        if (transport < network + IPV4_HEADER || get16(frame + network + 6) & 0x3fff) /* a fragment */
            return false;
    } else {
        transport = network + IPV6_HEADER;
        protocol = frame[network + 6];
        end = transport + get16(frame + network + 4);
    }
    if (end > size)
        return false;
    if (version == 6)
        while (is_extension(protocol) && transport + 8 <= end) {
            protocol = frame[transport];
            transport += 8 * (frame[transport + 1] + 1u);
        }
    if (protocol == TCP) {
        uint32_t offset;

        if (transport + 20 > end)
            return false;
        offset = (uint32_t)(frame[transport + 12] >> 4) * 4;
        payload = transport + offset;
        if (offset < 20)
            return false;
    } else if (protocol == UDP) {
        payload = transport + 8;
    } else {
        return false;
    }
    if (payload > end)
        return false;
    *layout = (struct layout){network, transport, payload, end, version, protocol};
    return true;
}

static inline uint32_t checksum_at(const struct layout *l)
{
    return l->protocol == TCP ? 16 : 6;
}

static inline uint32_t addresses_at(const struct layout *l)
{
    return l->network + (l->version == 4 ? 12 : 8);
}

static inline uint32_t addresses_size(const struct layout *l)
{
    return l->version == 4 ? 8 : 32;
}

static uint64_t pseudo_header_sum(const uint8_t *frame, const struct layout *l, uint32_t length)
{
    return add(sum_of(frame + addresses_at(l), addresses_size(l)), number(l->protocol) + number(length));
}

/* -- segmenting ---------------------------------------------------------------------------------------------------- */

/* The sums of all headers but for the fields that differ between segments, and those fields of the first one. */
static void sum_headers(struct cut *cut)
{
    const struct layout *l = &cut->layout;
    const uint8_t *ip = cut->frame + l->network, *transport = cut->frame + l->transport;

    if (l->version == 4) { /* without length, identification and checksum */
        cut->ident = get16(ip + 4);
        cut->ip_sum = add(sum_of(ip, 2), sum_of(ip + 6, 4));
        cut->ip_sum = add(cut->ip_sum, sum_of(ip + 12, l->transport - l->network - 12));
    }
    cut->sum = pseudo_header_sum(cut->frame, l, 0);
    cut->sum = add(cut->sum, sum_of(transport, 4));
    if (l->protocol == TCP) { /* without sequence number, flags and checksum */
        cut->sequence = get32(transport + 4);
        cut->flags = transport[13];
        cut->sum = add(cut->sum, add(sum_of(transport + 8, 4), sum_of(transport + 14, 2)));
        cut->sum = add(cut->sum, sum_of(transport + 18, l->payload - l->transport - 18));
    }
}

static bool is_allowed(uint8_t gso_type, const struct layout *l)
{
    switch (gso_type) {
    case GSO_TCPV4:
    case GSO_TCPV4 | GSO_ECN:
        return l->version == 4 && l->protocol == TCP;
    case GSO_TCPV6:
    case GSO_TCPV6 | GSO_ECN:
        return l->version == 6 && l->protocol == TCP;
    case GSO_UDP_L4:
        return l->protocol == UDP;
    default:
        return false;
    }
}

static bool prepare_super(struct cut *cut, const struct vnet *vnet, bool tap)
{
    struct layout *l = &cut->layout;
    uint32_t payload_size;

    if (!vnet->gso_size || !parse(cut->frame, cut->size, tap, l) || !is_allowed(vnet->gso_type, l) ||
        l->end != cut->size || l->payload > MOST_HEADERS)
        return false;
    if (l->protocol == UDP && get16(cut->frame + l->transport + 4) != l->end - l->transport)
        return false;
    if (vnet->flags & NEEDS_CSUM) {
        if (vnet->csum_start != l->transport || vnet->csum_offset != checksum_at(l))
            return false;
    } else if (l->protocol == UDP) {
        return false;
    }
    payload_size = l->end - l->payload;
    cut->gso_size = vnet->gso_size;
    cut->count = payload_size ? (payload_size - 1) / vnet->gso_size + 1 : 1;
    sum_headers(cut);
    return true;
}

uint32_t cut_prepare(struct cut *cut, const uint8_t *data, uint32_t size, bool tap, uint32_t header_size)
{
    struct vnet vnet;
    uint32_t network;
    uint8_t version;

    if (size < header_size + (tap ? ETHERNET_HEADER : 1))
        return 0;
    memcpy(&vnet, data, sizeof vnet);
    *cut = (struct cut){.frame = data + header_size, .size = size - header_size, .count = 1, .kind = PLAIN};
    if (vnet.hdr_len > cut->size)
        return 0;
    if (vnet.gso_type) {
        cut->kind = SUPER;
        return prepare_super(cut, &vnet, tap) ? cut->count : 0;
    }
    if (vnet.flags & NEEDS_CSUM) {
        if (!network_header(cut->frame, cut->size, tap, &network, &version) ||
            vnet.csum_start < network + ip_header_size(version) ||
            (uint32_t)vnet.csum_start + vnet.csum_offset + 2 > cut->size)
            return 0;
        cut->kind = PARTIAL;
        cut->csum_start = vnet.csum_start;
        cut->csum_offset = vnet.csum_offset;
    }
    return 1;
}

uint32_t cut_size(const struct cut *cut, uint32_t index)
{
    uint32_t left;

    if (cut->kind != SUPER)
        return cut->size;
    left = cut->size - cut->layout.payload - index * cut->gso_size;
    return cut->layout.payload + (left < cut->gso_size ? left : cut->gso_size);
}

/* The checksum field holds the sum of a pseudo header: what is summed begins with that. */
static void complete(const struct cut *cut, uint8_t *to)
{
    uint32_t start = cut->csum_start;
    uint16_t check;

    memcpy(to, cut->frame, start);
    check = checksum(copy_and_sum(to + start, cut->frame + start, cut->size - start));
    if (!check && cut->csum_offset == 6) /* for UDP, 0 means that there is none (RFC 768) */
        check = 0xffff;
    put_sum(to + start + cut->csum_offset, check);
}

void cut_write(const struct cut *cut, uint32_t index, uint8_t *to)
{
    const struct layout *l = &cut->layout;
    uint8_t *ip = to + l->network, *transport = to + l->transport;
    uint32_t size = cut_size(cut, index), before = index * cut->gso_size, length = size - l->transport;
    uint64_t sum;

    if (cut->kind == PLAIN) {
        memcpy(to, cut->frame, cut->size);
        return;
    }
    if (cut->kind == PARTIAL) {
        complete(cut, to);
        return;
    }
    memcpy(to, cut->frame, l->payload);
    sum = copy_and_sum(to + l->payload, cut->frame + l->payload + before, size - l->payload);
    sum = add(add(sum, cut->sum), number(length));
    if (l->version == 4) {
        uint32_t total = size - l->network, ident = cut->ident + index;

        put16(ip + 2, total);
        put16(ip + 4, ident);
        put_sum(ip + 10, checksum(add(cut->ip_sum, number(total) + number(ident))));
    } else {
        put16(ip + 4, size - l->network - IPV6_HEADER);
    }
    if (l->protocol == TCP) {
        uint32_t sequence = cut->sequence + before;
        uint8_t flags = cut->flags;

        if (index)
            flags &= (uint8_t)~CWR;
        if (index + 1 < cut->count)
            flags &= (uint8_t)~(FIN | PSH);
        put32(transport + 4, sequence);
        transport[13] = flags;
        sum = add(sum, number(sequence >> 16) + number(sequence) + number((uint32_t)transport[12] << 8 | flags));
        put_sum(transport + 16, checksum(sum));
    } else {
        uint16_t check = checksum(add(sum, number(length)));

        put16(transport + 4, length);
        put_sum(transport + 6, check ? check : 0xffff);
    }
}

/* -- merging: the table of flows ----------------------------------------------------------------------------------- */

/*
 * Where the runs of a flow are in the table: the products of pairs of keyed words, all added up. For any two flows that
 * are chosen without the key, the chance of the same sum is below 2**-31.
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
    hash ^= hash >> 32; /* numbers in a row would else come to stand in few places, with some keys */
    hash *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(hash >> (64 - plan->table_bits));
}

static inline bool same_bytes(const uint8_t *a, const uint8_t *b, uint32_t size)
{
    return !size || !memcmp(a, b, size); /* TUN frames have no link layer: mostly, there is nothing to call for */
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
 * Where the number of the latest run of this flow is kept, or has its place: *found* says which. NULL after too many
 * others. In each place, the runs that still count are on top of those that do not.
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

/* -- merging: runs ------------------------------------------------------------------------------------------------- */

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

/* Lets others join, if the first frame is of a kind that can be merged. Its checksums are looked at when one comes. */
static void open_run(const struct plan *plan, struct run *run, unsigned offload)
{
    const struct layout *l = &run->layout;
    const struct frame *first = &plan->frames[run->first];
    const uint8_t *ip = first->data + l->network, *transport = first->data + l->transport;
    uint32_t payload_size = l->end - l->payload;

    run->offload = offload_of(l);
    if (l->end != first->size || !payload_size || l->payload > MOST_HEADERS || !(run->offload & offload))
        return;
    run->most = MOST_IN_RUN;
    if (l->version == 4) {
        if (ip[6] & 0x80) /* a reserved bit */
            return;
        run->ident = get16(ip + 4);
        /* With DF, an identification means nothing (RFC 6864). Without, it must not start again from 0. */
        if (!(ip[6] & 0x40) && run->most > 0x10000u - run->ident)
            run->most = 0x10000u - run->ident;
    }
    if (l->protocol == TCP) {
        uint32_t others;

        if ((transport[13] & ~ECE) != ACK) /* with PSH it would be the last one as well */
            return;
        run->sequence = get32(transport + 4);
        others = (UINT32_MAX - run->sequence) / payload_size; /* that can follow before it starts again from 0 */
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

/* Whether all checksums are right, and UDP has one at all: a super-frame of UDP always has. */
static bool is_sound(const struct frame *frame, const struct layout *l)
{
    uint32_t length = frame->size - l->transport;

    if (l->version == 4 && fold(sum_of(frame->data + l->network, l->transport - l->network)) != 0xffff)
        return false;
    if (l->protocol == UDP && !get16(frame->data + l->transport + 6))
        return false;
    return fold(add(pseudo_header_sum(frame->data, l, length), sum_of(frame->data + l->transport, length))) == 0xffff;
}

/* Whether the headers are those that the next frame of the run must have. Only PSH and checksums are free. */
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

/* -- merging: all of it -------------------------------------------------------------------------------------------- */

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
    plan->frames = (struct frame *)(plan + 1); /* what needs the widest alignment comes first */
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
        if (!link) { /* it may belong to any flow: nothing that comes after it may go before it */
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
        latest->below = run ? run->below : *link; /* in place of the flow's last run, or on top */
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

/* The virtio_net_hdr, and the headers as they are for all frames of the run together. */
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
