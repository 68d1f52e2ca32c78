/*
 * What the files that know Python have in common: the module's state, arguments, and frames that come from Python.
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
    LOOK = -1,         /* in the place of an errno: this frame was not tried */
    WRONG_THREAD = -2, /* nor was this one, since the caller is not the thread that it has to be */
};

struct state {
    struct flow_key key;
    /* Each of the three is NULL until it is needed, and is there before something is read. */
    PyObject *place; /* bytes of READ_SIZE that nobody else knows: where the next large frame is read to */
    char *arena;     /* of ARENA: where small frames are read to, one after the other */
    void *reserve;   /* of RESERVE: for the objects of all frames in the arena, when memory has run out */
    bool is_large;   /* the last frame was: the next one probably is as well */
};

/* -- arguments ----------------------------------------------------------------------------------------------------- */

static inline bool count_is(Py_ssize_t given, Py_ssize_t expected)
{
    if (given == expected)
        return true;
    PyErr_Format(PyExc_TypeError, "takes %zd arguments, not %zd", expected, given);
    return false;
}

/* Every argument that is a number fits into an int, or is a limit that is as good as the largest one. */
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

/* A frame whose memory stays where it is until `let_go`. */
struct held {
    const void *data;
    Py_ssize_t size;
    PyObject *owner;  /* of bytes */
    Py_buffer buffer; /* of anything else, if owner is NULL */
};

/*
 * Forgets the exception of a frame that is handed back: Python meets it again. That of a signal handler, which may have
 * run in a buffer that is written in Python, it would not: the signal is raised again.
 */
static inline void hand_back(void)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        PyErr_SetInterrupt();
    PyErr_Clear();
}

/* False for what is no plain contiguous buffer. */
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

/* The same of an item of a sequence. */
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
