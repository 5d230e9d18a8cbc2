/* One look at an optimizer of torch: whether it holds what it held at the step before, and where its gradients lie now.
 *
 * It asks the tensors through a table of functions that torch hands out, or through Python, so that nothing of torch is
 * built in. What it compares with is a tuple that
 * optrace/recorder/steady.py makes; the order of its members is written down there. Whatever is not as known, or
 * raises, is "different": the caller then goes the long way, which tells what it is.
 */

static PyObject *word_params, *word_data_ptr, *word_is_contiguous, *word_numel, *word_requires_grad,
    *word_is_leaf, *word_grad, *word_dtype, *word_layout, *word_is_cpu, *word_is_neg;

static int intern_words(void)
{
    struct {
        PyObject **word;
        const char *text;
    } words[] = {
        {&word_params, "params"},
        {&word_data_ptr, "data_ptr"},
        {&word_is_contiguous, "is_contiguous"},
        {&word_numel, "numel"},
        {&word_requires_grad, "requires_grad"},
        {&word_is_leaf, "is_leaf"},
        {&word_grad, "grad"},
        {&word_dtype, "dtype"},
        {&word_layout, "layout"},
        {&word_is_cpu, "is_cpu"},
        {&word_is_neg, "is_neg"},
    };
    for (size_t k = 0; k < sizeof words / sizeof *words; k++)
        if (!*words[k].word && !(*words[k].word = PyUnicode_InternFromString(words[k].text)))
            return -1;
    return 0;
}

static int is_true(PyObject *answer)
{
    const int result = answer == Py_True;
    Py_XDECREF(answer);
    return result;
}

static int has(PyObject *tensor, PyObject *attribute)
{
    return is_true(PyObject_GetAttr(tensor, attribute));
}

static int says(PyObject *tensor, PyObject *method)
{
    return is_true(PyObject_CallMethodObjArgs(tensor, method, NULL));
}

static int attribute_is(PyObject *tensor, PyObject *attribute, PyObject *wanted)
{
    PyObject *found = PyObject_GetAttr(tensor, attribute);
    Py_XDECREF(found); /* dtypes and layouts live for ever, and so does a bool */
    return found == wanted;
}

/* A number that the tensor gives, or -1. */
static long long ask(PyObject *tensor, PyObject *method)
{
    PyObject *answer = PyObject_CallMethodObjArgs(tensor, method, NULL);
    const long long number = answer ? (long long)PyLong_AsUnsignedLongLong(answer) : -1;
    Py_XDECREF(answer);
    return number;
}

static long long number_at(PyObject *tuple, Py_ssize_t place)
{
    return (long long)PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, place));
}

/* What a tensor is held against: torch.Tensor, torch.nn.Parameter, torch.strided, and the exchange table or NULL. */
typedef struct {
    PyObject *tensor, *parameter, *layout;
    const Exchange *table;
} Plain;

static Plain plain_in(PyObject *members)
{
    return (Plain){PyTuple_GetItem(members, 0), PyTuple_GetItem(members, 1), PyTuple_GetItem(members, 2),
                   exchange_in(PyTuple_GetItem(members, 3))};
}

static int is_plain_type(PyObject *tensor, const Plain *plain)
{
    PyObject *kind = (PyObject *)Py_TYPE(tensor);
    return kind == plain->tensor || kind == plain->parameter;
}

/* Whether `tensor` is the object behind a weak reference, with as many values where they were: (ref, address, numel). */
static int is_known(PyObject *tensor, PyObject *mark, const Plain *plain)
{
    if (PyWeakref_GetObject(PyTuple_GetItem(mark, 0)) != tensor)
        return 0;
    const long long address = number_at(mark, 1), numel = number_at(mark, 2);
    long long found = -1;
    if (plain->table && is_plain_type(tensor, plain))
        return exchanged_lies_in_order(plain->table, tensor, numel, -1, &found) && found == address;
    return ask(tensor, word_data_ptr) == address && says(tensor, word_is_contiguous) && ask(tensor, word_numel) == numel;
}

