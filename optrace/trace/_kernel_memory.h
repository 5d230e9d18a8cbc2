/* Looks whether random generators are as they were, where their memory lies (see recorder/generators.py). */

static PyObject *word_bit_generator, *word_initialized;

static int intern_memory(void)
{
    word_bit_generator = PyUnicode_InternFromString("_bit_generator");
    word_initialized = PyUnicode_InternFromString("_initialized");
    return word_bit_generator && word_initialized ? 0 : -1;
}

/* Whether pieces of memory, one after the other, hold what is known; -1 with an error set. */
static int hold_what_is_known(PyObject *parts, PyObject *bytes)
{
    char *known;
    Py_ssize_t left;
    int same = 1;
    if (!PyTuple_CheckExact(parts) || PyBytes_AsStringAndSize(bytes, &known, &left) < 0)
        return -1;
    for (Py_ssize_t k = 0; same && k < PyTuple_Size(parts); k++) {
        Py_buffer part;
        if (PyObject_GetBuffer(PyTuple_GetItem(parts, k), &part, PyBUF_SIMPLE) < 0)
            return -1;
        same = part.len <= left && !memcmp(known, part.buf, (size_t)part.len);
        known += part.len;
        left -= part.len;
        PyBuffer_Release(&part);
    }
    return same && !left;
}

/* unchanged(last): the last fingerprint of the generators, or None where they have to be looked at anew. */
static PyObject *unchanged(PyObject *module, PyObject *last)
{
    (void)module;
    if (!PyList_CheckExact(last) || PyList_Size(last) != 6)
        return Py_NewRef(Py_None);
    PyObject *cuda = PyList_GetItem(last, 2);
    int same = PyDict_CheckExact(cuda) && PyDict_GetItemWithError(cuda, word_initialized) == Py_False &&
               attribute_is(PyList_GetItem(last, 0), word_bit_generator, PyList_GetItem(last, 1));
    if (same)
        same = hold_what_is_known(PyList_GetItem(last, 3), PyList_GetItem(last, 4));
    if (PyErr_Occurred()) {
        PyErr_Clear(); /* Python will meet it again */
        same = 0;
    }
    return Py_NewRef(same > 0 ? PyList_GetItem(last, 5) : Py_None);
}
