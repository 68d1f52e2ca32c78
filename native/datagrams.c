/*
 * Batches of datagrams: recvmsg(2) with UDP_GRO and sendmsg(2) with UDP_SEGMENT. With both, one message holds several
 * datagrams of one flow. See udp(7), and for the local address of a datagram ip(7) and ipv6(7).
 *
 * An address is bytes: a sockaddr_in or sockaddr_in6, perhaps followed by the local address. See aiotuntap/_address.py.
 */
#define _GNU_SOURCE /* struct in6_pktinfo */
#include "module.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum {
    SEGMENT = 103, /* UDP_SEGMENT and UDP_GRO of <linux/udp.h> */
    GRO = 104,
    MOST_MESSAGES = 128,
    MOST_IN_RUN = 64,
    LARGEST_RUN = 65507,
    IN_SIZE = sizeof(struct sockaddr_in),
    IN6_SIZE = sizeof(struct sockaddr_in6),
    LARGEST_ADDRESS = IN6_SIZE + sizeof(struct in6_addr),
};

union name {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

union control {
    struct cmsghdr aligned;
    char data[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in_pktinfo)) + CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

/* -- receiving ----------------------------------------------------------------------------------------------------- */

struct message {
    Py_ssize_t size, segment; /* segment: size of all its datagrams; the last one may be shorter */
    size_t address_size;
    uint8_t address[LARGEST_ADDRESS];
};

static bool is_unicast(const struct in_addr *address)
{
    return address->s_addr != INADDR_BROADCAST && address->s_addr != INADDR_ANY && !IN_MULTICAST(ntohl(address->s_addr));
}

static void add_address(struct message *message, const void *data, size_t size)
{
    memcpy(message->address + message->address_size, data, size);
    message->address_size += size;
}

/* An IPv4-mapped IPv6 address becomes an IPv4 address, so that a sender has the same address on every socket. */
static void set_address(struct message *message, const union name *name, const struct in_addr *own,
                        const struct in6_addr *own6)
{
    union name to = {0};

    message->address_size = 0;
    if (name->any.sa_family == AF_INET6 && !IN6_IS_ADDR_V4MAPPED(&name->in6.sin6_addr)) {
        to.in6.sin6_family = AF_INET6;
        to.in6.sin6_port = name->in6.sin6_port;
        to.in6.sin6_addr = name->in6.sin6_addr;
        to.in6.sin6_scope_id = name->in6.sin6_scope_id;
        add_address(message, &to.in6, IN6_SIZE);
        if (own6 && !IN6_IS_ADDR_MULTICAST(own6))
            add_address(message, own6, sizeof *own6);
        return;
    }
    to.in.sin_family = AF_INET;
    if (name->any.sa_family == AF_INET6) {
        to.in.sin_port = name->in6.sin6_port;
        memcpy(&to.in.sin_addr, name->in6.sin6_addr.s6_addr + 12, sizeof to.in.sin_addr);
    } else {
        to.in.sin_port = name->in.sin_port;
        to.in.sin_addr = name->in.sin_addr;
    }
    add_address(message, &to.in, IN_SIZE);
    if (own && is_unicast(own))
        add_address(message, own, sizeof *own);
}

/* Receives one message into *to, which has READ_SIZE bytes. Returns 0 or the errno. */
static int receive(int fd, char *to, bool is_named, struct message *message)
{
    struct iovec iov = {to, READ_SIZE};
    union control control;
    union name name = {0};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct in_pktinfo own;
    struct in6_pktinfo own6;
    bool has_own = false, has_own6 = false;
    int segment = 0;

    if (is_named) {
        header.msg_name = &name;
        header.msg_namelen = sizeof name;
    }
    message->size = recvmsg(fd, &header, 0);
    if (message->size < 0)
        return errno;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&header); each; each = CMSG_NXTHDR(&header, each)) {
        if (each->cmsg_level == IPPROTO_UDP && each->cmsg_type == GRO && each->cmsg_len >= CMSG_LEN(sizeof segment)) {
            memcpy(&segment, CMSG_DATA(each), sizeof segment);
        } else if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_PKTINFO &&
                   each->cmsg_len >= CMSG_LEN(sizeof own)) {
            memcpy(&own, CMSG_DATA(each), sizeof own);
            has_own = true;
        } else if (each->cmsg_level == IPPROTO_IPV6 && each->cmsg_type == IPV6_PKTINFO &&
                   each->cmsg_len >= CMSG_LEN(sizeof own6)) {
            memcpy(&own6, CMSG_DATA(each), sizeof own6);
            has_own6 = true;
        }
    }
    message->segment = segment > 0 && segment < message->size ? segment : message->size;
    if (is_named)
        set_address(message, &name, has_own ? &own.ipi_spec_dst : NULL, has_own6 ? &own6.ipi6_addr : NULL);
    return 0;
}

