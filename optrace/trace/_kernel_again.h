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
 * `after` were. `plans`: jobs, rows, first, count, after, first_after. -1 with an error set. */
static int measure_before(PyObject *known, PyObject *groups, PyObject *state, long threads, PyObject *plans)
{
    if (!PyTuple_CheckExact(plans) || PyTuple_Size(plans) != 6) {
        PyErr_SetString(PyExc_TypeError, "the plans before the rule are (jobs, rows, first, count, after, first_after)");
        return -1;
    }
    PyObject *jobs = PyTuple_GetItem(plans, 0), *rows = PyTuple_GetItem(plans, 1);
    const Py_ssize_t first = PyLong_AsSsize_t(PyTuple_GetItem(plans, 2));
    const Py_ssize_t count = PyLong_AsSsize_t(PyTuple_GetItem(plans, 3));
    const Py_ssize_t first_after = PyLong_AsSsize_t(PyTuple_GetItem(plans, 5));
    if (PyErr_Occurred())
        return -1;
    const int found = look_at(known, groups, state, jobs);
    if (found <= 0)
        return found;
    if (measure_arrays(jobs, rows, threads) < 0)
        return -1;
    const int same = same_fingerprints(rows, first, PyTuple_GetItem(plans, 4), first_after, count);
    return PyErr_Occurred() ? -1 : same ? found : 0;
}

/* Whether all is the same after the rule; then it is measured, and the rows of the gradients come from before it.
 * `plans`: jobs, rows, before, count. -1 with an error set. */
static int measure_after(PyObject *known, PyObject *groups, PyObject *state, long threads, PyObject *plans)
{
    if (!PyTuple_CheckExact(plans) || PyTuple_Size(plans) != 4) {
        PyErr_SetString(PyExc_TypeError, "the plans after the rule are (jobs, rows, before, count)");
        return -1;
    }
    PyObject *rows = PyTuple_GetItem(plans, 1);
    const Py_ssize_t count = PyLong_AsSsize_t(PyTuple_GetItem(plans, 3));
    if (PyErr_Occurred())
        return -1;
    const int found = look_at(known, groups, state, Py_None);
    if (found != 2)
        return found < 0 ? -1 : 0;
    return measure_arrays(PyTuple_GetItem(plans, 0), rows, threads) < 0 ||
                   copy_rows(rows, PyTuple_GetItem(plans, 2), count) < 0
               ? -1
               : 1;
}

static PyObject *before_again(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    if (n != 5) {
        PyErr_SetString(PyExc_TypeError, "before_again(known, groups, state, threads, plans)");
        return NULL;
    }
    const long threads = PyLong_AsLong(arguments[3]);
    const int found =
        PyErr_Occurred() ? -1 : measure_before(arguments[0], arguments[1], arguments[2], threads, arguments[4]);
    return found < 0 ? NULL : PyLong_FromLong(found);
}

static PyObject *after_again(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    if (n != 5) {
        PyErr_SetString(PyExc_TypeError, "after_again(known, groups, state, threads, plans)");
        return NULL;
    }
    const long threads = PyLong_AsLong(arguments[3]);
    const int same =
        PyErr_Occurred() ? -1 : measure_after(arguments[0], arguments[1], arguments[2], threads, arguments[4]);
    return same < 0 ? NULL : Py_NewRef(same ? Py_True : Py_False);
}
