#include "packet.h"

enum { VLAN_TAG = 4, MOST_VLAN_TAGS = 2 };

bool is_header_size(long size)
{
    return size == 10 || size == 12 || size == 20 || size == 24;
}

bool network_header(const uint8_t *frame, uint32_t size, bool tap, uint32_t *network, uint8_t *version)
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

bool parse(const uint8_t *frame, uint32_t size, bool tap, struct layout *layout)
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
        while (is_extension(protocol) && transport + 8 <= end && transport + 8 <= MOST_HEADERS) {
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
    if (payload > end || payload > MOST_HEADERS)
        return false;
    *layout = (struct layout){network, transport, payload, end, version, protocol};
    return true;
}
