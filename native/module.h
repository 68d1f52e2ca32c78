/*
 * Shared by the files that use Python: the module's state, arguments, and frames from Python.
 */
#ifndef AIOTUNTAP_MODULE_H
#define AIOTUNTAP_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "offload.h"

#include <limits.h>
#include <stdbool.h>

enum {
    READ_SIZE = 65664, /* holds the largest frame of any mode, with its header: see _abi.READ_SIZE */
    LARGE = READ_SIZE / 2,
    MOST_IN_BATCH = 256,
    ARENA = 4 * READ_SIZE,
    RESERVE = 2 * ARENA,
    LOOK = -1,         /* returned instead of an errno: this frame was not tried */
    WRONG_THREAD = -2, /* not tried either: this thread must not use the stream */
};

struct state {
    struct flow_key key;
    /* Each of the three is NULL until it is needed, and is allocated before something is read. */
    PyObject *place; /* bytes of READ_SIZE without another reference: the next large frame is read into it */
    char *arena;     /* ARENA bytes: small frames are read into it, or copied to be sent together, one after the other */
    void *reserve;   /* RESERVE bytes: freed for the objects of the frames in the arena when memory is exhausted */
    bool is_large;   /* the last frame was large: the next one probably is, too */
};

/* -- arguments ----------------------------------------------------------------------------------------------------- */

static inline bool count_is(Py_ssize_t given, Py_ssize_t expected)
{
    if (given == expected)
        return true;
    PyErr_Format(PyExc_TypeError, "takes %zd arguments, not %zd", expected, given);
    return false;
}

/* Numbers that do not fit into an int are limits: INT_MAX has the same effect. */
static inline bool int_of(PyObject *object, int *value)
{
    int overflow;
    long number = PyLong_AsLongAndOverflow(object, &overflow);

    if (number == -1 && PyErr_Occurred())
        return false;
    *value = overflow > 0 || number > INT_MAX ? INT_MAX : overflow < 0 || number < INT_MIN ? INT_MIN : (int)number;
    return true;
}

/* -- frames from Python -------------------------------------------------------------------------------------------- */

/* A frame whose memory stays valid until `let_go`. */
struct held {
    const void *data;
    Py_ssize_t size;
    PyObject *owner;  /* if the frame is bytes; otherwise NULL */
    Py_buffer buffer; /* if owner is NULL */
};

/*
 * Clears the exception of a frame that is handed back to Python, where the same exception is raised again. An exception
 * of a signal handler would be lost, so the signal is raised again. (A buffer may be implemented in Python, and signal
 * handlers run there.)
 */
static inline void hand_back(void)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        PyErr_SetInterrupt();
    PyErr_Clear();
}

/* False if the frame is not a contiguous buffer. */
static inline bool hold(PyObject *frame, struct held *held)
{
    if (PyBytes_CheckExact(frame)) {
        held->data = PyBytes_AsString(frame);
        held->size = PyBytes_Size(frame);
        held->owner = Py_NewRef(frame);
        return true;
    }
    if (!PyObject_CheckBuffer(frame))
        return false;
    if (PyObject_GetBuffer(frame, &held->buffer, PyBUF_SIMPLE) < 0) {
        hand_back();
        return false;
    }
    held->data = held->buffer.buf;
    held->size = held->buffer.len;
    held->owner = NULL;
    return true;
}

static inline void let_go(struct held *held)
{
    if (held->owner)
        Py_DECREF(held->owner);
    else
        PyBuffer_Release(&held->buffer);
}

/* The same for an item of a sequence. */
static inline bool hold_item(PyObject *frames, Py_ssize_t index, struct held *held)
{
    PyObject *frame = PySequence_GetItem(frames, index);
    bool is_held;

    if (!frame) {
        hand_back();
        return false;
    }
    is_held = hold(frame, held);
    Py_DECREF(frame);
    return is_held;
}

/* -- datagrams.c --------------------------------------------------------------------------------------------------- */

PyObject *receive_batch(PyObject *module, PyObject *const *args, Py_ssize_t given);
PyObject *send_batch(PyObject *module, PyObject *const *args, Py_ssize_t given);

#endif
