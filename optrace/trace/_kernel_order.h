/* Writes a step whose batches are laid out as those of the step before (see standing.py): fills them and hands each to
 * one write(2). */

#include <errno.h>
#include <unistd.h>

enum { TABLES = 4 };

typedef struct {
    int fd;
    Py_buffer message;
} Batch;

/* The members of an order, one a table: None, or a tuple that begins with a descriptor and a message. */
enum { OF_GROUPS, OF_TENSORS, OF_STEPS, OF_EVENTS };

static int take_batch(PyObject *part, Batch *batch)
{
    if (!PyTuple_CheckExact(part) || PyTuple_Size(part) < 2) {
        PyErr_SetString(PyExc_TypeError, "a part of an order is None or (descriptor, message, ...)");
        return -1;
    }
    batch->fd = (int)PyLong_AsLong(PyTuple_GetItem(part, 0));
    if (batch->fd == -1 && PyErr_Occurred())
        return -1;
    return PyObject_GetBuffer(PyTuple_GetItem(part, 1), &batch->message, PyBUF_WRITABLE);
}

/* (descriptor, message, place of the steps, rows) */
static int order_groups(PyObject *part, Batch *batch, int64_t step)
{
    const long long place = number_at(part, 2), rows = number_at(part, 3);
    if (PyErr_Occurred() || rows < 0 || rows > (1 << 28) || !lies_within(&batch->message, place, 8 * rows))
        return 0;
    for (int64_t i = 0; i < rows; i++)
        put(&batch->message, place + 8 * i, &step, 8);
    return 1;
}

/* (descriptor, message, places, rows, present, which were present when it was laid out) */
static int order_tensors(PyObject *part, Batch *batch, int64_t step)
{
    Py_buffer places = {0}, rows = {0}, present = {0};
    TensorPlaces at;
    char *there;
    Py_ssize_t size;
    int fits = 0;
    if (PyBytes_AsStringAndSize(PyTuple_GetItem(part, 5), &there, &size) == 0 &&
        PyObject_GetBuffer(PyTuple_GetItem(part, 2), &places, PyBUF_SIMPLE) == 0 &&
        PyObject_GetBuffer(PyTuple_GetItem(part, 3), &rows, PyBUF_SIMPLE) == 0 &&
        PyObject_GetBuffer(PyTuple_GetItem(part, 4), &present, PyBUF_SIMPLE) == 0 && places.len == sizeof at &&
        present.len == size && !memcmp(present.buf, there, (size_t)size)) {
        memcpy(&at, places.buf, sizeof at);
        fits = fill_columns(&batch->message, &at, step, &rows) == 0;
    }
    if (present.obj)
        PyBuffer_Release(&present);
    if (rows.obj)
        PyBuffer_Release(&rows);
    if (places.obj)
        PyBuffer_Release(&places);
    return fits;
}

/* (descriptor, message, fields, place of the step, of the optimizer) */
static int order_steps(PyObject *part, Batch *batch, int64_t step, int32_t optimizer, PyObject *values)
{
    const long long step_at = number_at(part, 3), optimizer_at = number_at(part, 4);
    PyObject *fields = PyTuple_GetItem(part, 2);
    if (PyErr_Occurred() || !PyTuple_CheckExact(fields) || !PyDict_CheckExact(values) ||
        !lies_within(&batch->message, step_at, 8) || !lies_within(&batch->message, optimizer_at, 4) ||
        !fill_fields(&batch->message, fields, values))
        return 0;
    put(&batch->message, step_at, &step, 8);
    put(&batch->message, optimizer_at, &optimizer, 4);
    return 1;
}

/* (descriptor, message, places, kinds, sizes) */
static int order_events(PyObject *part, Batch *batch, PyObject *events)
{
    Py_buffer places;
    PyObject *kinds = PyTuple_GetItem(part, 3), *sizes = PyTuple_GetItem(part, 4);
    int fits = 0;
    if (!kinds || !sizes || !PyTuple_CheckExact(kinds) || !PyTuple_CheckExact(sizes) || !PyList_CheckExact(events) ||
        PyObject_GetBuffer(PyTuple_GetItem(part, 2), &places, PyBUF_SIMPLE) < 0)
        return 0;
    EventPlaces at;
    if (places.len == sizeof at) {
        memcpy(&at, places.buf, sizeof at);
        fits = fill_each(&batch->message, &at, kinds, sizes, events);
    }
    PyBuffer_Release(&places);
    return fits;
}

/* 0, or what went wrong. */
static int write_whole(const Batch *batch)
{
    const char *rest = batch->message.buf;
    size_t left = (size_t)batch->message.len;
    while (left) {
        const ssize_t taken = write(batch->fd, rest, left);
        if (taken < 0 && errno == EINTR)
            continue;
        if (taken < 0)
            return errno;
        rest += taken;
        left -= (size_t)taken;
    }
    return 0;
}

static int fill_order(PyObject *order, Batch *batches, int64_t step, int32_t optimizer, PyObject *values,
                      PyObject *events)
{
    for (int table = 0; table < TABLES; table++) {
        PyObject *part = PyTuple_GetItem(order, table);
        if (part == Py_None)
            continue;
        Batch *batch = &batches[table];
        if (take_batch(part, batch) < 0)
            return 0;
        if (!(table == OF_GROUPS    ? order_groups(part, batch, step)
              : table == OF_TENSORS ? order_tensors(part, batch, step)
              : table == OF_STEPS   ? order_steps(part, batch, step, optimizer, values)
                                    : order_events(part, batch, events)))
            return 0;
    }
    return 1;
}

/* Whether the step fitted and was written; nothing is written of one that does not fit. OSError: some of it was. */
static PyObject *write_order(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Batch batches[TABLES] = {{0}};
    int problem = 0;
    (void)module;
    if (n != 5 || !PyTuple_CheckExact(arguments[0]) || PyTuple_Size(arguments[0]) != TABLES) {
        PyErr_SetString(PyExc_TypeError, "write_order(order, step, optimizer, values, events)");
        return NULL;
    }
    const long long step = PyLong_AsLongLong(arguments[1]), optimizer = PyLong_AsLongLong(arguments[2]);
    if (PyErr_Occurred())
        return NULL;
    const int fits = (int32_t)optimizer == optimizer &&
                     fill_order(arguments[0], batches, step, (int32_t)optimizer, arguments[3], arguments[4]);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS /* a disk may let us wait */
            for (int table = 0; table < TABLES && !problem; table++)
                if (batches[table].message.obj)
                    problem = write_whole(&batches[table]);
        Py_END_ALLOW_THREADS
    }
    for (int table = 0; table < TABLES; table++)
        if (batches[table].message.obj)
            PyBuffer_Release(&batches[table].message);
    if (problem) {
        errno = problem;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (PyErr_Occurred())
        PyErr_Clear(); /* what does not fit is taken apart in Python, which tells what it is */
    return Py_NewRef(fits ? Py_True : Py_False);
}
