/* Makes an observed call: what is noted before it, the function itself, and what is noted after it, in one call of the
 * kernel (see _kernel_observe.h and recorder/patching.py).
 */

typedef PyObject *(*Noted)(PyObject *pair, PyObject *const *arguments, Py_ssize_t n);

static const struct {
    const char *kind;
    Noted begin, end;
} OBSERVED_KINDS[] = {
    {"zero_grad", begin_zero_grad, end_zero_grad},
    {"scheduler", begin_scheduler, end_scheduler},
    {"backward", begin_backward, end_backward},
};
enum { KINDS = sizeof OBSERVED_KINDS / sizeof *OBSERVED_KINDS };

/* What an observed call holds: the number of its kind; listeners, calls, slow_begin and slow_end; the function;
 * fail(note) or None, for where it raises; failed(error), for errors of the observer. */
enum { C_KIND, C_PAIR, C_RAW, C_FAIL, C_FAILED, OBSERVED_CALL };

/* Hands an error of the observer over; -1 where it is to be raised. */
static int hand_over(PyObject *call)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    PyObject *answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(call, C_FAILED), value, NULL);
    Py_XDECREF(answer);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return answer ? 0 : -1;
}

/* Tells that the function has raised, which goes on unless the observer's own error is to be raised. */
static void tell_raised(PyObject *call, PyObject *note)
{
    PyObject *type, *value, *trace, *fail = PyTuple_GetItem(call, C_FAIL);
    if (fail == Py_None)
        return;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *answer = PyObject_CallFunctionObjArgs(fail, note, NULL);
    if (!answer && hand_over(call) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(trace);
        return;
    }
    Py_XDECREF(answer);
    PyErr_Restore(type, value, trace);
}

/* call(args, kwargs): what the function gives. */
static PyObject *observed_call(PyObject *call, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    const long kind = PyLong_AsLong(PyTuple_GetItem(call, C_KIND));
    PyObject *pair = PyTuple_GetItem(call, C_PAIR), *raw = PyTuple_GetItem(call, C_RAW);
    PyObject *begun = OBSERVED_KINDS[kind].begin(pair, arguments, 2);
    if (begun && (!PyTuple_CheckExact(begun) || PyTuple_Size(begun) != 3)) {
        PyErr_SetString(PyExc_TypeError, "an observer begins with (args, kwargs, note)");
        Py_CLEAR(begun);
    }
    if (!begun && hand_over(call) < 0)
        return NULL;
    PyObject *result = begun ? PyObject_Call(raw, PyTuple_GetItem(begun, 0), PyTuple_GetItem(begun, 1))
                             : PyObject_Call(raw, arguments[0], arguments[1]);
    if (begun && !result) {
        tell_raised(call, PyTuple_GetItem(begun, 2));
    } else if (begun) {
        PyObject *both[] = {PyTuple_GetItem(begun, 2), result};
        PyObject *ended = OBSERVED_KINDS[kind].end(pair, both, 2);
        if (!ended && hand_over(call) < 0)
            Py_CLEAR(result);
        Py_XDECREF(ended);
    }
    Py_XDECREF(begun);
    return result;
}

/* observed(kind, listeners, calls, slow_begin, slow_end, function, fail, failed): call(args, kwargs). */
static PyObject *observed(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static PyMethodDef method = {"observed", (PyCFunction)(void (*)(void))observed_call, METH_FASTCALL, NULL};
    (void)module;
    const char *kind = n == 8 ? PyUnicode_AsUTF8AndSize(arguments[0], NULL) : NULL;
    long which = kind ? KINDS - 1 : -1;
    while (which >= 0 && strcmp(kind, OBSERVED_KINDS[which].kind))
        which--;
    if (which < 0 || !PyList_CheckExact(arguments[1])) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "observed(kind, listeners, calls, slow_begin, slow_end, function, ...)");
        return NULL;
    }
    PyObject *pair = PyTuple_Pack(OBSERVED, arguments[1], arguments[2], arguments[3], arguments[4]);
    PyObject *number = PyLong_FromLong(which), *result = NULL;
    PyObject *call = pair && number
                         ? PyTuple_Pack(OBSERVED_CALL, number, pair, arguments[5], arguments[6], arguments[7])
                         : NULL;
    if (call)
        result = PyCFunction_NewEx(&method, call, NULL);
    Py_XDECREF(call);
    Py_XDECREF(number);
    Py_XDECREF(pair);
    return result;
}
