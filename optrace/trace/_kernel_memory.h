/* same_memory(parts, known): whether pieces of memory, one after the other, hold what is known (see
 * recorder/generators.py). */
static PyObject *same_memory(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    char *known;
    Py_ssize_t left;
    int same = 1;
    (void)module;
    if (n != 2 || !PyTuple_CheckExact(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "same_memory(parts, known)");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(arguments[1], &known, &left) < 0)
        return NULL;
    for (Py_ssize_t k = 0; same && k < PyTuple_Size(arguments[0]); k++) {
        Py_buffer part;
        if (PyObject_GetBuffer(PyTuple_GetItem(arguments[0], k), &part, PyBUF_SIMPLE) < 0)
            return NULL;
        same = part.len <= left && !memcmp(known, part.buf, (size_t)part.len);
        known += part.len;
        left -= part.len;
        PyBuffer_Release(&part);
    }
    return Py_NewRef(same && !left ? Py_True : Py_False);
}