static Py_ssize_t count_of(const struct message *message)
{
    return message->size ? (message->size + message->segment - 1) / message->segment : 1;
}

/* What helps where an object cannot be made, and what came in between. */
struct relief {
    void *reserve;    /* freed at the first failure */
    PyObject *raised; /* what a signal handler raised within *addresses*, which may be implemented in Python; or NULL */
};

/* Whether to try again after a failure. */
static bool try_again(struct relief *relief)
{
    bool had_reserve = relief->reserve != NULL;

    if (relief->raised || PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
    } else {
        PyObject *type, *traceback;

        PyErr_Fetch(&type, &relief->raised, &traceback);
        PyErr_NormalizeException(&type, &relief->raised, &traceback);
        if (traceback)
            PyException_SetTraceback(relief->raised, traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
    }
    free(relief->reserve);
    relief->reserve = NULL;
    return had_reserve;
}

static PyObject *address_of(PyObject *addresses, const struct message *message, struct relief *relief)
{
    do {
        PyObject *key = PyBytes_FromStringAndSize((const char *)message->address, (Py_ssize_t)message->address_size);
        PyObject *address = key ? PyObject_GetItem(addresses, key) : NULL;

        Py_XDECREF(key);
        if (address)
            return address;
    } while (try_again(relief));
    return NULL;
}

static bool append_datagram(PyObject *list, const char *data, Py_ssize_t size, PyObject *address, struct relief *relief)
{
    do {
        PyObject *bytes = PyBytes_FromStringAndSize(data, size);
        PyObject *item = bytes && address ? PyTuple_Pack(2, bytes, address) : Py_XNewRef(bytes);
        bool is_appended = item && PyList_Append(list, item) == 0;

        Py_XDECREF(bytes);
        Py_XDECREF(item);
        if (is_appended)
            return true;
    } while (try_again(relief));
    return false;
}

/* Makes the objects of all datagrams, as far as there is memory. Returns how many datagrams are lost. */
static Py_ssize_t append_all(PyObject *list, const char *data, const struct message *messages, int count,
                             PyObject *addresses, struct relief *relief)
{
    PyObject *address = NULL;
    Py_ssize_t lost = 0;

    for (int i = 0; i < count; data += messages[i++].size) {
        const struct message *message = &messages[i], *before = i ? message - 1 : NULL;
        Py_ssize_t datagrams = count_of(message);

        if (addresses && !(address && before && message->address_size == before->address_size &&
                           !memcmp(message->address, before->address, message->address_size))) {
            Py_XDECREF(address);
            address = address_of(addresses, message, relief);
            if (!address) {
                lost += datagrams;
                continue;
            }
        }
        for (Py_ssize_t k = 0, at = 0; k < datagrams; k++, at += message->segment) {
            Py_ssize_t size = message->size - at < message->segment ? message->size - at : message->segment;

            lost += !append_datagram(list, data + at, size, address, relief);
        }
    }
    Py_XDECREF(address);
    return lost;
}

/*
 * Received datagrams must not be lost for lack of memory. The reserve is enough for the objects of all datagrams in the
 * arena, and for the answer, and without a reserve nothing more is received. Both are removed from the state during the
 * call, because *addresses* may run Python code, which may call this function again. What a signal handler raises there
 * is returned instead of an errno.
 */
PyObject *receive_batch(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    struct state *state = PyModule_GetState(module);
    struct message messages[MOST_MESSAGES];
    Py_ssize_t datagrams = 0, used = 0, bytes = 0, before = 0, together = 0, segments = 0, lost = 0;
    int fd, limit, enough, error = 0, count = 0, total = 0;
    PyObject *list, *addresses, *stopped, *answer;
    struct relief relief = {0};
    char *arena;

    if (!count_is(given, 4) || (fd = PyObject_AsFileDescriptor(args[0])) < 0 || !int_of(args[1], &limit) ||
        !int_of(args[2], &enough))
        return NULL;
    addresses = Py_IsNone(args[3]) ? NULL : args[3];
    if (!(list = PyList_New(0)))
        return NULL;
    arena = state->arena ? state->arena : malloc(ARENA);
    relief.reserve = state->reserve ? state->reserve : malloc(RESERVE);
    state->arena = NULL;
    state->reserve = NULL;
    if (!arena || !relief.reserve)
        error = ENOMEM;
    /* A message that may exceed the limit is left in the kernel: see the caller. */
    while (!error && total < MOST_MESSAGES && used <= ARENA - READ_SIZE && bytes < enough &&
           (total == 0 ? limit > 0 : datagrams + before <= limit)) {
        struct message *message = &messages[count];

        error = receive(fd, arena + used, addresses != NULL, message);
        if (error)
            break;
        before = count_of(message);
        datagrams += before;
        used += message->size;
        bytes += message->size;
        count++;
        total++;
        if (before > 1) {
            together++;
            segments += before;
            /* Now, while the data is in the CPU's cache. The next message uses the same memory. */
            lost += append_all(list, arena, messages, count, addresses, &relief);
            used = count = 0;
            if (!relief.reserve) /* the next message might be lost */
                break;
        }
    }
    lost += append_all(list, arena, messages, count, addresses, &relief);
    if (lost)
        error = ENOMEM;
    stopped = relief.raised ? relief.raised : PyLong_FromLong(error);
    do
        answer = Py_BuildValue("(OOnnn)", list, stopped, together, segments, lost);
    while (!answer && try_again(&relief));
    Py_DECREF(stopped);
    Py_DECREF(list);
    free(state->arena);
    free(state->reserve);
    state->arena = arena;
    state->reserve = relief.reserve;
    return answer ? answer : PyErr_NoMemory();
}

/* -- sending ------------------------------------------------------------------------------------------------------- */

static struct cmsghdr *add_control(struct msghdr *header, union control *control, int level, int type, const void *data,
                                   size_t size)
{
    struct cmsghdr *next = (struct cmsghdr *)(control->data + header->msg_controllen);

    next->cmsg_level = level;
    next->cmsg_type = type;
    next->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(next), data, size);
    header->msg_control = control;
    header->msg_controllen += CMSG_SPACE(size);
    return next;
}

