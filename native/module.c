/*
 * aiotuntap._native: the packet path, for the stable ABI of CPython 3.11. It is optional. For arguments that it does not
 * handle it returns None or LOOK: Python functions of the same names then handle them and raise the errors.
 *
 * Nothing waits here: descriptors are non-blocking. The GIL is held all the time: batches are small, and releasing it
 * would cost more. While one of the module's own buffers is in use, no Python code runs, or the buffer is not in the
 * state, where that code would find it.
 */
#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef SOURCES
#error "setup.py defines SOURCES: the SHA-256 of the files in this folder"
#endif

/* -- reading ------------------------------------------------------------------------------------------------------- */

/*
 * Frames that were read must not be lost for lack of memory. A large frame is read into the object that is returned,
 * which also saves a copy; the object then has up to twice the memory that it needs. Small frames are all read first, and
 * then their objects are made: this saves 100 ns for each, compared with making objects between system calls. A reserve
 * guarantees the memory for these objects.
 */

/* Returns one frame, or NULL and an errno. It never sets an exception. */
static PyObject *read_frame(struct state *state, int fd, int *error)
{
    PyObject *frame;
    ssize_t size;
    char *to;

    if (!state->place && !(state->place = PyBytes_FromStringAndSize(NULL, READ_SIZE))) {
        PyErr_Clear();
        *error = ENOMEM;
        return NULL;
    }
    to = PyBytes_AsString(state->place);
    size = read(fd, to, READ_SIZE);
    if (size < 0) {
        *error = errno;
        return NULL;
    }
    state->is_large = size >= LARGE;
    if (!state->is_large) {
        frame = PyBytes_FromStringAndSize(to, size);
        if (frame)
            return frame;
        PyErr_Clear();
    }
    frame = state->place;
    state->place = NULL;
    to[size] = '\0'; /* bytes objects always end with a zero byte */
    Py_SET_SIZE((PyVarObject *)frame, size);
    return frame;
}

struct batch {
    PyObject *frames; /* a list */
    Py_ssize_t count, limit, bytes, enough;
    int error;
};

static bool goes_on(const struct batch *batch)
{
    return !batch->error && batch->count < batch->limit && batch->bytes < batch->enough;
}

static void read_large(struct state *state, int fd, struct batch *batch)
{
    PyObject *frame;

    if (PyList_Append(batch->frames, Py_None) < 0) { /* allocate the place in the list before reading the frame */
        PyErr_Clear();
        batch->error = ENOMEM;
        return;
    }
    frame = read_frame(state, fd, &batch->error);
    if (frame) {
        batch->bytes += PyBytes_Size(frame);
        PyList_SetItem(batch->frames, batch->count++, frame);
    } else {
        PyList_SetSlice(batch->frames, batch->count, batch->count + 1, NULL);
    }
}

static bool append_copy(struct state *state, PyObject *list, const char *data, Py_ssize_t size)
{
    for (;;) {
        PyObject *frame = PyBytes_FromStringAndSize(data, size);
        bool is_appended = frame && PyList_Append(list, frame) == 0;

        Py_XDECREF(frame);
        if (is_appended)
            return true;
        PyErr_Clear();
        if (!state->reserve)
            return false;
        free(state->reserve);
        state->reserve = NULL;
    }
}

/* Reads until the arena has no room for another frame, or a large one came. */
static void read_small(struct state *state, int fd, struct batch *batch)
{
    Py_ssize_t sizes[MOST_IN_BATCH], count = 0, used = 0;

    if (!state->arena)
        state->arena = malloc(ARENA);
    if (!state->reserve)
        state->reserve = malloc(RESERVE);
    if (!state->arena || !state->reserve)
        batch->error = ENOMEM;
    while (goes_on(batch) && used <= ARENA - READ_SIZE && !state->is_large) {
        ssize_t size = read(fd, state->arena + used, READ_SIZE);

        if (size < 0) {
            batch->error = errno;
            break;
        }
        state->is_large = size >= LARGE;
        sizes[count++] = size;
        used += size;
        batch->count++;
        batch->bytes += size;
    }
    used = 0;
    for (Py_ssize_t i = 0; i < count; used += sizes[i++])
        if (!append_copy(state, batch->frames, state->arena + used, sizes[i])) {
            batch->error = ENOMEM; /* another thread has used the freed reserve */
            break;
        }
}

