/*
 * What everything else is measured against: the same system calls with nothing around them.
 *
 * Built as a shared library and called from Python. The first three return the number of frames they moved, the
 * forwarder, the responder and the sender of datagrams return only on an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define FRAME 65664
#define FLOWS 64

static char frame[FRAME];

int drain(int fd, int count)
{
    int done = 0;

    while (done < count && read(fd, frame, sizeof frame) >= 0)
        done++;
    return done;
}

int flood(int fd, const char *data, int size, int count)
{
    int done = 0;

    while (done < count && write(fd, data, size) >= 0)
        done++;
    return done;
}

int fill(int sock, const char *data, int size, int count)
{
    struct iovec piece = {(void *)data, size};
    struct mmsghdr messages[BATCH];
    int done = 0;

    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_iov = &piece;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    while (done < count) {
        int sent = sendmmsg(sock, messages, count - done < BATCH ? count - done : BATCH, 0);

        if (sent <= 0)
            break;
        done += sent;
    }
    return done;
}

/* Level-triggered, up to BATCH frames for each descriptor that is ready. Frames that the kernel refuses are lost. */
int forward(int left, int right)
{
    int ends[2] = {left, right}, poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ready[2];

    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};

        if (epoll_ctl(poll, EPOLL_CTL_ADD, ends[i], &event) < 0)
            return -errno;
    }
    for (;;) {
        int count = epoll_wait(poll, ready, 2, -1);

        if (count < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < count; i++) {
            int from = ends[ready[i].data.u32], to = ends[1 - ready[i].data.u32];

            for (int done = 0; done < BATCH; done++) {
                ssize_t size = read(from, frame, sizeof frame);

                if (size < 0) {
                    if (errno != EAGAIN)
                        return -errno;
                    break;
                }
                (void)!write(to, frame, size);
            }
        }
    }
}

/* Answers ICMP echo requests over IPv4, one frame at a time. */
int echo(int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    int poll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) < 0)
        return -errno;
    for (;;) {
        if (epoll_wait(poll, &event, 1, -1) < 0 && errno != EINTR)
            return -errno;
        for (;;) {
            unsigned char *ip = (unsigned char *)frame, *icmp = ip + (ip[0] & 15) * 4, address[4];
            ssize_t size = read(fd, frame, sizeof frame);
            uint32_t sum;

            if (size < 0 && errno != EAGAIN)
                return -errno;
            if (size < 0)
                break;
            icmp = ip + (ip[0] & 15) * 4;
            if (size < 28 || ip[0] >> 4 != 4 || ip[9] != IPPROTO_ICMP || icmp + 8 > ip + size || icmp[0] != 8)
                continue;
            memcpy(address, ip + 12, 4);
            memcpy(ip + 12, ip + 16, 4);
            memcpy(ip + 16, address, 4);
            icmp[0] = 0; /* RFC 1624: 8 less in the high byte of the type and code, so 0x0800 more in the checksum */
            sum = (icmp[2] << 8 | icmp[3]) + 0x0800;
            sum = (sum & 0xffff) + (sum >> 16);
            icmp[2] = sum >> 8;
            icmp[3] = sum;
            (void)!write(fd, frame, size);
        }
    }
}

/* Round trips of *count* echo requests, one each *pause* nanoseconds, in nanoseconds; 0 where no answer came. */
int ping(const char *address, int count, int pause, int64_t *times)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct timeval patience = {.tv_usec = 200000};
    struct timespec rest = {.tv_nsec = pause}, sent, received;
    int sock = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);

    if (sock < 0 || !inet_aton(address, &to.sin_addr) || connect(sock, (void *)&to, sizeof to) < 0 ||
        setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0)
        return -errno;
    for (int i = 0; i < count; i++) {
        unsigned char request[64] = {8, 0, 0, 0, 0x12, 0x34, i >> 8, i}, reply[256];
        uint32_t sum = 0;

        for (size_t k = 0; k < sizeof request; k += 2)
            sum += request[k] << 8 | request[k + 1];
        sum = ~((sum & 0xffff) + (sum >> 16));
        request[2] = sum >> 8;
        request[3] = sum;
        times[i] = 0;
        clock_gettime(CLOCK_MONOTONIC, &sent);
        if (send(sock, request, sizeof request, 0) < 0)
            return -errno;
        while (recv(sock, reply, sizeof reply, 0) >= 28) {
            if (reply[20] != 0 || memcmp(reply + 24, request + 4, 4) != 0)
                continue;
            clock_gettime(CLOCK_MONOTONIC, &received);
            times[i] = (received.tv_sec - sent.tv_sec) * 1000000000LL + received.tv_nsec - sent.tv_nsec;
            break;
        }
        nanosleep(&rest, NULL);
    }
    close(sock);
    return count;
}

