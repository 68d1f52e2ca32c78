/*
 * Shared by segmenting and merging: words, checksums, and finding the headers of a frame. Every offset is checked
 * against the real size of the frame before it is read.
 */
#ifndef AIOTUNTAP_PACKET_H
#define AIOTUNTAP_PACKET_H

#include "offload.h"

#include <arpa/inet.h>
#include <string.h>

enum { TCP = 6, UDP = 17 };
enum { FIN = 0x01, PSH = 0x08, ACK = 0x10, ECE = 0x40, CWR = 0x80 };
enum { ETHERNET_HEADER = 14, IPV4_HEADER = 20, IPV6_HEADER = 40 };
enum { NEEDS_CSUM = 1, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5, GSO_ECN = 0x80 }; /* VIRTIO_NET_HDR_* */

struct vnet { /* the first bytes of a virtio_net_hdr, in the byte order of the machine */
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
_Static_assert(sizeof(struct vnet) == 10, "struct virtio_net_hdr has 10 bytes");

/* -- words and checksums ------------------------------------------------------------------------------------------- */

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
 * A one's complement sum can be computed in the byte order of the machine, and over words of any size (RFC 1071, 2).
 * Numbers to be added are converted by `number`; the result is stored without conversion.
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

/* The sum of the last bytes, fewer than 8, padded with zeros. This is correct in both byte orders. */
static inline uint64_t rest_sum(const uint8_t *from, uint32_t size)
{
    uint64_t word = 0;

    memcpy(&word, from, size);
    return word;
}

/* Four independent sums, which the CPU computes in parallel. */
static inline uint64_t sum_of(const uint8_t *from, uint32_t size)
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

static inline uint64_t copy_and_sum(uint8_t *to, const uint8_t *from, uint32_t size)
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

/* -- finding the headers ------------------------------------------------------------------------------------------- */

static inline uint32_t ip_header_size(uint8_t version)
{
    return version == 4 ? IPV4_HEADER : version == 6 ? IPV6_HEADER : 0;
}

/* Offset and IP version of the network header; version 0 if it is not IP. False if the frame ends before the header. */
bool network_header(const uint8_t *frame, uint32_t size, bool tap, uint32_t *network, uint8_t *version);

/*
 * Finds the headers of an unfragmented TCP or UDP packet. False for other packets, for headers longer than MOST_HEADERS,
 * and for wrong lengths.
 */
bool parse(const uint8_t *frame, uint32_t size, bool tap, struct layout *layout);

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

static inline uint64_t pseudo_header_sum(const uint8_t *frame, const struct layout *l, uint32_t length)
{
    return add(sum_of(frame + addresses_at(l), addresses_size(l)), number(l->protocol) + number(length));
}

#endif