static PyObject *read_batch(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    struct state *state = PyModule_GetState(module);
    struct batch batch = {0};
    PyObject *answer;
    int fd, limit, enough;

    if (!count_is(given, 3) || !int_of(args[0], &fd) || !int_of(args[1], &limit) || !int_of(args[2], &enough))
        return NULL;
    batch.limit = limit < MOST_IN_BATCH ? limit : MOST_IN_BATCH;
    batch.enough = enough;
    /* The objects of the answer are made before a frame is read. */
    if (!(answer = PyTuple_New(2)))
        return NULL;
    if (!(batch.frames = PyList_New(0))) {
        Py_DECREF(answer);
        return NULL;
    }
    while (goes_on(&batch)) {
        if (state->is_large)
            read_large(state, fd, &batch);
        else
            read_small(state, fd, &batch);
    }
    PyTuple_SetItem(answer, 0, batch.frames);
    PyTuple_SetItem(answer, 1, PyLong_FromLong(batch.error)); /* small integers always exist: no allocation */
    return answer;
}

static PyObject *read_one(PyObject *module, PyObject *argument)
{
    struct state *state = PyModule_GetState(module);
    int fd, error = 0;
    PyObject *frame;

    if (!int_of(argument, &fd))
        return NULL;
    frame = read_frame(state, fd, &error);
    return frame ? frame : PyLong_FromLong(error);
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

static int write_held(int fd, int largest, const struct held *held)
{
    if (held->size < 1 || held->size > largest)
        return LOOK;
    return write(fd, held->data, (size_t)held->size) < 0 ? errno : 0;
}

static PyObject *write_batch(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    int fd, largest, most, error = 0;
    Py_ssize_t start, size, count = 0;
    struct held held;

    (void)module;
    if (!count_is(given, 5) || !int_of(args[0], &fd) || !int_of(args[1], &largest) || !int_of(args[3], &most))
        return NULL;
    start = PyLong_AsSsize_t(args[2]);
    if ((start == -1 && PyErr_Occurred()) || (size = PySequence_Size(args[4])) < 0)
        return NULL;
    if (start < 0) {
        PyErr_SetString(PyExc_TypeError, "start must be at least 0");
        return NULL;
    }
    if (most > MOST_IN_BATCH)
        most = MOST_IN_BATCH;
    for (; count < most && count < size - start && !error; count += !error) {
        if (hold_item(args[4], start + count, &held)) {
            error = write_held(fd, largest, &held);
            let_go(&held);
        } else {
            error = LOOK;
        }
    }
    return Py_BuildValue("(ni)", count, error);
}

static PyObject *write_one(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    int fd, largest, error = LOOK;
    unsigned long thread;
    struct held held;

    (void)module;
    if (!count_is(given, 4) || !int_of(args[0], &fd) || !int_of(args[1], &largest))
        return NULL;
    thread = PyLong_AsUnsignedLong(args[2]);
    if (thread == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    if (thread != PyThread_get_thread_ident())
        return PyLong_FromLong(WRONG_THREAD);
    if (PyBytes_CheckExact(args[3])) { /* the caller has a reference */
        held.data = PyBytes_AsString(args[3]);
        held.size = PyBytes_Size(args[3]);
        error = write_held(fd, largest, &held);
    } else if (hold(args[3], &held)) {
        error = write_held(fd, largest, &held);
        let_go(&held);
    }
    return PyLong_FromLong(error);
}

/* -- segmenting and merging ---------------------------------------------------------------------------------------- */

static PyObject *new_bytes(uint32_t size, uint8_t **data)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);

    if (bytes)
        *data = (uint8_t *)PyBytes_AsString(bytes);
    return bytes;
}

