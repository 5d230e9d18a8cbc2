/* Observes the calls that come with every step: zero_grad, backward, a scheduler's step (see recorder/plain_calls.py).
 *
 * A call like most is noted in one C call before it and one after it; these do what the functions of wrappers.py and
 * context.py do for such a call, on the same objects. Whatever is not plain goes to those functions: `slow_begin` and
 * `slow_end`, which take each other's notes and ours.
 */

enum { OBSERVED = 4, WATCHED = 21 };

/* What a pair of functions holds: listeners, the thread's calls, slow_begin, slow_end. */
static PyObject *listeners_of(PyObject *pair) { return PyTuple_GetItem(pair, 0); }
static PyObject *calls_of(PyObject *pair) { return PyTuple_GetItem(pair, 1); }

/* Members of `plain` of a listener, which is such a tuple while calls may be plain, else None. */
enum {
    TRACKS, EVENTS, COUNTER, EVENT_TYPE, ACQUIRE, RELEASE, ACCOUNTS, THREAD_OF, THREADS, GONE, RUNNING, BACKWARD_TYPE,
    CONTEXT, LEFT, SESSION, TENSOR, DTYPES, STRIDED, ASK_TORCH, TABLE, ALL_THREADS,
};
enum { MOST_EVENTS = 255 };

static PyObject *word_plain, *word_open, *word_told, *word_optimizer, *word_index, *word_completed, *word_n_losses,
    *word_pending, *word_total, *word_n_backward, *word_norm, *word_rng, *word_scaled, *word_after_backward,
    *word_last_epoch, *word_zero_grad, *word_backward, *word_scheduler, *word_scheduler_step, *word_class,
    *word_name, *word_all_backward, *nothing, *set_to_none, *float_zero, *one, *zero;

static int intern_observed(void)
{
    struct {
        PyObject **word;
        const char *text;
    } words[] = {
        {&word_plain, "plain"},
        {&word_open, "open"},
        {&word_told, "told"},
        {&word_optimizer, "optimizer"},
        {&word_index, "index"},
        {&word_completed, "completed"},
        {&word_n_losses, "n_losses"},
        {&word_pending, "pending"},
        {&word_total, "total"},
        {&word_n_backward, "n_backward"},
        {&word_norm, "norm"},
        {&word_rng, "rng"},
        {&word_all_backward, "_n_backward"},
        {&word_scaled, "_scaled"},
        {&word_after_backward, "after_backward"},
        {&word_last_epoch, "last_epoch"},
        {&word_zero_grad, "zero_grad"},
        {&word_backward, "backward"},
        {&word_scheduler, "scheduler"},
        {&word_scheduler_step, "scheduler_step"},
        {&word_class, "class"},
        {&word_name, "__name__"},
    };
    for (size_t k = 0; k < sizeof words / sizeof *words; k++)
        if (!*words[k].word && !(*words[k].word = PyUnicode_InternFromString(words[k].text)))
            return -1;
    if (nothing)
        return 0;
    PyObject *text = PyUnicode_InternFromString("set_to_none");
    nothing = PyDict_New();
    set_to_none = PyDict_New();
    float_zero = PyFloat_FromDouble(0.0);
    zero = PyLong_FromLong(0);
    one = PyLong_FromLong(1);
    const int done = text && nothing && set_to_none && float_zero && zero && one &&
                     PyDict_SetItem(set_to_none, text, Py_True) == 0;
    Py_XDECREF(text);
    return done ? 0 : -1;
}

/* ---- small things ---------------------------------------------------------------------------------------------- */

/* A new reference to the `plain` of the only listener; NULL, without an error, where calls are not plain. */
static PyObject *plain_of(PyObject *pair)
{
    PyObject *listeners = listeners_of(pair);
    if (PyList_Size(listeners) != 1)
        return NULL;
    PyObject *plain = PyObject_GetAttr(PyList_GetItem(listeners, 0), word_plain);
    if (!plain)
        PyErr_Clear();
    if (plain && (!PyTuple_CheckExact(plain) || PyTuple_Size(plain) != WATCHED))
        Py_CLEAR(plain);
    return plain;
}

static PyObject *member(PyObject *plain, int which) { return PyTuple_GetItem(plain, which); }

static PyObject *key_of(PyObject *object) { return PyLong_FromVoidPtr(object); }

static PyObject *this_thread(void) { return PyLong_FromUnsignedLong(PyThread_get_thread_ident()); }