/* Where the values of a gradient lie, if it is as `wanted`: (dtype, numel, kind of DLPack); else -1. */
static long long address_in_order(PyObject *grad, PyObject *wanted, const Plain *plain)
{
    if (!is_plain_type(grad, plain))
        return -1;
    const long long numel = number_at(wanted, 1);
    long long address = -1;
    if (plain->table) {
        if (!exchanged_lies_in_order(plain->table, grad, numel, number_at(wanted, 2), &address))
            return -1;
    } else if (attribute_is(grad, word_dtype, PyTuple_GetItem(wanted, 0)) &&
               attribute_is(grad, word_layout, plain->layout) && has(grad, word_is_cpu) &&
               ask(grad, word_numel) == numel && says(grad, word_is_contiguous)) {
        address = ask(grad, word_data_ptr);
    }
    return numel == 1 && address != -1 && says(grad, word_is_neg) ? -1 : address;
}

/* The gradient of a parameter, None as `wanted` where it had none. Its address, 0 where it has none, or -1. */
static long long address_of_gradient(PyObject *param, PyObject *wanted, const Plain *plain)
{
    if (!has(param, word_is_leaf))
        return -1;
    PyObject *grad = PyObject_GetAttr(param, word_grad);
    if (!grad)
        return -1;
    long long address;
    if (grad == Py_None || wanted == Py_None)
        address = grad == wanted ? 0 : -1;
    else
        address = address_in_order(grad, wanted, plain);
    Py_DECREF(grad);
    return address;
}

/* Whether a parameter is known; with `jobs` also its flag, and its gradient, whose address goes to the next job. */
static int param_is_known(PyObject *param, PyObject *entry, const Plain *plain, Job *jobs, Py_ssize_t n_jobs,
                          Py_ssize_t *job)
{
    PyObject *mark = PyTuple_GetItem(entry, 0);
    if (PyTuple_Size(entry) == 1) /* not recorded */
        return PyWeakref_GetObject(mark) == param;
    if (!is_known(param, mark, plain))
        return 0;
    if (!jobs)
        return 1;
    if (!attribute_is(param, word_requires_grad, PyTuple_GetItem(entry, 1)))
        return 0;
    PyObject *gradient = PyTuple_GetItem(entry, 2);
    if (gradient == Py_False) /* not wanted */
        return 1;
    const long long address = address_of_gradient(param, gradient, plain);
    if (address == -1 || *job >= n_jobs)
        return 0;
    jobs[(*job)++].a = (uint64_t)address;
    return 1;
}

/* Whether two options are the same: one object of a type that cannot change, or equal bit for bit. */
static int same_option(PyObject *one, PyObject *other)
{
    if (one == other)
        return 1;
    if (Py_TYPE(one) != &PyFloat_Type || Py_TYPE(other) != &PyFloat_Type)
        return 0;
    const double a = PyFloat_AsDouble(one), b = PyFloat_AsDouble(other);
    return !memcmp(&a, &b, sizeof a);
}

/* -1: other keys, or values that are no floats; 0: other floats, which are `known` from now on; 1: the same.
 *
 * `known` is a list of key and value in turn, no value (...) for what is no option. */
static int compare_options(PyObject *group, PyObject *known)
{
    PyObject *key, *value;
    Py_ssize_t place = 0, k = 0;
    int same = 1;
    while (PyDict_Next(group, &place, &key, &value)) {
        if (k >= PyList_Size(known) || key != PyList_GetItem(known, k))
            return -1;
        PyObject *before = PyList_GetItem(known, k + 1);
        if (before != Py_Ellipsis && !same_option(value, before)) {
            if (Py_TYPE(value) != &PyFloat_Type || Py_TYPE(before) != &PyFloat_Type ||
                PyList_SetItem(known, k + 1, Py_NewRef(value)) < 0)
                return -1;
            same = 0;
        }
        k += 2;
    }
    return k == PyList_Size(known) ? same : -1;
}

