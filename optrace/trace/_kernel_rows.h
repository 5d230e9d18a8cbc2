/* Fills batches that have been laid out before with the numbers of another step (see batches.py). */

static void put(Py_buffer *message, int64_t place, const void *bytes, size_t count)
{
    memcpy((char *)message->buf + place, bytes, count);
}

static int lies_within(const Py_buffer *message, int64_t place, int64_t size)
{
    return place >= 0 && size >= 0 && place <= (int64_t)message->len && size <= (int64_t)message->len - place;
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

enum { STATISTICS = 9 };

typedef struct {
    int64_t step, statistics, stride, sample; /* offsets; from one statistic's column to the next */
} TensorPlaces;

static int fill_columns(Py_buffer *message, const TensorPlaces *at, int64_t step, const Py_buffer *rows)
{
    const int64_t count = (int64_t)(rows->len / (Py_ssize_t)sizeof(Row)), width = count * (int64_t)sizeof(int64_t);
    const char *row = rows->buf;
    if (rows->len % (Py_ssize_t)sizeof(Row) || !lies_within(message, at->step, width) || at->stride < width ||
        at->stride > (int64_t)message->len ||
        !lies_within(message, at->statistics, (STATISTICS - 1) * at->stride + width) ||
        !lies_within(message, at->sample, SAMPLE * width)) {
        PyErr_SetString(PyExc_ValueError, "the rows do not fit into the batch");
        return -1;
    }
    for (int64_t i = 0; i < count; i++, row += sizeof(Row)) {
        put(message, at->step + 8 * i, &step, 8);
        for (int64_t k = 0; k < STATISTICS; k++)
            put(message, at->statistics + k * at->stride + 8 * i, row + 8 * k, 8);
        put(message, at->sample + SAMPLE * 8 * i, row + STATISTICS * 8, SAMPLE * 8);
    }
    return 0;
}

static PyObject *fill_tensors(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Py_buffer message, places, rows;
    int done = -1;
    (void)module;
    if (n != 4) {
        PyErr_SetString(PyExc_TypeError, "fill_tensors(message, places, step, rows)");
        return NULL;
    }
    const long long step = PyLong_AsLongLong(arguments[2]);
    if ((step == -1 && PyErr_Occurred()) || PyObject_GetBuffer(arguments[0], &message, PyBUF_WRITABLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(arguments[1], &places, PyBUF_SIMPLE) == 0) {
        TensorPlaces at;
        if (places.len != sizeof at) {
            PyErr_SetString(PyExc_ValueError, "places are four 64-bit numbers");
        } else if (PyObject_GetBuffer(arguments[3], &rows, PyBUF_SIMPLE) == 0) {
            memcpy(&at, places.buf, sizeof at);
            done = fill_columns(&message, &at, step, &rows);
            PyBuffer_Release(&rows);
        }
        PyBuffer_Release(&places);
    }
    PyBuffer_Release(&message);
    return done < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

/* Puts the floats of one group into the message, if it has these keys and nothing else has changed.
 *
 * known: key, value and place in turn; a place of -1 where the value is no float, and must be the same object. */
static int fill_options(Py_buffer *message, PyObject *known, PyObject *options)
{
    PyObject *key, *value;
    Py_ssize_t at = 0, k = 0;
    while (PyDict_Next(options, &at, &key, &value)) {
        if (k >= PyTuple_Size(known) || key != PyTuple_GetItem(known, k))
            return 0;
        const long long place = PyLong_AsLongLong(PyTuple_GetItem(known, k + 2));
        if (place < 0) {
            if (value != PyTuple_GetItem(known, k + 1))
                return 0;
        } else {
            if (Py_TYPE(value) != &PyFloat_Type || !lies_within(message, place, 8))
                return 0;
            const double number = PyFloat_AsDouble(value);
            put(message, place, &number, 8);
        }
        k += 3;
    }
    return k == PyTuple_Size(known);
}

/* Whether the options of all groups, (index, options) each, fitted; else the batch is of no use until it is refilled. */
static PyObject *fill_groups(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Py_buffer message;
    (void)module;
    if (n != 3 || !PyTuple_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "fill_groups(message, known, groups)");
        return NULL;
    }
    PyObject *all = arguments[1], *groups = arguments[2];
    int fits = PyList_CheckExact(groups) && PyList_Size(groups) == PyTuple_Size(all);
    if (PyObject_GetBuffer(arguments[0], &message, PyBUF_WRITABLE) < 0)
        return NULL;
    for (Py_ssize_t g = 0; fits && g < PyTuple_Size(all); g++) {
        PyObject *known = PyTuple_GetItem(all, g), *given = PyList_GetItem(groups, g); /* (index, known); the same */
        fits = PyTuple_CheckExact(given) && PyTuple_Size(given) == 2 && PyDict_CheckExact(PyTuple_GetItem(given, 1)) &&
               PyObject_RichCompareBool(PyTuple_GetItem(given, 0), PyTuple_GetItem(known, 0), Py_EQ) == 1 &&
               fill_options(&message, PyTuple_GetItem(known, 1), PyTuple_GetItem(given, 1));
    }
    PyBuffer_Release(&message);
    if (PyErr_Occurred())
        PyErr_Clear(); /* Python's business */
    return Py_NewRef(fits ? Py_True : Py_False);
}

/* ---- steps ----------------------------------------------------------------------------------------------------- */

/* The value of one column: 'd' a float, 'q' an int; 0 if it is of another kind. */
static int number_of(PyObject *value, char code, char bytes[8])
{
    if (code == 'd' && value && Py_TYPE(value) == &PyFloat_Type) {
        const double number = PyFloat_AsDouble(value);
        memcpy(bytes, &number, 8);
        return 1;
    }
    if (code == 'q' && value && Py_TYPE(value) == &PyLong_Type) {
        int beyond = 0;
        const long long number = PyLong_AsLongLongAndOverflow(value, &beyond);
        memcpy(bytes, &number, 8);
        return !beyond;
    }
    return 0;
}

/* Fills a batch of one row if `values` has numbers for just the columns of `fields`, and says whether.
 *
 * fields: name, code ('d', 'q', or '0' where there must be none) and place in turn. */
static int fill_fields(Py_buffer *message, PyObject *fields, PyObject *values)
{
    char bytes[8];
    for (Py_ssize_t k = 0; k + 2 < PyTuple_Size(fields); k += 3) {
        PyObject *value = PyDict_GetItemWithError(values, PyTuple_GetItem(fields, k));
        Py_ssize_t size = 0;
        const char *code = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(fields, k + 1), &size);
        if (!code)
            return 0;
        if (*code == '0') {
            if (value && value != Py_None)
                return 0;
            continue;
        }
        const long long place = PyLong_AsLongLong(PyTuple_GetItem(fields, k + 2));
        if (!number_of(value, *code, bytes) || !lies_within(message, place, 8))
            return 0;
        put(message, place, bytes, 8);
    }
    return 1;
}

static PyObject *fill_step(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Py_buffer message;
    int fits = 0;
    (void)module;
    if (n != 7 || !PyTuple_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "fill_step(message, fields, step_at, optimizer_at, step, optimizer, values)");
        return NULL;
    }
    const long long step_at = PyLong_AsLongLong(arguments[2]), optimizer_at = PyLong_AsLongLong(arguments[3]);
    const long long step = PyLong_AsLongLong(arguments[4]), optimizer = PyLong_AsLongLong(arguments[5]);
    const int32_t index = (int32_t)optimizer;
    if (PyErr_Occurred())
        return NULL;
    if (!PyDict_CheckExact(arguments[6]) || index != optimizer)
        return Py_NewRef(Py_False);
    if (PyObject_GetBuffer(arguments[0], &message, PyBUF_WRITABLE) < 0)
        return NULL;
    fits = lies_within(&message, step_at, 8) && lies_within(&message, optimizer_at, 4) &&
           fill_fields(&message, arguments[1], arguments[6]);
    if (fits) {
        put(&message, step_at, &step, 8);
        put(&message, optimizer_at, &index, 4);
    }
    PyBuffer_Release(&message);
    if (PyErr_Occurred())
        PyErr_Clear();
    return Py_NewRef(fits ? Py_True : Py_False);
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

enum { LONGEST = 256 }; /* texts beyond are padded to other sizes: Python's business */

typedef struct {
    char bytes[LONGEST];
    int length; /* -1: it did not fit, or holds what is not written as it is */
} Text;

static void add(Text *text, const char *bytes, Py_ssize_t count)
{
    if (text->length < 0 || count > LONGEST - text->length) {
        text->length = -1;
    } else {
        memcpy(text->bytes + text->length, bytes, (size_t)count);
        text->length += (int)count;
    }
}

static void add_quoted(Text *text, PyObject *word)
{
    Py_ssize_t count = 0;
    const char *bytes = PyUnicode_AsUTF8AndSize(word, &count);
    int plain = bytes != NULL;
    for (Py_ssize_t i = 0; plain && i < count; i++)
        plain = bytes[i] >= ' ' && bytes[i] <= '~' && bytes[i] != '"' && bytes[i] != '\\';
    if (plain) {
        add(text, "\"", 1);
        add(text, bytes, count);
        add(text, "\"", 1);
    } else {
        text->length = -1;
    }
}

/* A finite float as Python's repr has it, which JSON takes over. */
static void add_float(Text *text, double number)
{
    int kind;
    char *digits = PyOS_double_to_string(number, 'r', 0, Py_DTSF_ADD_DOT_0, &kind);
    if (digits && kind == Py_DTST_FINITE)
        add(text, digits, (Py_ssize_t)strlen(digits));
    else
        text->length = -1;
    PyMem_Free(digits);
}

static void add_integer(Text *text, long long number)
{
    char digits[20], *first = digits + sizeof digits;
    unsigned long long rest = number < 0 ? 0ULL - (unsigned long long)number : (unsigned long long)number;
    do
        *--first = (char)('0' + rest % 10);
    while (rest /= 10);
    if (number < 0)
        *--first = '-';
    add(text, first, digits + sizeof digits - first);
}

static void add_value(Text *text, PyObject *value)
{
    if (value == Py_None) {
        add(text, "null", 4);
    } else if (value == Py_True) {
        add(text, "true", 4);
    } else if (value == Py_False) {
        add(text, "false", 5);
    } else if (Py_TYPE(value) == &PyUnicode_Type) {
        add_quoted(text, value);
    } else if (Py_TYPE(value) == &PyFloat_Type) {
        add_float(text, PyFloat_AsDouble(value));
    } else if (Py_TYPE(value) == &PyLong_Type) {
        int beyond = 0;
        const long long number = PyLong_AsLongLongAndOverflow(value, &beyond);
        if (beyond)
            text->length = -1;
        else
            add_integer(text, number);
    } else {
        text->length = -1;
    }
}

/* The data of an event as JSON, without spaces. */
static void write_data(Text *text, PyObject *data)
{
    PyObject *key, *value;
    Py_ssize_t place = 0;
    text->length = 0;
    add(text, "{", 1);
    while (PyDict_Next(data, &place, &key, &value)) {
        if (text->length > 1)
            add(text, ",", 1);
        if (Py_TYPE(key) == &PyUnicode_Type)
            add_quoted(text, key);
        else
            text->length = -1;
        add(text, ":", 1);
        add_value(text, value);
    }
    add(text, "}", 1);
}

typedef struct {
    int64_t seq, step, optimizer, data; /* offsets */
} EventPlaces;

/* Puts one event at its places, its text padded to `size`; 0 if it is not what the batch was laid out for. */
static int fill_event(Py_buffer *message, const EventPlaces *at, Py_ssize_t number, int64_t text_at, int64_t size,
                      PyObject *kind, PyObject *event)
{
    if (!PyTuple_Check(event) || PyTuple_Size(event) != 5)
        return 0;
    PyObject *own = PyTuple_GetItem(event, 2), *data = PyTuple_GetItem(event, 4);
    if ((own != kind && PyUnicode_Compare(own, kind) != 0) || !PyDict_CheckExact(data))
        return 0;
    Text text;
    write_data(&text, data);
    if (text.length < 0 || ((text.length + 31) & -32) != size)
        return 0;
    const long long seq = PyLong_AsLongLong(PyTuple_GetItem(event, 0));
    const long long step = PyLong_AsLongLong(PyTuple_GetItem(event, 1));
    const long long optimizer = PyLong_AsLongLong(PyTuple_GetItem(event, 3));
    const int32_t index = (int32_t)optimizer;
    if (PyErr_Occurred() || index != optimizer || !lies_within(message, at->seq + 8 * number, 8) ||
        !lies_within(message, at->step + 8 * number, 8) || !lies_within(message, at->optimizer + 4 * number, 4) ||
        !lies_within(message, text_at, size))
        return 0;
    put(message, at->seq + 8 * number, &seq, 8);
    put(message, at->step + 8 * number, &step, 8);
    put(message, at->optimizer + 4 * number, &index, 4);
    put(message, text_at, text.bytes, (size_t)text.length);
    memset((char *)message->buf + text_at + text.length, ' ', (size_t)(size - text.length));
    return 1;
}

static int fill_each(Py_buffer *message, const EventPlaces *at, PyObject *kinds, PyObject *sizes, PyObject *events)
{
    const Py_ssize_t count = PyList_Size(events);
    int64_t text_at = at->data;
    int fits = count == PyTuple_Size(kinds) && count == PyTuple_Size(sizes);
    for (Py_ssize_t i = 0; fits && i < count; i++) {
        const long long size = PyLong_AsLongLong(PyTuple_GetItem(sizes, i));
        fits = fill_event(message, at, i, text_at, size, PyTuple_GetItem(kinds, i), PyList_GetItem(events, i));
        text_at += size;
    }
    return fits;
}

/* Fills the batch if the events are of these kinds and sizes, and says whether; else what it holds is of no use. */
static PyObject *fill_events(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    Py_buffer message, places;
    int fits = 0;
    (void)module;
    if (n != 5 || !PyTuple_CheckExact(arguments[2]) || !PyTuple_CheckExact(arguments[3])) {
        PyErr_SetString(PyExc_TypeError, "fill_events(message, places, kinds, sizes, events)");
        return NULL;
    }
    if (!PyList_CheckExact(arguments[4]))
        return Py_NewRef(Py_False);
    if (PyObject_GetBuffer(arguments[0], &message, PyBUF_WRITABLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(arguments[1], &places, PyBUF_SIMPLE) == 0) {
        EventPlaces at;
        if (places.len == sizeof at) {
            memcpy(&at, places.buf, sizeof at);
            fits = fill_each(&message, &at, arguments[2], arguments[3], arguments[4]);
        }
        PyBuffer_Release(&places);
    }
    PyBuffer_Release(&message);
    if (PyErr_Occurred())
        PyErr_Clear(); /* what is wrong with an event is told by whoever takes it apart in Python */
    return Py_NewRef(fits ? Py_True : Py_False);
}