/* A number that is an attribute; -1 where it is none. */
static long long long_attribute(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    const long long number = value && PyLong_CheckExact(value) ? PyLong_AsLongLong(value) : -1;
    Py_XDECREF(value);
    return number;
}

/* Adds to a number that is an attribute; -1 with an error set. */
static int add_to_attribute(PyObject *object, PyObject *name, PyObject *number)
{
    PyObject *before = PyObject_GetAttr(object, name);
    PyObject *after = before ? PyNumber_Add(before, number) : NULL;
    const int done = after ? PyObject_SetAttr(object, name, after) : -1;
    Py_XDECREF(before);
    Py_XDECREF(after);
    return done;
}

/* Whether at most one thread has made backwards, this one if `ours`. */
static int one_thread(PyObject *plain, int ours)
{
    PyObject *threads = member(plain, THREADS);
    if (PySet_Size(threads) > 1)
        return 0;
    if (!ours)
        return 1;
    PyObject *here = this_thread();
    const int known = here ? PySet_Contains(threads, here) : -1;
    Py_XDECREF(here);
    return known == 1;
}

/* The list of this thread's open calls, a new reference; NULL with an error set. */
static PyObject *open_calls(PyObject *pair)
{
    PyObject *open = PyObject_GetAttr(calls_of(pair), word_open);
    if (open && !PyList_Check(open)) {
        PyErr_SetString(PyExc_TypeError, "the open calls are no list");
        Py_CLEAR(open);
    }
    return open;
}