static PyObject *cut_all(const struct cut *cut)
{
    PyObject *list = PyList_New((Py_ssize_t)cut->count);

    for (uint32_t i = 0; list && i < cut->count; i++) {
        uint8_t *to;
        PyObject *bytes = new_bytes(cut_size(cut, i), &to);

        if (!bytes) {
            Py_CLEAR(list);
            break;
        }
        cut_write(cut, i, to);
        PyList_SetItem(list, (Py_ssize_t)i, bytes);
    }
    return list;
}

static PyObject *segment(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    int tap, header_size;
    PyObject *list = NULL;
    struct held held;
    struct cut cut;

    (void)module;
    if (!count_is(given, 3) || (tap = PyObject_IsTrue(args[1])) < 0 || !int_of(args[2], &header_size))
        return NULL;
    if (!is_header_size(header_size) || !hold(args[0], &held))
        Py_RETURN_NONE;
    if (held.size <= UINT32_MAX && cut_prepare(&cut, held.data, (uint32_t)held.size, tap, (uint32_t)header_size))
        list = cut_all(&cut);
    else
        list = Py_NewRef(Py_None);
    let_go(&held);
    return list;
}

/* A copy of a frame as bytes. NULL if it is not a contiguous buffer, or with an exception. */
static PyObject *copy_of(PyObject *frame)
{
    PyObject *copy;
    struct held held;

    if (!hold(frame, &held))
        return NULL;
    copy = PyBytes_FromStringAndSize(held.data, held.size);
    let_go(&held);
    return copy;
}

/* Moves the frames into a plan, which owns them. False, perhaps with an exception, if a frame is not taken. */
static bool take_frames(struct plan *plan, PyObject *frames)
{
    for (uint32_t i = 0; i < plan->frame_count; i++) {
        PyObject *frame = PySequence_GetItem(frames, (Py_ssize_t)i);
        Py_ssize_t size;

        if (!frame) {
            hand_back();
            return false;
        }
        if (!PyBytes_CheckExact(frame)) {
            PyObject *copy = copy_of(frame);

            Py_DECREF(frame);
            if (!(frame = copy))
                return false;
        }
        plan->frames[i] = (struct frame){(const uint8_t *)PyBytes_AsString(frame), 0, frame};
        size = PyBytes_Size(frame);
        if (size > INT32_MAX) /* behind its header, too, its size must fit into 32 bits */
            return false;
        plan->frames[i].size = (uint32_t)size;
    }
    return true;
}

static PyObject *build_run(const struct plan *plan, const struct run *run, uint32_t header_size)
{
    uint8_t *to;
    PyObject *bytes = new_bytes(run_size(plan, run, header_size), &to);

    if (bytes)
        run_write(plan, run, header_size, to);
    return bytes;
}

/* The frame, the indexes of the plain frames in it, and the offload that it requires. */
static PyObject *describe_run(const struct plan *plan, const struct run *run, uint32_t header_size)
{
    PyObject *answer = PyTuple_New(3), *bytes = build_run(plan, run, header_size);
    PyObject *indexes = PyList_New((Py_ssize_t)run->count);
    PyObject *offload = PyLong_FromLong(run->count > 1 ? run->offload : 0);
    uint32_t index = run->first;
    bool failed = !answer || !bytes || !indexes || !offload;

    for (uint32_t i = 0; !failed && i < run->count; i++, index = plan->next[index]) {
        PyObject *number = PyLong_FromLong((long)index);

        failed = !number || PyList_SetItem(indexes, (Py_ssize_t)i, number) < 0;
    }
    if (failed) {
        Py_XDECREF(answer);
        Py_XDECREF(bytes);
        Py_XDECREF(indexes);
        Py_XDECREF(offload);
        return NULL;
    }
    PyTuple_SetItem(answer, 0, bytes);
    PyTuple_SetItem(answer, 1, indexes);
    PyTuple_SetItem(answer, 2, offload);
    return answer;
}

typedef PyObject *build_function(const struct plan *, const struct run *, uint32_t);