static int state_is_known(PyObject *state, PyObject *known, const Plain *plain)
{
    PyObject *param, *entry, *key, *value;
    Py_ssize_t place = 0, k = 0;
    if (!PyDict_Check(state))
        return 0;
    while (PyDict_Next(state, &place, &param, &entry)) {
        if (k >= PyTuple_Size(known))
            return 0;
        PyObject *wanted = PyTuple_GetItem(known, k++);
        if (PyWeakref_GetObject(PyTuple_GetItem(wanted, 0)) != param)
            return 0;
        if (PyTuple_Size(wanted) == 1) /* of a parameter that is not recorded */
            continue;
        Py_ssize_t inner = 0, m = 1;
        if (!PyDict_CheckExact(entry))
            return 0;
        while (PyDict_Next(entry, &inner, &key, &value)) {
            if (m >= PyTuple_Size(wanted) || key != PyTuple_GetItem(wanted, m) ||
                !is_known(value, PyTuple_GetItem(wanted, m + 1), plain))
                return 0;
            m += 2;
        }
        if (m != PyTuple_Size(wanted))
            return 0;
    }
    return k == PyTuple_Size(known);
}

/* -1: other parameters or keys; 0: the same but for values of options; 1: the same. */
static int compare_group(PyObject *group, PyObject *known, const Plain *plain, Job *jobs, Py_ssize_t n_jobs,
                         Py_ssize_t *job)
{
    PyObject *entries = PyTuple_GetItem(known, 0);
    PyObject *params = PyDict_CheckExact(group) ? PyDict_GetItemWithError(group, word_params) : NULL;
    if (!params || !PyList_CheckExact(params) || PyList_Size(params) != PyTuple_Size(entries))
        return -1;
    int same = 1;
    Py_INCREF(params); /* asking a tensor may let other threads in */
    for (Py_ssize_t p = 0; same && p < PyTuple_Size(entries); p++) {
        PyObject *param = PyList_GetItem(params, p);
        Py_XINCREF(param);
        same = param && param_is_known(param, PyTuple_GetItem(entries, p), plain, jobs, n_jobs, job);
        Py_XDECREF(param);
    }
    Py_DECREF(params);
    return same ? compare_options(group, PyTuple_GetItem(known, 1)) : -1;
}

/* 0: different; 1: the same but for values of options; 2: the same. */
static int compare(PyObject *known, PyObject *groups, PyObject *state, Job *jobs, Py_ssize_t n_jobs)
{
    PyObject *wanted = PyTuple_GetItem(known, 0);
    const Plain held_against = plain_in(PyTuple_GetItem(known, 2)), *plain = &held_against;
    int found = 2;
    Py_ssize_t job = 0;
    if (!PyList_CheckExact(groups) || PyList_Size(groups) != PyTuple_Size(wanted))
        return 0;
    for (Py_ssize_t g = 0; g < PyTuple_Size(wanted); g++) {
        PyObject *group = PyList_GetItem(groups, g);
        if (!group)
            return 0;
        Py_INCREF(group);
        const int same = compare_group(group, PyTuple_GetItem(wanted, g), plain, jobs, n_jobs, &job);
        Py_DECREF(group);
        if (same < 0)
            return 0;
        if (!same)
            found = 1;
    }
    PyObject *entries = PyTuple_GetItem(known, 1); /* ... where no state is recorded */
    return entries == Py_Ellipsis || state_is_known(state, entries, plain) ? found : 0;
}

/* The same of Python's objects, the jobs None or an array; whatever raises is "different". -1: they are no such. */
static int look_at(PyObject *known, PyObject *groups, PyObject *state, PyObject *of_jobs)
{
    Py_buffer jobs = {0};
    if (!PyTuple_CheckExact(known) || PyTuple_Size(known) != 3) {
        PyErr_SetString(PyExc_TypeError, "what is known of an optimizer is a tuple of three");
        return -1;
    }
    if (of_jobs != Py_None && PyObject_GetBuffer(of_jobs, &jobs, PyBUF_WRITABLE) < 0)
        return -1;
    const int found = compare(known, groups, state, jobs.buf, jobs.len / (Py_ssize_t)sizeof(Job));
    if (jobs.obj)
        PyBuffer_Release(&jobs);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return found;
}
