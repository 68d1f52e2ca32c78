/*
 * What everything else is measured against: the same system calls with nothing around them.
 *
 * Built as a shared library and called from Python. The first three return the number of frames they moved, the
 * forwarder and the responder return only on an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
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
