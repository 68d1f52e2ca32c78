/* Turns a frame with a virtio_net_hdr into plain frames. */
#include "packet.h"

/* Computes the sums of the header fields that all segments share, and stores the other fields of the first segment. */
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
        l->end != cut->size)
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

/* The checksum field already has the sum of the pseudo header, so it is included in the sum. */
static void complete(const struct cut *cut, uint8_t *to)
{
    uint32_t start = cut->csum_start;
    uint16_t check;

    memcpy(to, cut->frame, start);
    check = checksum(copy_and_sum(to + start, cut->frame + start, cut->size - start));
    if (!check && cut->csum_offset == 6) /* for UDP, 0 means no checksum (RFC 768) */
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