static PyObject *build_runs(const struct plan *plan, uint32_t header_size, build_function *build)
{
    PyObject *list = PyList_New((Py_ssize_t)plan->run_count);

    for (uint32_t i = 0; list && i < plan->run_count; i++) {
        PyObject *built = build(plan, &plan->runs[i], header_size);

        if (built)
            PyList_SetItem(list, (Py_ssize_t)i, built);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *merge_with(PyObject *module, PyObject *const *args, Py_ssize_t given, build_function *build)
{
    const struct state *state = PyModule_GetState(module);
    int tap, offload, header_size;
    PyObject *list = NULL;
    Py_ssize_t size;
    struct plan *plan;

    if (!count_is(given, 4) || (tap = PyObject_IsTrue(args[1])) < 0 || !int_of(args[2], &offload) ||
        !int_of(args[3], &header_size) || (size = PySequence_Size(args[0])) < 0)
        return NULL;
    if (!is_header_size(header_size) || size > MOST_FRAMES)
        Py_RETURN_NONE;
    if (!(plan = plan_new((uint32_t)size)))
        return PyErr_NoMemory();
    if (take_frames(plan, args[0])) {
        plan_make(plan, tap, (unsigned)offload, &state->key);
        list = build_runs(plan, (uint32_t)header_size, build);
    } else if (!PyErr_Occurred()) {
        list = Py_NewRef(Py_None);
    }
    for (uint32_t i = 0; i < plan->frame_count; i++)
        Py_XDECREF((PyObject *)plan->frames[i].owner);
    plan_free(plan);
    return list;
}

static PyObject *coalesce(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    return merge_with(module, args, given, build_run);
}

static PyObject *merge(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    return merge_with(module, args, given, describe_run);
}

/* -- the module ---------------------------------------------------------------------------------------------------- */

static int execute(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    PyObject *os = PyImport_ImportModule("os");
    PyObject *random = os ? PyObject_CallMethod(os, "urandom", "n", (Py_ssize_t)sizeof state->key) : NULL;
    int result = -1;

    if (random && PyBytes_Size(random) == (Py_ssize_t)sizeof state->key) {
        memcpy(&state->key, PyBytes_AsString(random), sizeof state->key);
        result = PyModule_AddStringConstant(module, "SOURCES", SOURCES);
    }
    Py_XDECREF(random);
    Py_XDECREF(os);
    return result;
}

static void module_free(void *module)
{
    struct state *state = PyModule_GetState(module);

    if (!state)
        return;
    Py_CLEAR(state->place);
    free(state->arena);
    free(state->reserve);
}

/* All methods in the table are cast to PyCFunction; their flags tell their real type. */
#define FAST(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    FAST(read_batch), {"read_one", read_one, METH_O, NULL}, FAST(write_batch),     FAST(write_one),
    FAST(segment),    FAST(coalesce),                       FAST(merge),           FAST(receive_batch),
    FAST(send_batch), {NULL, NULL, 0, NULL},
};

/*
 * Py_mod_multiple_interpreters is new in 3.12 and not in the limited API of 3.11, and 3.11 refuses modules with unknown
 * slots. Free-threading is not declared, because this module relies on the GIL.
 */
#define MULTIPLE_INTERPRETERS 3
#define PER_INTERPRETER_GIL ((void *)2)

static PyModuleDef_Slot slots_of_311[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    {MULTIPLE_INTERPRETERS, PER_INTERPRETER_GIL},
    {0, NULL},
};

#define DEFINITION(slots_of_version)                                                                                   \
    {                                                                                                                  \
        PyModuleDef_HEAD_INIT, .m_name = "aiotuntap._native", .m_size = sizeof(struct state), .m_methods = methods,    \
        .m_slots = (slots_of_version), .m_free = module_free,                                                          \
    }

static PyModuleDef definition_of_311 = DEFINITION(slots_of_311);
static PyModuleDef definition = DEFINITION(slots);

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(Py_Version >= 0x030c0000 ? &definition : &definition_of_311);
}