/* A named tuple of this type, of the five members of `parts`; NULL with an error set. */
static PyObject *named(PyObject *kind, PyObject *parts)
{
    static newfunc new_tuple;
    if (!new_tuple)
        new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *arguments = parts ? PyTuple_Pack(1, parts) : NULL;
    PyObject *result = arguments ? new_tuple((PyTypeObject *)kind, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    return result;
}

static int put_event(PyObject *plain, PyObject *step, PyObject *kind, PyObject *index, PyObject *data)
{
    PyObject *seq = PyIter_Next(member(plain, COUNTER));
    PyObject *parts = seq ? PyTuple_Pack(5, seq, step, kind, index, data) : NULL;
    PyObject *event = named(member(plain, EVENT_TYPE), parts);
    const int done = event ? PyList_Append(member(plain, EVENTS), event) : -1;
    Py_XDECREF(event);
    Py_XDECREF(parts);
    Py_XDECREF(seq);
    return done;
}

/* Whether Python has no thread but this one, so that nobody is amid what the lock guards. */
static int is_only_thread(PyObject *plain)
{
    PyObject *threads = member(plain, ALL_THREADS);
    return PyDict_CheckExact(threads) && PyDict_Size(threads) == 1;
}

/* An event of a kind into the list of those that wait; -1 with an error set. Takes no reference. */
static int note_event(PyObject *plain, PyObject *step, PyObject *kind, PyObject *index, PyObject *data)
{
    if (is_only_thread(plain))
        return put_event(plain, step, kind, index, data);
    PyObject *held = PyObject_CallNoArgs(member(plain, ACQUIRE)); /* may wait for another thread */
    if (!held)
        return -1;
    Py_DECREF(held);
    const int done = put_event(plain, step, kind, index, data);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    held = PyObject_CallNoArgs(member(plain, RELEASE));
    Py_XDECREF(held);
    if (type)
        PyErr_Restore(type, value, trace);
    return held ? done : -1;
}

/* The track of an optimizer that has stepped, borrowed; NULL where there is none. */
static PyObject *track_of(PyObject *plain, PyObject *key, PyObject *optimizer)
{
    PyObject *track = PyDict_GetItemWithError(member(plain, TRACKS), key);
    if (!track)
        return NULL;
    PyObject *reference = PyObject_GetAttr(track, word_optimizer);
    const int same = reference && PyWeakref_GetObject(reference) == optimizer;
    Py_XDECREF(reference);
    return same && long_attribute(track, word_index) >= 0 ? track : NULL;
}

/* An event that is about an optimizer which has stepped; -1 with an error set. */
static int note_of_track(PyObject *plain, PyObject *track, PyObject *kind, PyObject *data)
{
    PyObject *index = PyObject_GetAttr(track, word_index);
    PyObject *completed = index ? PyObject_GetAttr(track, word_completed) : NULL;
    const int done = completed ? note_event(plain, completed, kind, index, data) : -1;
    Py_XDECREF(completed);
    Py_XDECREF(index);
    return done;
}

static int there_is_room(PyObject *plain) { return PyList_Size(member(plain, EVENTS)) < MOST_EVENTS; }

static PyObject *slow(PyObject *pair, int which, PyObject *one_argument, PyObject *other)
{
    return PyObject_CallFunctionObjArgs(PyTuple_GetItem(pair, which), one_argument, other, NULL);
}

/* Closes the innermost call after it has been noted (`done` 1) or could not be (-1, with an error set); where it is not
 * plain (0), Python does. Takes over the reference to the open calls. */
static PyObject *end_call(PyObject *pair, PyObject *open, int done, PyObject *note, PyObject *result)
{
    if (done == 0) {
        Py_XDECREF(open);
        return slow(pair, 3, note, result);
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    const Py_ssize_t count = open ? PyList_Size(open) : 0;
    if (!count && !type)
        PyErr_SetString(PyExc_IndexError, "no call is open");
    if (!count || PyList_SetSlice(open, count - 1, count, NULL) < 0)
        done = -1;
    Py_XDECREF(open);
    if (type) {
        PyErr_Clear();
        PyErr_Restore(type, value, trace);
    }
    return done < 0 ? NULL : Py_NewRef(Py_None);
}

static int is_pair(Py_ssize_t n)
{
    if (n == 2)
        return 1;
    PyErr_SetString(PyExc_TypeError, "an observer takes two arguments");
    return 0;
}

/* ---- zero_grad ------------------------------------------------------------------------------------------------- */

static PyObject *begin_zero_grad(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    PyObject *args = arguments[0], *kwargs = arguments[1], *result = NULL;
    PyObject *open = open_calls(pair);
    if (!open)
        return NULL;
    if (PyList_Size(open) || PyTuple_Size(args) != 1 || PyDict_Size(kwargs)) {
        Py_DECREF(open);
        return slow(pair, 2, args, kwargs);
    }
    PyObject *id = key_of(PyTuple_GetItem(args, 0));
    PyObject *key = id ? PyTuple_Pack(2, word_zero_grad, id) : NULL;
    PyObject *told = key ? PyObject_GetAttr(open, word_told) : NULL;
    PyObject *note = told ? PyTuple_Pack(3, args, kwargs, told) : NULL;
    if (note && PyList_Append(open, key) == 0)
        result = PyTuple_Pack(3, args, kwargs, note);
    Py_XDECREF(note);
    Py_XDECREF(told);
    Py_XDECREF(key);
    Py_XDECREF(id);
    Py_DECREF(open);
    return result;
}

/* Drops the losses of an account, as Account.forget_losses does; -1 with an error set. */
static int forget_losses(PyObject *account)
{
    PyObject *pending = PyObject_GetAttr(account, word_pending);
    const long long losses = long_attribute(account, word_n_losses);
    Py_XDECREF(pending);
    if (!pending || PyErr_Occurred())
        return -1;
    if (!losses && pending == Py_None)
        return 0;
    return PyObject_SetAttr(account, word_total, float_zero) < 0 ||
                   PyObject_SetAttr(account, word_n_losses, zero) < 0 ||
                   PyObject_SetAttr(account, word_pending, Py_None) < 0
               ? -1
               : 0;
}

/* 1: the call has been noted; 0: it is not plain, and nothing has been done; -1: an error is set. */
static int note_zero_grad(PyObject *open, PyObject *plain, PyObject *note)
{
    if (!PyTuple_CheckExact(note) || PyTuple_Size(note) != 3 || !there_is_room(plain) || !one_thread(plain, 0))
        return 0;
    PyObject *args = PyTuple_GetItem(note, 0), *kwargs = PyTuple_GetItem(note, 1);
    if (!PyTuple_CheckExact(args) || PyTuple_Size(args) != 1 || PyDict_Size(kwargs))
        return 0;
    PyObject *optimizer = PyTuple_GetItem(args, 0), *key = key_of(optimizer);
    if (!key)
        return -1;
    int done = 0;
    PyObject *track = track_of(plain, key, optimizer);
    PyObject *account = track ? PyDict_GetItemWithError(member(plain, ACCOUNTS), key) : NULL;
    PyObject *thread = account ? PyDict_GetItemWithError(member(plain, THREAD_OF), key) : NULL;
    PyObject *here = thread ? this_thread() : NULL;
    if (here && PyObject_RichCompareBool(thread, here, Py_EQ) == 1) {
        Py_INCREF(track);
        Py_INCREF(account);
        done = forget_losses(account) < 0 || add_to_attribute(open, word_told, one) < 0 ||
                       note_of_track(plain, track, word_zero_grad, set_to_none) < 0
                   ? -1
                   : 1;
        Py_DECREF(account);
        Py_DECREF(track);
    }
    Py_XDECREF(here);
    Py_DECREF(key);
    return done ? done : PyErr_Occurred() ? -1 : 0;
}

static PyObject *end_zero_grad(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    PyObject *note = arguments[0], *plain = note == Py_None ? NULL : plain_of(pair);
    if (!plain)
        return slow(pair, 3, note, arguments[1]);
    PyObject *open = open_calls(pair), *told = open ? PyObject_GetAttr(open, word_told) : NULL;
    int done = -1;
    if (told) {
        const int silent = PyObject_RichCompareBool(told, PyTuple_GetItem(note, 2), Py_EQ);
        done = silent < 0 ? -1 : silent ? note_zero_grad(open, plain, note) : 0;
    }
    Py_XDECREF(told);
    Py_DECREF(plain);
    return end_call(pair, open, done, note, arguments[1]);
}

/* ---- a scheduler's step ---------------------------------------------------------------------------------------- */

static PyObject *begin_scheduler(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    PyObject *args = arguments[0], *result = NULL, *open = open_calls(pair);
    if (!open)
        return NULL;
    if (PyList_Size(open) || !PyTuple_Size(args)) {
        Py_DECREF(open);
        return slow(pair, 2, args, arguments[1]);
    }
    if (PyList_Append(open, word_scheduler) == 0)
        result = PyTuple_Pack(3, args, arguments[1], PyTuple_GetItem(args, 0));
    Py_DECREF(open);
    return result;
}

static PyObject *scheduler_data(PyObject *scheduler)
{
    PyObject *data = PyDict_New(), *name = PyObject_GetAttr((PyObject *)Py_TYPE(scheduler), word_name);
    PyObject *epoch = name ? PyObject_GetAttr(scheduler, word_last_epoch) : NULL;
    if (!data || !epoch || PyDict_SetItem(data, word_class, name) < 0 ||
        PyDict_SetItem(data, word_last_epoch, epoch) < 0)
        Py_CLEAR(data);
    Py_XDECREF(epoch);
    Py_XDECREF(name);
    return data;
}

static int note_scheduler(PyObject *open, PyObject *plain, PyObject *scheduler)
{
    if (!there_is_room(plain))
        return 0;
    PyObject *optimizer = PyObject_GetAttr(scheduler, word_optimizer);
    PyObject *key = optimizer ? key_of(optimizer) : NULL;
    PyObject *track = key ? track_of(plain, key, optimizer) : NULL;
    PyObject *data = track ? scheduler_data(scheduler) : NULL;
    int done = 0;
    if (data) {
        Py_INCREF(track);
        done = add_to_attribute(open, word_told, one) < 0 ||
                       note_of_track(plain, track, word_scheduler_step, data) < 0
                   ? -1
                   : 1;
        Py_DECREF(track);
    }
    Py_XDECREF(data);
    Py_XDECREF(key);
    Py_XDECREF(optimizer);
    if (!done)
        PyErr_Clear(); /* an attribute that it has not: Python's business */
    return done;
}

static PyObject *end_scheduler(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    PyObject *scheduler = arguments[0], *plain = scheduler == Py_None ? NULL : plain_of(pair);
    PyObject *open = open_calls(pair);
    const int done = !open ? -1 : plain ? note_scheduler(open, plain, scheduler) : 0;
    Py_XDECREF(plain);
    return end_call(pair, open, done, scheduler, arguments[1]);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* The size of the float that a CPU tensor holds, and where; 0 where it holds anything else. */
static int float_of(PyObject *plain, PyObject *root, long long *address)
{
    const Exchange *table = exchange_in(member(plain, TABLE));
    if (table)
        return exchanged_lies_in_order(table, root, 1, FLOAT_32, address)   ? 4
               : exchanged_lies_in_order(table, root, 1, FLOAT_64, address) ? 8
                                                                            : 0;
    PyObject *dtypes = member(plain, DTYPES);
    if (ask(root, word_numel) != 1 || !has(root, word_is_cpu) ||
        !attribute_is(root, word_layout, member(plain, STRIDED)))
        return 0;
    *address = ask(root, word_data_ptr);
    return attribute_is(root, word_dtype, PyTuple_GetItem(dtypes, 0))   ? 4
           : attribute_is(root, word_dtype, PyTuple_GetItem(dtypes, 1)) ? 8
                                                                        : 0;
}

/* The value of a CPU tensor of one float, a new reference; NULL, without an error, where it is none. */
static PyObject *plain_value(PyObject *plain, PyObject *root)
{
    long long address = 0;
    const int size = (PyObject *)Py_TYPE(root) == member(plain, TENSOR) ? float_of(plain, root, &address) : 0;
    if (PyErr_Occurred())
        PyErr_Clear();
    if (!size || address <= 0)
        return NULL;
    float single;
    double number;
    if (size == 8) {
        memcpy(&number, (const void *)(uintptr_t)address, sizeof number);
    } else {
        memcpy(&single, (const void *)(uintptr_t)address, sizeof single);
        number = single;
    }
    return PyFloat_FromDouble(number);
}

/* Whether torch runs no backward in this thread, and nobody watches its functions. */
static int torch_is_quiet(PyObject *plain)
{
    PyObject *questions = member(plain, ASK_TORCH); /* the running backward, the number of modes, the generators */
    PyObject *running = PyObject_CallNoArgs(PyTuple_GetItem(questions, 0));
    PyObject *modes = running ? PyObject_CallNoArgs(PyTuple_GetItem(questions, 1)) : NULL;
    const int quiet = modes && PyLong_AsLong(running) == -1 && PyLong_AsLong(modes) == 0;
    Py_XDECREF(running);
    Py_XDECREF(modes);
    return quiet && !PyErr_Occurred();
}

/* Nobody else is concerned: one optimizer, no losses that were scaled, no gradients that are followed. */
static int context_is_plain(PyObject *plain)
{
    PyObject *context = member(plain, CONTEXT);
    if (PyDict_Size(member(plain, ACCOUNTS)) != 1 || !one_thread(plain, 1) || PyList_Size(member(plain, GONE)) ||
        PyDict_Size(member(plain, LEFT)))
        return 0;
    PyObject *scaled = PyObject_GetAttr(context, word_scaled), *after = PyObject_GetAttr(context, word_after_backward);
    const int is = scaled && after == Py_None && PyList_CheckExact(scaled) && !PyList_Size(scaled);
    Py_XDECREF(scaled);
    Py_XDECREF(after);
    return is && !PyErr_Occurred();
}

/* The fingerprint of the random generators, a new reference; NULL with an error set. */
static PyObject *fingerprint_of_generators(PyObject *plain)
{
    PyObject *questions = member(plain, ASK_TORCH), *number = unchanged(NULL, PyTuple_GetItem(questions, 3));
    if (number != Py_None)
        return number;
    Py_DECREF(number);
    return PyObject_CallNoArgs(PyTuple_GetItem(questions, 2));
}

/* Counts a backward in an account, as Account.add does; the generators' fingerprint, a new reference, or NULL. */
static PyObject *count_backward(PyObject *plain, PyObject *account, PyObject *value)
{
    PyObject *rng = PyObject_GetAttr(account, word_rng);
    if (rng == Py_None) {
        Py_DECREF(rng);
        rng = fingerprint_of_generators(plain);
        if (rng && PyObject_SetAttr(account, word_rng, rng) < 0)
            Py_CLEAR(rng);
    }
    if (rng && (add_to_attribute(account, word_n_backward, one) < 0 ||
                PyObject_SetAttr(account, word_norm, Py_None) < 0 ||
                add_to_attribute(account, word_total, value) < 0 ||
                add_to_attribute(account, word_n_losses, one) < 0))
        Py_CLEAR(rng);
    return rng;
}

/* The Backward of context.py for one optimizer; NULL with an error set. */
static PyObject *backward_of(PyObject *plain, PyObject *key, PyObject *account, PyObject *value)
{
    PyObject *result = NULL, *rng = count_backward(plain, account, value);
    PyObject *count = rng ? PyObject_GetAttr(account, word_n_backward) : NULL;
    PyObject *values = count ? PyList_New(0) : NULL, *marks = values ? PyList_New(0) : NULL;
    PyObject *given = marks ? PyDict_New() : NULL, *here = given ? this_thread() : NULL;
    if (here && PyList_Append(values, value) == 0 && PyDict_SetItem(given, key, count) == 0) {
        PyObject *parts = PyTuple_Pack(5, here, values, rng, given, marks);
        result = named(member(plain, BACKWARD_TYPE), parts);
        Py_XDECREF(parts);
    }
    Py_XDECREF(here);
    Py_XDECREF(given);
    Py_XDECREF(marks);
    Py_XDECREF(values);
    Py_XDECREF(count);
    Py_XDECREF(rng);
    return result;
}

/* Notes a backward: the note [(context, Backward)] for its end; NULL, without an error where it is not plain. */
static PyObject *note_backward(PyObject *open, PyObject *plain, PyObject *root)
{
    PyObject *key, *account, *note = NULL, *value;
    Py_ssize_t place = 0;
    if (!there_is_room(plain) || !context_is_plain(plain) || !torch_is_quiet(plain) ||
        !(value = plain_value(plain, root))) {
        PyErr_Clear();
        return NULL;
    }
    if (PyDict_Next(member(plain, ACCOUNTS), &place, &key, &account)) {
        Py_INCREF(key);
        Py_INCREF(account);
        PyObject *unknown = PyLong_FromLong(-1);
        if (unknown && add_to_attribute(open, word_told, one) == 0 &&
            add_to_attribute(member(plain, SESSION), word_all_backward, one) == 0 &&
            note_event(plain, zero, word_backward, unknown, nothing) == 0) {
            PyObject *backward = backward_of(plain, key, account, value);
            PyObject *id = backward ? key_of(backward) : NULL;
            PyObject *both = id ? PyTuple_Pack(2, member(plain, CONTEXT), backward) : NULL;
            if (both && PyDict_SetItem(member(plain, RUNNING), id, backward) == 0 && (note = PyList_New(0)) != NULL &&
                PyList_Append(note, both) < 0)
                Py_CLEAR(note);
            Py_XDECREF(both);
            Py_XDECREF(id);
            Py_XDECREF(backward);
        }
        Py_XDECREF(unknown);
        Py_DECREF(account);
        Py_DECREF(key);
    }
    Py_DECREF(value);
    return note;
}

static PyObject *begin_backward(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    PyObject *args = arguments[0], *open = open_calls(pair), *result = NULL, *note = NULL;
    if (!open)
        return NULL;
    PyObject *plain = PyList_Size(open) || !PyTuple_Size(args) ? NULL : plain_of(pair);
    if (plain) {
        note = note_backward(open, plain, PyTuple_GetItem(args, 0));
        Py_DECREF(plain);
    }
    if (note && PyList_Append(open, word_backward) == 0)
        result = PyTuple_Pack(3, args, arguments[1], note);
    Py_XDECREF(note);
    Py_DECREF(open);
    return note || PyErr_Occurred() ? result : slow(pair, 2, args, arguments[1]);
}

/* Whether the note is of one context and its backward has changed nothing that is to be looked at. */
static PyObject *plain_backward(PyObject *plain, PyObject *note)
{
    PyObject *both = PyList_CheckExact(note) && PyList_Size(note) == 1 ? PyList_GetItem(note, 0) : NULL;
    PyObject *context = member(plain, CONTEXT);
    if (!both || !PyTuple_CheckExact(both) || PyTuple_GetItem(both, 0) != context || !context_is_plain(plain))
        return NULL;
    PyObject *backward = PyTuple_GetItem(both, 1);
    return PyDict_Size(PyTuple_GetItem(backward, 3)) && !PyList_Size(PyTuple_GetItem(backward, 4)) ? backward : NULL;
}

static PyObject *end_backward(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (!is_pair(n))
        return NULL;
    PyObject *note = arguments[0], *plain = note == Py_None ? NULL : plain_of(pair);
    PyObject *backward = plain ? plain_backward(plain, note) : NULL;
    int done = 0;
    if (backward) {
        PyObject *id = key_of(backward);
        PyObject *running = member(plain, RUNNING);
        done = !id ? -1 : PyDict_GetItemWithError(running, id) ? PyDict_DelItem(running, id) : 0;
        Py_XDECREF(id);
        done = done < 0 ? -1 : 1;
    }
    Py_XDECREF(plain);
    return end_call(pair, open_calls(pair), done, note, arguments[1]);
}
