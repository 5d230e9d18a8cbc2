/* Records a step that is like the last in every way: one call before the rule and one after it (see
 * recorder/plain_steps.py). These do what hooks.py, steps.py, context.py, session.py and writer.py do for such a step, on
 * the same objects. Before anything has been done, whatever is not plain is left to them.
 */

/* What is known of an optimizer whose steps are plain: a tuple of these. Where it says "of", it is the dict of the
 * object's attributes: to look one up there takes half the time, and none of the room that the interpreter has to
 * remember attributes of types, which the program needs. */
enum {
    S_REFERENCE, S_THREAD, S_PLAIN, S_RUNNING, S_ORDER, S_WRITER, S_KNOWN, S_BEFORE, S_AFTER, S_ORDERS, S_PARTS, S_LIMIT,
    S_STRANGERS, S_PAST_FIRST, S_ROWS, S_INDEX, S_TAKEN, S_OTHERS, S_STATE, OF_SESSION, OF_TRACK, OF_CAPTURE, OF_STEADY,
    OF_RUNNING, OF_ORDER, OF_WRITER, OF_WAITING, OF_PRICE, OF_CONTEXT, KNOWN_STEP,
};

/* What a pair of functions holds: the optimizers known, by id; the steps that have begun, and the last ones; torch's
 * global hooks before and after a step; the clock; what asks torch for its threads and modes. */
enum { P_KNOWN, P_OPEN, P_OVER, P_HOOKS_BEFORE, P_HOOKS_AFTER, P_CLOCK, P_THREADS, P_MODES, PAIR_OF_STEPS };

/* S_OTHERS: Python's functions for what is rare. */
enum { O_OPTIONS, O_WRITE, O_FAILED, O_PRICE };

/* S_STATE */
typedef struct {
    double begun, hooked; /* torch's threads where a step has begun here, else 0; seconds that the call before took */
} Stepping;

static PyObject *word_found_inf, *word_grad_scale, *word_state, *word_param_groups, *word_hooks_before,
    *word_hooks_after, *word_depth, *word_running, *word_params_changed, *word_busy, *word_later, *word_spare,
    *word_groups, *word_regroup, *word_look_ahead, *word_after_write, *word_hooked, *word_ended, *word_hooks, *word_rows,
    *word_events, *word_told_price, *word_last_step, *word_steps, *word_step, *word_closed, *word_n_skipped, *word_batch,
    *word_loss, *word_grad_norm, *word_seconds, *word_its_groups;

static int intern_steps(void)
{
    struct {
        PyObject **word;
        const char *text;
    } words[] = {
        {&word_found_inf, "found_inf"},
        {&word_grad_scale, "grad_scale"},
        {&word_state, "state"},
        {&word_param_groups, "param_groups"},
        {&word_hooks_before, "_optimizer_step_pre_hooks"},
        {&word_hooks_after, "_optimizer_step_post_hooks"},
        {&word_depth, "depth"},
        {&word_running, "_running"},
        {&word_params_changed, "params_changed"},
        {&word_busy, "_busy"},
        {&word_later, "_later"},
        {&word_spare, "_spare"},
        {&word_groups, "groups"},
        {&word_regroup, "regroup"},
        {&word_look_ahead, "look_ahead"},
        {&word_after_write, "_after_write"},
        {&word_hooked, "hooked"},
        {&word_ended, "ended"},
        {&word_hooks, "hooks"},
        {&word_rows, "rows"},
        {&word_events, "events"},
        {&word_told_price, "told"},
        {&word_last_step, "_last_step"},
        {&word_steps, "steps"},
        {&word_step, "step"},
        {&word_closed, "_closed"},
        {&word_n_skipped, "n_skipped"},
        {&word_batch, "batch"},
        {&word_loss, "loss"},
        {&word_grad_norm, "grad_norm"},
        {&word_seconds, "seconds"},
        {&word_its_groups, "_groups"},
    };
    for (size_t k = 0; k < sizeof words / sizeof *words; k++)
        if (!*words[k].word && !(*words[k].word = PyUnicode_InternFromString(words[k].text)))
            return -1;
    return 0;
}

/* ---- small things ---------------------------------------------------------------------------------------------- */

static PyObject *of_step(PyObject *known, int which) { return PyTuple_GetItem(known, which); }

/* Whether a dict holds this object (None, False, ...) under a name. */
static int holds(PyObject *dict, PyObject *name, PyObject *wanted)
{
    return PyDict_GetItemWithError(dict, name) == wanted;
}

