/* Finds living objects by their class, in one go.
 *
 * The collector's list also holds tuples that other threads are just making, and making one fails while somebody else
 * holds it (python/cpython#59313). So no thread may go on before the list is let go: nothing here runs Python code.
 */

static PyObject *living(PyObject *module, PyObject *classes)
{
    (void)module;
    PyObject *collector = PyImport_ImportModule("gc");
    PyObject *found = collector ? PyList_New(0) : NULL;
    PyObject *all = found ? PyObject_CallMethod(collector, "get_objects", NULL) : NULL;
    int wanted = all ? 0 : -1;
    for (Py_ssize_t i = 0; wanted >= 0 && i < PyList_Size(all); i++) {
        PyObject *thing = PyList_GetItem(all, i);
        wanted = PySet_Contains(classes, (PyObject *)Py_TYPE(thing));
        if (wanted > 0)
            wanted = PyList_Append(found, thing);
    }
    Py_XDECREF(all);
    Py_XDECREF(collector);
    if (wanted < 0)
        Py_CLEAR(found);
    return found;
}
