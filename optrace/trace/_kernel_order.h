/* Writes a step whose batches are laid out as those of the step before (see standing.py): fills them and puts each into
 * its segment's window, or hands it to one write(2). */

enum { TABLES = 4 };

typedef struct {
    Py_buffer message, place;
    Segment *segment;
    const Window *window; /* NULL: none */
} Batch;

/* The members of an order, one a table: None, or a tuple that begins with a segment and a message. */
enum { OF_GROUPS, OF_TENSORS, OF_STEPS, OF_EVENTS };

static int take_batch(PyObject *part, Batch *batch)
{
    if (!PyTuple_CheckExact(part) || PyTuple_Size(part) < 2) {
        PyErr_SetString(PyExc_TypeError, "a part of an order is None or (segment, message, ...)");
        return -1;
    }
    if (take_segment(PyTuple_GetItem(part, 0), &batch->segment, &batch->place) < 0)
        return -1;
    batch->window = window_of(batch->segment);
    return PyObject_GetBuffer(PyTuple_GetItem(part, 1), &batch->message, PyBUF_WRITABLE);
}

static void leave_batch(Batch *batch)
{
    if (batch->message.obj)
        PyBuffer_Release(&batch->message);
    if (batch->place.obj)
        PyBuffer_Release(&batch->place);
}

/* Whether its segment takes the batch as things are. */
static int is_taken(const Batch *batch, int64_t now)
{
    return batch->segment->descriptor >= 0 &&
           (!batch->window || has_room(batch->window, batch->segment->size, batch->message.len, now));
}

/* (segment, message, place of the steps, rows) */
static int order_groups(PyObject *part, Batch *batch, int64_t step)
{
    const long long place = number_at(part, 2), rows = number_at(part, 3);
    if (PyErr_Occurred() || rows < 0 || rows > (1 << 28) || !lies_within(&batch->message, place, 8 * rows))
        return 0;
    for (int64_t i = 0; i < rows; i++)
        put(&batch->message, place + 8 * i, &step, 8);
    return 1;
}

/* (segment, message, places, rows, present, which were present when it was laid out) */
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

/* (segment, message, fields, place of the step, of the optimizer) */
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

/* (segment, message, places, kinds, sizes) */
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
    off_t at = batch->segment->size;
    while (left) {
        const ssize_t taken = pwrite((int)batch->segment->descriptor, rest, left, at);
        if (taken < 0 && errno == EINTR)
            continue;
        if (taken < 0)
            return errno;
        rest += taken;
        at += taken;
        left -= (size_t)taken;
    }
    return 0;
}

/* Writes the batches in the order of the tables; 0, or what went wrong. */
static int write_batches(const Batch *batches)
{
    int problem = 0;
    for (int table = 0; table < TABLES && !problem; table++) {
        const Batch *batch = &batches[table];
        if (!batch->message.obj)
            continue;
        if (batch->window) {
            put_message(batch->window, batch->segment, batch->message.buf, batch->message.len);
        } else {
            Py_BEGIN_ALLOW_THREADS /* a disk may let us wait */
                problem = write_whole(batch);
            Py_END_ALLOW_THREADS
        }
    }
    return problem;
}

/* What a step that has been written leaves to do: a segment has grown beyond the limit; shifted by a table's number: its
 * next batch had better find a (new) window. */
enum { WRITE_FULL = 2, WRITE_AHEAD = 4 };

static long count_in(const Batch *batches, int64_t limit, int64_t now)
{
    long to_do = 0;
    for (int table = 0; table < TABLES; table++) {
        const Batch *batch = &batches[table];
        if (!batch->message.obj)
            continue;
        Segment *segment = batch->segment;
        segment->size += batch->message.len;
        if (segment->size > limit)
            to_do |= WRITE_FULL;
        if (batch->window) {
            to_do |= has_room(batch->window, segment->size, batch->message.len, now) ? 0 : (long)WRITE_AHEAD << table;
        } else {
            to_do |= now - segment->last <= QUICK && batch->message.len <= SMALL_BATCH ? (long)WRITE_AHEAD << table : 0;
            segment->last = now;
        }
    }
    return to_do;
}

static int fill_order(PyObject *order, Batch *batches, int64_t step, int32_t optimizer, PyObject *values,
                      PyObject *events, int64_t now)
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
                                    : order_events(part, batch, events)) ||
            !is_taken(batch, now))
            return 0;
    }
    return 1;
}

/* 0: the step does not fit, and nothing of it is written; else 1 and what is left to do. -1 with OSError set: some of it
 * was written. */
static long fill_and_write(PyObject *order, long long step, long long optimizer, PyObject *values, PyObject *events,
                           long long limit)
{
    Batch batches[TABLES] = {{{0}, {0}, NULL, NULL}};
    int problem = 0;
    if (PyErr_Occurred())
        return -1;
    const int64_t now = milliseconds();
    long done = (int32_t)optimizer == optimizer &&
                fill_order(order, batches, step, (int32_t)optimizer, values, events, now);
    if (done && !(problem = write_batches(batches)))
        done |= count_in(batches, limit, now);
    for (int table = 0; table < TABLES; table++)
        leave_batch(&batches[table]);
    if (problem) {
        errno = problem;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    PyErr_Clear(); /* what does not fit is taken apart in Python, which tells what it is */
    return done;
}

static PyObject *write_order(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    if (n != 6 || !PyTuple_CheckExact(arguments[0]) || PyTuple_Size(arguments[0]) != TABLES) {
        PyErr_SetString(PyExc_TypeError, "write_order(order, step, optimizer, values, events, limit)");
        return NULL;
    }
    const long done = fill_and_write(arguments[0], PyLong_AsLongLong(arguments[1]), PyLong_AsLongLong(arguments[2]),
                                     arguments[3], arguments[4], PyLong_AsLongLong(arguments[5]));
    return done < 0 ? NULL : PyLong_FromLong(done);
}