/* What a dict holds, borrowed; NULL with an error set. */
static PyObject *held(PyObject *dict, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(dict, name);
    if (!value && !PyErr_Occurred())
        PyErr_SetObject(PyExc_AttributeError, name);
    return value;
}

/* The number that a function without arguments gives; -1 with an error set. */
static double told_by(PyObject *function)
{
    PyObject *answer = PyObject_CallNoArgs(function);
    const double number = answer ? PyFloat_AsDouble(answer) : -1;
    Py_XDECREF(answer);
    return number;
}

/* Puts a new object into a dict. */
static int put_new(PyObject *dict, PyObject *name, PyObject *value)
{
    const int done = value ? PyDict_SetItem(dict, name, value) : -1;
    Py_XDECREF(value);
    return done;
}

static int put_float(PyObject *dict, PyObject *name, double number)
{
    return put_new(dict, name, PyFloat_FromDouble(number));
}

/* Adds to a number in a dict. */
static int add_held(PyObject *dict, PyObject *name, PyObject *number)
{
    PyObject *before = held(dict, name);
    return before ? put_new(dict, name, PyNumber_Add(before, number)) : -1;
}

static int call_quietly(PyObject *function)
{
    PyObject *result = PyObject_CallNoArgs(function);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static Stepping *stepping_of(PyObject *known, Py_buffer *buffer)
{
    if (PyObject_GetBuffer(of_step(known, S_STATE), buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if (buffer->len == sizeof(Stepping))
        return buffer->buf;
    PyBuffer_Release(buffer);
    PyErr_SetString(PyExc_ValueError, "the state of a step is two doubles");
    return NULL;
}

/* What is known of an optimizer, a new reference; NULL, without an error, where nothing is. */
static PyObject *known_step(PyObject *pair, PyObject *key, PyObject *optimizer)
{
    PyObject *known = PyDict_GetItemWithError(PyTuple_GetItem(pair, P_KNOWN), key);
    if (!known || !PyTuple_CheckExact(known) || PyTuple_Size(known) != KNOWN_STEP ||
        PyWeakref_GetObject(of_step(known, S_REFERENCE)) != optimizer)
        return NULL;
    return Py_NewRef(known);
}

/* Whether this thread is the one that makes the steps, the session sees plain calls, and no other hooks are there. */
static int may_step(PyObject *pair, PyObject *known)
{
    PyObject *here = this_thread();
    const int same = here && PyObject_RichCompareBool(here, of_step(known, S_THREAD), Py_EQ) == 1;
    Py_XDECREF(here);
    return same && PyDict_Size(PyTuple_GetItem(pair, P_HOOKS_BEFORE)) == 1 &&
           PyDict_Size(PyTuple_GetItem(pair, P_HOOKS_AFTER)) == 1 &&
           holds(of_step(known, OF_SESSION), word_plain, of_step(known, S_PLAIN));
}

/* ---- before the rule ------------------------------------------------------------------------------------------- */

/* Whether a dict has nothing else under a key than None. */
static int lacks(PyObject *dict, PyObject *key)
{
    PyObject *value = PyDict_GetItemWithError(dict, key);
    return !value || value == Py_None;
}

static int is_empty(PyObject *dict, PyObject *key)
{
    PyObject *value = PyDict_GetItemWithError(dict, key);
    return value && PyDict_Check(value) && PyDict_Size(value) == 0;
}

/* 1: the step is known and has been measured; 0: it is not plain; -1: an error is set. */
static int begin_known(PyObject *known, PyObject *optimizer, double threads)
{
    PyObject *own = PyObject_GenericGetDict(optimizer, NULL);
    if (!own)
        return -1;
    PyObject *groups = PyDict_GetItemWithError(own, word_param_groups);
    PyObject *state = PyDict_GetItemWithError(own, word_state);
    int found = 0;
    if (groups && state && lacks(own, word_found_inf) && lacks(own, word_grad_scale) &&
        is_empty(own, word_hooks_before) && is_empty(own, word_hooks_after)) {
        Py_INCREF(groups);
        Py_INCREF(state);
        found = measure_before(of_step(known, S_KNOWN), groups, state, (long)threads, of_step(known, S_BEFORE));
        Py_DECREF(state);
        Py_DECREF(groups);
    }
    Py_DECREF(own);
    if (found == 1) { /* other options */
        PyObject *answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(of_step(known, S_OTHERS), O_OPTIONS), optimizer, NULL);
        found = answer ? answer == Py_True : -1;
        Py_XDECREF(answer);
    }
    return found > 0 && !PyErr_Occurred() ? 1 : PyErr_Occurred() ? -1 : 0;
}

static int note_begun(PyObject *pair, PyObject *known, PyObject *key, double start, double threads)
{
    PyObject *over = PyDict_GetItemWithError(PyTuple_GetItem(pair, P_OVER), key);
    const double now = told_by(PyTuple_GetItem(pair, P_CLOCK));
    Py_buffer buffer;
    Stepping *stepping = over && now >= 0 ? stepping_of(known, &buffer) : NULL;
    if (!stepping)
        return -1;
    *stepping = (Stepping){threads, now - start};
    PyBuffer_Release(&buffer);
    return PyDict_SetItem(PyTuple_GetItem(pair, P_OPEN), key, over) < 0 ||
                   put_float(of_step(known, OF_TRACK), word_hooked, now - start) < 0
               ? -1
               : 0;
}

/* before(optimizer, args, kwargs): whether the step that begins is recorded here. */
static PyObject *before_step(PyObject *pair, PyObject *const *arguments, Py_ssize_t n)
{
    if (n != 3 || !PyTuple_CheckExact(arguments[1]) || !PyDict_CheckExact(arguments[2]))
        return Py_NewRef(Py_False);
    PyObject *key = key_of(arguments[0]), *known = key ? known_step(pair, key, arguments[0]) : NULL;
    int begun = 0;
    if (known && PyTuple_Size(arguments[1]) == 1 && !PyDict_Size(arguments[2])) {
        PyObject *over = PyDict_GetItemWithError(PyTuple_GetItem(pair, P_OVER), key);
        if (over && !PyDict_GetItemWithError(PyTuple_GetItem(pair, P_OPEN), key) &&
            attribute_is(over, word_depth, one) && may_step(pair, known) &&
            told_by(PyTuple_GetItem(pair, P_MODES)) == 0) {
            const double start = told_by(PyTuple_GetItem(pair, P_CLOCK));
            const double threads = told_by(PyTuple_GetItem(pair, P_THREADS));
            begun = start < 0 || threads < 1 ? -1 : begin_known(known, arguments[0], threads);
            if (begun > 0)
                begun = note_begun(pair, known, key, start, threads) < 0 ? -1 : 1;
        }
    }
    Py_XDECREF(known);
    Py_XDECREF(key);
    if (PyErr_Occurred())
        PyErr_Clear(); /* Python will meet it again */
    return Py_NewRef(begun > 0 ? Py_True : Py_False);
}

/* ---- after the rule -------------------------------------------------------------------------------------------- */

/* Whether the step can be written in one call. */
static int may_write(PyObject *known)
{
    PyObject *later = held(of_step(known, OF_SESSION), word_later);
    const int waits = later ? PyObject_IsTrue(later) : 1;
    PyObject *orders = of_step(known, S_ORDERS), *index = of_step(known, S_INDEX);
    return !waits && PyDict_Size(of_step(known, S_STRANGERS)) == 0 &&
           holds(of_step(known, OF_WAITING), word_spare, Py_None) &&
           holds(of_step(known, OF_CAPTURE), word_params_changed, Py_False) &&
           holds(of_step(known, OF_WRITER), word_busy, Py_False) &&
           PyDict_GetItemWithError(orders, index) == of_step(known, S_ORDER);
}

/* The optimizer's account, a new reference, where it is closed by nobody else and all in it is a number; else NULL. Its
 * attributes are put at `of`, a new reference. */
static PyObject *plain_account(PyObject *known, PyObject *key, PyObject **of)
{
    PyObject *plain = of_step(known, S_PLAIN);
    PyObject *account = PyDict_GetItemWithError(member(plain, ACCOUNTS), key);
    PyObject *thread = PyDict_GetItemWithError(member(plain, THREAD_OF), key);
    if (!account || !thread || PyObject_RichCompareBool(thread, of_step(known, S_THREAD), Py_EQ) != 1 ||
        !one_thread(plain, 0) || PyList_Size(member(plain, GONE)) || PyDict_Size(member(plain, RUNNING)) ||
        PySet_Contains(of_step(known, S_PAST_FIRST), key) != 1 || !(*of = PyObject_GenericGetDict(account, NULL)))
        return NULL;
    PyObject *norm = PyDict_GetItemWithError(*of, word_norm);
    return norm && (norm == Py_None || PyFloat_CheckExact(norm)) && holds(*of, word_pending, Py_None)
               ? Py_NewRef(account)
               : NULL;
}

static int put_held(PyObject *taken, PyObject *word, PyObject *of, PyObject *name)
{
    PyObject *value = held(of, name);
    return value ? PyDict_SetItem(taken, word, value) : -1;
}

static PyObject *mean_loss(PyObject *of)
{
    PyObject *losses = held(of, word_n_losses), *total = held(of, word_total);
    const long long count = losses ? PyLong_AsLongLong(losses) : -1;
    const double sum = total ? PyFloat_AsDouble(total) : -1;
    if (PyErr_Occurred())
        return NULL;
    return count ? PyFloat_FromDouble(sum / (double)count) : Py_NewRef(Py_None);
}

/* An unsigned fingerprint as a signed number. */
static PyObject *signed_batch(PyObject *of)
{
    PyObject *batch = held(of, word_batch);
    if (!batch || batch == Py_None)
        return batch ? Py_NewRef(batch) : NULL;
    const unsigned long long bits = PyLong_AsUnsignedLongLong(batch);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong((long long)bits);
}

/* As Account.clear does. */
static int clear_account(PyObject *of)
{
    PyObject *zeros[] = {word_n_backward, word_n_skipped, word_n_losses};
    PyObject *nones[] = {word_pending, word_norm, word_batch, word_rng};
    for (size_t k = 0; k < sizeof zeros / sizeof *zeros; k++)
        if (PyDict_SetItem(of, zeros[k], zero) < 0)
            return -1;
    for (size_t k = 0; k < sizeof nones / sizeof *nones; k++)
        if (PyDict_SetItem(of, nones[k], Py_None) < 0)
            return -1;
    return PyDict_SetItem(of, word_total, float_zero);
}

/* Closes the account, as StepContext.take does, and begins another; what it held goes to S_TAKEN. */
static int take_account(PyObject *known, PyObject *key, PyObject *account, PyObject *of)
{
    PyObject *taken = of_step(known, S_TAKEN), *of_context = of_step(known, OF_CONTEXT);
    if (put_new(taken, word_loss, mean_loss(of)) < 0 || put_new(taken, word_batch, signed_batch(of)) < 0 ||
        put_held(taken, word_n_backward, of, word_n_backward) < 0 ||
        put_held(taken, word_n_skipped, of, word_n_skipped) < 0 ||
        put_held(taken, word_grad_norm, of, word_norm) < 0 || put_held(taken, word_rng, of, word_rng) < 0)
        return -1;
    PyObject *fresh = held(of_context, word_closed), *of_fresh = NULL;
    Py_XINCREF(fresh);
    const int done = fresh && PyDict_SetItem(of_context, word_closed, account) == 0 &&
                     PyDict_SetItem(member(of_step(known, S_PLAIN), ACCOUNTS), key, fresh) == 0 &&
                     (of_fresh = PyObject_GenericGetDict(fresh, NULL)) && clear_account(of_fresh) == 0;
    Py_XDECREF(of_fresh);
    Py_XDECREF(fresh);
    return done ? 0 : -1;
}

/* The seconds that the program took since the end of the last step. */
static int take_seconds(PyObject *known, double start, double hooked)
{
    PyObject *ended = held(of_step(known, OF_TRACK), word_ended);
    PyObject *seconds = !ended             ? NULL
                        : ended == Py_None ? Py_NewRef(Py_None)
                                           : PyFloat_FromDouble(start - PyFloat_AsDouble(ended) - hooked);
    return put_new(of_step(known, S_TAKEN), word_seconds, seconds);
}

/* Rows and events that have been written, as long as the price has not been told. */
static int count_for_price(PyObject *price, PyObject *seq, PyObject *rows)
{
    if (holds(price, word_told_price, Py_True))
        return 0;
    return PyDict_SetItem(price, word_events, seq) < 0 ? -1 : add_held(price, word_rows, rows);
}

/* 1: the step has been written; 0: it does not fit, and nothing has; -1: an error is set. */
static int write_known(PyObject *known, PyObject *completed)
{
    PyObject *plain = of_step(known, S_PLAIN), *events = member(plain, EVENTS), *order = of_step(known, S_ORDER);
    PyObject *groups = held(of_step(known, OF_RUNNING), word_groups);
    int fits = groups && holds(of_step(known, OF_ORDER), word_its_groups, groups);
    if (groups && !fits) {
        PyObject *answer = PyObject_CallMethodObjArgs(order, word_regroup, groups, NULL);
        fits = answer ? answer == Py_True : -1;
        Py_XDECREF(answer);
    }
    if (fits <= 0)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *seq = PyIter_Next(member(plain, COUNTER)), *index = of_step(known, S_INDEX);
    PyObject *parts = seq ? PyTuple_Pack(5, seq, completed, word_step, index, nothing) : NULL;
    PyObject *event = named(member(plain, EVENT_TYPE), parts);
    long done = event && PyList_Append(events, event) == 0
                    ? fill_and_write(of_step(known, S_PARTS), PyLong_AsLongLong(completed), PyLong_AsLongLong(index),
                                     of_step(known, S_TAKEN), events, PyLong_AsLongLong(of_step(known, S_LIMIT)))
                    : -1;
    if (done == 0 && (PyList_SetSlice(events, PyList_Size(events) - 1, PyList_Size(events), NULL) < 0 ||
                      PyDict_SetItem(of_step(known, OF_WAITING), word_spare, seq) < 0))
        done = -1;
    if (done > 0 && (PyList_SetSlice(events, 0, PyList_Size(events), NULL) < 0 ||
                     count_for_price(of_step(known, OF_PRICE), seq, of_step(known, S_ROWS)) < 0))
        done = -1;
    Py_XDECREF(event);
    Py_XDECREF(parts);
    Py_XDECREF(seq);
    if (done > 0 && done & WRITE_FULL) {
        PyObject *answer = PyObject_CallMethodObjArgs(of_step(known, S_WRITER), word_after_write, NULL);
        Py_XDECREF(answer);
        done = answer ? done & ~(long)WRITE_FULL : -1;
    }
    if (done > WRITE_FULL) {
        PyObject *tables = PyLong_FromLong(done);
        PyObject *answer = tables ? PyObject_CallMethodObjArgs(order, word_look_ahead, tables, NULL) : NULL;
        Py_XDECREF(answer);
        Py_XDECREF(tables);
        done = answer ? 1 : -1;
    }
    return done > 0 ? 1 : (int)done;
}

/* The step written, in one call or by Python; -1 with an error set. */
static int write_somehow(PyObject *known, PyObject *completed)
{
    PyObject *session = of_step(known, OF_SESSION);
    int done = write_known(known, completed);
    if (done == 0)
        return call_quietly(PyTuple_GetItem(of_step(known, S_OTHERS), O_WRITE));
    PyObject *last = done > 0 ? held(session, word_last_step) : NULL;
    if (last && PyLong_AsLongLong(completed) > PyLong_AsLongLong(last))
        done = PyDict_SetItem(session, word_last_step, completed);
    return done;
}

/* The same under the session's lock. */
static int write_alone(PyObject *known, PyObject *completed)
{
    PyObject *plain = of_step(known, S_PLAIN), *type, *value, *trace;
    if (is_only_thread(plain))
        return write_somehow(known, completed);
    if (call_quietly(member(plain, ACQUIRE)) < 0)
        return -1;
    const int done = write_somehow(known, completed);
    PyErr_Fetch(&type, &value, &trace);
    const int released = call_quietly(member(plain, RELEASE));
    if (type)
        PyErr_Restore(type, value, trace);
    return released < 0 ? -1 : done;
}

/* Everything that a step needs once it has been measured; -1 with an error set. */
static int finish_known(PyObject *pair, PyObject *known, double start, double hooked)
{
    PyObject *track = of_step(known, OF_TRACK);
    if (take_seconds(known, start, hooked) < 0 || add_held(track, word_completed, one) < 0 ||
        add_held(of_step(known, OF_STEADY), word_steps, one) < 0)
        return -1;
    PyObject *completed = held(track, word_completed);
    Py_XINCREF(completed);
    const int done = completed ? write_alone(known, completed) : -1;
    Py_XDECREF(completed);
    if (done < 0)
        return -1;
    const double now = told_by(PyTuple_GetItem(pair, P_CLOCK));
    PyObject *price = of_step(known, OF_PRICE), *hooks = held(price, word_hooks);
    if (now < 0 || !hooks || put_float(track, word_ended, now) < 0 ||
        put_float(price, word_hooks, PyFloat_AsDouble(hooks) + hooked + (now - start)) < 0)
        return -1;
    return holds(price, word_told_price, Py_True)
               ? 0
               : call_quietly(PyTuple_GetItem(of_step(known, S_OTHERS), O_PRICE));
}

/* Hands an error over to the session, which may raise it (strict); -1 with an error set. */
static int tell_failure(PyObject *known)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    PyObject *answer = PyObject_CallFunctionObjArgs(PyTuple_GetItem(of_step(known, S_OTHERS), O_FAILED), value, NULL);
    Py_XDECREF(answer);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return answer ? 0 : -1;
}

/* 1: the step has been recorded, or its failure told; 0: it is not plain any more; -1: an error is set. */
static int end_known(PyObject *pair, PyObject *known, PyObject *key, PyObject *optimizer, Stepping begun)
{
    PyObject *open = PyTuple_GetItem(pair, P_OPEN);
    if (!may_step(pair, known) || !may_write(known) || told_by(PyTuple_GetItem(pair, P_MODES)) != 0)
        return 0;
    PyObject *of = NULL, *account = plain_account(known, key, &of);
    const double start = account ? told_by(PyTuple_GetItem(pair, P_CLOCK)) : -1;
    PyObject *groups = start < 0 ? NULL : PyObject_GetAttr(optimizer, word_param_groups);
    PyObject *state = groups ? PyObject_GetAttr(optimizer, word_state) : NULL;
    int done = !state ? 0
                      : measure_after(of_step(known, S_KNOWN), groups, state, (long)begun.begun, of_step(known, S_AFTER));
    Py_XDECREF(groups);
    Py_XDECREF(state);
    if (done > 0) {
        done = PyDict_DelItem(open, key) < 0 || take_account(known, key, account, of) < 0 ||
                       finish_known(pair, known, start, begun.hooked) < 0
                   ? (tell_failure(known) < 0 ? -1 : 1)
                   : 1;
    } else {
        PyErr_Clear(); /* Python will meet it again */
        done = 0;
    }
    Py_XDECREF(account);
    Py_XDECREF(of);
    return done;
}

/* Whether a step is open here, and the call of `step()` that ends is not one inside another. */
static int is_outermost(PyObject *pair, PyObject *key)
{
    PyObject *step = PyDict_GetItemWithError(PyTuple_GetItem(pair, P_OPEN), key);
    return step && step == PyDict_GetItemWithError(PyTuple_GetItem(pair, P_OVER), key) &&
           attribute_is(step, word_depth, one);
}

/* after(optimizer): whether the step that ends has been recorded here. */
static PyObject *after_step(PyObject *pair, PyObject *optimizer)
{
    PyObject *key = key_of(optimizer), *known = key ? known_step(pair, key, optimizer) : NULL;
    Py_buffer buffer;
    Stepping *stepping = known && is_outermost(pair, key) ? stepping_of(known, &buffer) : NULL;
    int done = 0;
    if (stepping) {
        const Stepping begun = *stepping;
        stepping->begun = 0;
        PyBuffer_Release(&buffer);
        if (begun.begun != 0) {
            done = end_known(pair, known, key, optimizer, begun);
            if (done == 0) { /* Python goes on where it would be, had it begun the step */
                PyErr_Clear();
                done = PyDict_SetItem(of_step(known, OF_CAPTURE), word_running, of_step(known, S_RUNNING));
            }
        }
    }
    Py_XDECREF(known);
    Py_XDECREF(key);
    if (done < 0)
        return NULL;
    if (!done && PyErr_Occurred())
        PyErr_Clear();
    return Py_NewRef(done > 0 ? Py_True : Py_False);
}

/* plain_steps(known, open, over, hooks before, hooks after, clock, threads, modes): (before, after). */
static PyObject *plain_steps(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    static PyMethodDef before = {"before", (PyCFunction)(void (*)(void))before_step, METH_FASTCALL, NULL};
    static PyMethodDef after = {"after", after_step, METH_O, NULL};
    (void)module;
    if (n != PAIR_OF_STEPS) {
        PyErr_SetString(PyExc_TypeError, "plain_steps(known, open, over, before, after, clock, threads, modes)");
        return NULL;
    }
    PyObject *pair = PyTuple_New(PAIR_OF_STEPS);
    for (Py_ssize_t k = 0; pair && k < n; k++)
        PyTuple_SetItem(pair, k, Py_NewRef(arguments[k]));
    PyObject *begin = pair ? PyCFunction_NewEx(&before, pair, NULL) : NULL;
    PyObject *end = begin ? PyCFunction_NewEx(&after, pair, NULL) : NULL;
    PyObject *result = end ? PyTuple_Pack(2, begin, end) : NULL;
    Py_XDECREF(end);
    Py_XDECREF(begin);
    Py_XDECREF(pair);
    return result;
}
