/* A look at an optimizer and, where it is as it was, the measuring that its plans ask for: one call before the rule and
 * one after it (see steady.py). */

/* Whether `count` rows of one array have the fingerprints of as many of the other. */
static int same_fingerprints(PyObject *one, Py_ssize_t first, PyObject *other, Py_ssize_t from, Py_ssize_t count)
{
    Py_buffer a, b;
    int same = 0;
    if (PyObject_GetBuffer(one, &a, PyBUF_SIMPLE) < 0)
        return 0;
    if (PyObject_GetBuffer(other, &b, PyBUF_SIMPLE) == 0) {
        const Row *left = (const Row *)a.buf + first, *right = (const Row *)b.buf + from;
        same = first >= 0 && from >= 0 && count >= 0 && first + count <= a.len / (Py_ssize_t)sizeof(Row) &&
               from + count <= b.len / (Py_ssize_t)sizeof(Row);
        for (Py_ssize_t i = 0; same && i < count; i++)
            same = left[i].fingerprint == right[i].fingerprint;
        PyBuffer_Release(&b);
    }
    PyBuffer_Release(&a);
    return same;
}

/* Copies the first `count` rows; -1 with an error set. */
static int copy_rows(PyObject *to, PyObject *from, Py_ssize_t count)
{
    Py_buffer a, b;
    int fits = 0;
    if (PyObject_GetBuffer(to, &a, PyBUF_WRITABLE) < 0)
        return -1;
    if (PyObject_GetBuffer(from, &b, PyBUF_SIMPLE) == 0) {
        fits = count >= 0 && count <= a.len / (Py_ssize_t)sizeof(Row) && count <= b.len / (Py_ssize_t)sizeof(Row);
        if (fits)
            memcpy(a.buf, b.buf, (size_t)count * sizeof(Row));
        PyBuffer_Release(&b);
    }
    PyBuffer_Release(&a);
    if (!fits && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "more rows than there are");
    return fits ? 0 : -1;
}

/* What a look finds; where it is not "different", it has been measured, and values have not changed since the rows
 * `after` were. */
static PyObject *before_again(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    if (n != 10) {
        PyErr_SetString(PyExc_TypeError, "before_again(known, groups, state, threads, jobs, rows, ...)");
        return NULL;
    }
    const long threads = PyLong_AsLong(arguments[3]);
    const Py_ssize_t first = PyLong_AsSsize_t(arguments[6]), count = PyLong_AsSsize_t(arguments[7]);
    const Py_ssize_t first_after = PyLong_AsSsize_t(arguments[9]);
    if (PyErr_Occurred())
        return NULL;
    int found = look_at(arguments[0], arguments[1], arguments[2], arguments[4]);
    if (found > 0) {
        if (measure_arrays(arguments[4], arguments[5], threads) < 0)
            return NULL;
        if (!same_fingerprints(arguments[5], first, arguments[8], first_after, count))
            found = 0;
    }
    if (found < 0 || PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(found);
}

/* Whether all is the same after the rule; then it is measured, and the rows of the gradients come from before it. */
static PyObject *after_again(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    if (n != 8) {
        PyErr_SetString(PyExc_TypeError, "after_again(known, groups, state, threads, jobs, rows, before, count)");
        return NULL;
    }
    const long threads = PyLong_AsLong(arguments[3]);
    const Py_ssize_t count = PyLong_AsSsize_t(arguments[7]);
    if (PyErr_Occurred())
        return NULL;
    const int found = look_at(arguments[0], arguments[1], arguments[2], Py_None);
    if (found < 0)
        return NULL;
    if (found == 2 && (measure_arrays(arguments[4], arguments[5], threads) < 0 ||
                       copy_rows(arguments[5], arguments[6], count) < 0))
        return NULL;
    return Py_NewRef(found == 2 ? Py_True : Py_False);
}