/* Sets the destination and the local address. False if it is not an address. */
static bool address_message(struct msghdr *header, union control *control, union name *name, const char *address,
                            Py_ssize_t size)
{
    if (size == IN_SIZE || size == IN_SIZE + (Py_ssize_t)sizeof(struct in_addr)) {
        struct in_pktinfo own = {0};

        memcpy(&name->in, address, IN_SIZE);
        header->msg_namelen = IN_SIZE;
        if (size > IN_SIZE) {
            memcpy(&own.ipi_spec_dst, address + IN_SIZE, sizeof own.ipi_spec_dst);
            add_control(header, control, IPPROTO_IP, IP_PKTINFO, &own, sizeof own);
        }
    } else if (size == IN6_SIZE || size == LARGEST_ADDRESS) {
        struct in6_pktinfo own = {0};

        memcpy(&name->in6, address, IN6_SIZE);
        header->msg_namelen = IN6_SIZE;
        if (size > IN6_SIZE) {
            memcpy(&own.ipi6_addr, address + IN6_SIZE, sizeof own.ipi6_addr);
            if (IN6_IS_ADDR_LINKLOCAL(&own.ipi6_addr))
                own.ipi6_ifindex = name->in6.sin6_scope_id;
            add_control(header, control, IPPROTO_IPV6, IPV6_PKTINFO, &own, sizeof own);
        }
    } else {
        return false;
    }
    header->msg_name = name;
    return true;
}

/*
 * Datagrams that are sent in one message. One alone is sent from its own memory; several are copied one behind the other
 * first, which takes less time than the kernel needs for as many pieces of memory.
 */