/* What segmenting and coalescing cannot do without: each of *count* pieces of *size* bytes is copied, and added up. */
unsigned copy_and_sum(const char *data, int size, int count)
{
    uint64_t sum = 0;

    for (int i = 0; i < count; i++) {
        memcpy(frame + i * size, data + i * size, size);
        for (int k = 0; k + 4 <= size; k += 4) {
            uint32_t word;

            memcpy(&word, frame + i * size + k, sizeof word);
            sum += word;
        }
    }
    return sum % 65535;
}

/*
 * Sends datagrams of *size* bytes for ever, *count* of them in each message (UDP_SEGMENT in udp(7)), from *flows* ports by
 * turns.
 */
int send_datagrams(const char *address, int port, int size, int count, int flows)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int socks[FLOWS];

    if (flows < 1 || flows > FLOWS || !inet_aton(address, &to.sin_addr))
        return -EINVAL;
    for (int i = 0; i < flows; i++) {
        socks[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (socks[i] < 0 || setsockopt(socks[i], IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size) < 0)
            return -errno;
    }
    for (int i = 0;; i = (i + 1) % flows)
        if (sendto(socks[i], frame, size * count, 0, (void *)&to, sizeof to) < 0 && errno != ENOBUFS)
            return -errno;
}

static int64_t nanoseconds(clockid_t clock)
{
    struct timespec now;

    return clock_gettime(clock, &now) < 0 ? -errno : now.tv_sec * 1000000000LL + now.tv_nsec;
}

/*
 * Counts the datagrams that arrive, several in each message (UDP_GRO in udp(7)): for *warm_up* milliseconds in vain, and
 * then for *time*. *figures* gets their number, the nanoseconds that it took, and of these the CPU time of process *pid*.
 */
int count_datagrams(int port, int warm_up, int time, int pid, int64_t *figures)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {.tv_usec = 100000};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1, room = 1 << 25;
    int64_t start = nanoseconds(CLOCK_MONOTONIC), began = 0, used = 0, count = 0, now;
    clockid_t other;

    if (sock < 0 || setsockopt(sock, IPPROTO_UDP, UDP_GRO, &on, sizeof on) < 0 ||
        setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0 ||
        setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
        bind(sock, (void *)&here, sizeof here) < 0)
        return -errno;
    if (clock_getcpuclockid(pid, &other))
        return -ESRCH;
    for (;;) {
        union {
            struct cmsghdr header;
            char room[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec piece = {frame, sizeof frame};
        struct msghdr message = {
            .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t size = recvmsg(sock, &message, 0);
        struct cmsghdr *found = size < 0 ? NULL : CMSG_FIRSTHDR(&message);

        if (size < 0 && errno != EAGAIN)
            return -errno;
        now = nanoseconds(CLOCK_MONOTONIC);
        if (!began && now - start >= warm_up * 1000000LL) {
            began = now;
            used = nanoseconds(other);
            continue;
        }
        if (began && size > 0)
            count += found && found->cmsg_type == UDP_GRO ? (size - 1) / *(int *)CMSG_DATA(found) + 1 : 1;
        if (began && now - began >= time * 1000000LL)
            break;
    }
    figures[0] = count;
    figures[1] = now - began;
    figures[2] = nanoseconds(other) - used;
    close(sock);
    return 0;
}