struct together {
    struct held first; /* held until the message is sent */
    Py_ssize_t size;   /* of all datagrams */
    Py_ssize_t last;   /* of the last one */
    int count;
    char *copies; /* LARGEST_RUN bytes: the arena, removed from the state during the call, as for receiving */
};

/* False if the frame is not a contiguous buffer, or has no bytes or more than *largest*. */
static bool add_to_run(struct together *run, PyObject *frames, Py_ssize_t index, Py_ssize_t largest)
{
    struct held held;
    bool fits;

    if (!hold_item(frames, index, &held))
        return false;
    fits = held.size > 0 && held.size <= largest; /* the kernel does not send an empty last segment */
    if (fits) {
        if (run->count == 1)
            memcpy(run->copies, run->first.data, (size_t)run->size);
        memcpy(run->copies + run->size, held.data, (size_t)held.size);
        run->last = held.size;
        run->size += held.size;
        run->count++;
    }
    let_go(&held);
    return fits;
}

/*
 * Frames from *index* on that can be sent in one message: all have one size; the last one may be shorter. False if the
 * first one cannot be sent.
 */
static bool make_run(struct together *run, PyObject *frames, Py_ssize_t index, Py_ssize_t end, int largest, int together)
{
    Py_ssize_t size, room;

    if (!hold_item(frames, index++, &run->first))
        return false;
    size = run->size = run->last = run->first.size;
    run->count = 1;
    if (size > largest) {
        let_go(&run->first);
        return false;
    }
    if (size == 0 || size > together)
        return true;
    while (run->count < MOST_IN_RUN && index < end && run->last == size && (room = LARGEST_RUN - run->size) > 0)
        if (!add_to_run(run, frames, index++, size < room ? size : room))
            break;
    return true;
}

PyObject *send_batch(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    int fd, largest, together, most, error = 0, tried = 0;
    Py_ssize_t start, end, size, address_size = 0, messages = 0, coalesced = 0, at;
    struct state *state = PyModule_GetState(module);
    const char *address = NULL;
    struct together run;

    if (!count_is(given, 7) || (fd = PyObject_AsFileDescriptor(args[0])) < 0 || !int_of(args[1], &largest) ||
        !int_of(args[2], &together) || !int_of(args[4], &most))
        return NULL;
    start = PyLong_AsSsize_t(args[3]);
    if ((start == -1 && PyErr_Occurred()) || (size = PySequence_Size(args[5])) < 0)
        return NULL;
    if (!Py_IsNone(args[6])) {
        address = PyBytes_AsString(args[6]);
        if (!address)
            return NULL;
        address_size = PyBytes_Size(args[6]);
    }
    if (start < 0) {
        PyErr_SetString(PyExc_TypeError, "start must be at least 0");
        return NULL;
    }
    if (most > MOST_IN_BATCH)
        most = MOST_IN_BATCH;
    end = most < size - start ? start + most : size;
    run.copies = state->arena ? state->arena : malloc(ARENA);
    state->arena = NULL;
    if (!run.copies)
        together = 0;
    for (at = start; at < end && !error;) {
        struct iovec iov;
        struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
        union control control = {0};
        union name name;

        if (address && !address_message(&header, &control, &name, address, address_size)) {
            PyErr_SetString(PyExc_TypeError, "the address must be an Address or None");
            break;
        }
        if (!make_run(&run, args[5], at, end, largest, together)) {
            error = LOOK;
            break;
        }
        if (run.count > 1) {
            uint16_t segment = (uint16_t)run.first.size;

            add_control(&header, &control, IPPROTO_UDP, SEGMENT, &segment, sizeof segment);
        }
        iov.iov_base = run.count > 1 ? run.copies : (void *)(uintptr_t)run.first.data;
        iov.iov_len = (size_t)run.size;
        if (sendmsg(fd, &header, 0) < 0) {
            error = errno;
            tried = run.count;
        } else {
            at += run.count;
            if (run.count > 1) {
                messages++;
                coalesced += run.count;
            }
        }
        let_go(&run.first);
    }
    free(state->arena);
    state->arena = run.copies;
    if (PyErr_Occurred())
        return NULL;
    return Py_BuildValue("(niinn)", at > start ? at - start : 0, error, tried, messages, coalesced);
}
