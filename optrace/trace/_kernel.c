/* Measures tensors in one pass over memory: statistics, fingerprint and sample of each job (see measure.py).
 *
 * One function, measure(jobs, rows, threads), over two arrays of the structures below. A tensor is cut into blocks of
 * BLOCK elements; (job, block) pairs are handed out to the threads by a counter, each block leaves a Tally, and those of
 * a job are put together in the order of its blocks: results do not depend on the number of threads. Within a block,
 * chunks small enough for the first-level cache are read once from memory and gone over by the loops of _kernel_body.h.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "_kernel_jobs.h"
#include "_kernel_chunk.h"
#include "_kernel_block.h"
#include "_kernel_threads.h"
#include "_kernel_team.h"
#include "_kernel_apart.h"
#include "_kernel_elements.h"
#include "_kernel_exchange.h"
#include "_kernel_look.h"
#include "_kernel_rows.h"
#include "_kernel_window.h"
#include "_kernel_order.h"
#include "_kernel_living.h"
#include "_kernel_memory.h"
#include "_kernel_observe.h"
#include "_kernel_observed.h"

/* ---- measuring ------------------------------------------------------------------------------------------------- */

typedef struct {
    const Job *jobs;
    Layout *const *layouts; /* one for each job, NULL where it has none; or NULL where no job has one */
    size_t n_jobs, n_units;
    Row *rows;
    int stream; /* copies go past the cache */
    int teamed; /* the threads are those of the team */
    struct Unit {
        size_t job;
        int64_t block;
        Tally first, second;
    } *units;
    atomic_size_t next;
} Work;

/* Makes stores past the cache visible to other threads before anything that follows. */
static void finish_stores(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

static inline int64_t n_blocks(const Job *job)
{
    return (job->numel + BLOCK - 1) / BLOCK;
}

static inline const Layout *layout_of(const Work *work, size_t job)
{
    return work->layouts ? work->layouts[job] : NULL;
}

static void run_alone(const Work *work)
{
    for (size_t j = 0; j < work->n_jobs; j++) {
        const Job *job = &work->jobs[j];
        Tally first = EMPTY, second = EMPTY;
        for (int64_t block = 0; block < n_blocks(job); block++)
            run_block(job, layout_of(work, j), block, work->stream, &first, &second);
        finish_job(job, layout_of(work, j), &first, &second, work->rows);
    }
    finish_stores();
}

static void *run_units(void *argument)
{
    Work *work = argument;
    const uint64_t before = plain_floats();
    size_t number;
    while ((number = atomic_fetch_add(&work->next, 1)) < work->n_units) {
        struct Unit *unit = &work->units[number];
        unit->first = unit->second = EMPTY;
        run_block(&work->jobs[unit->job], layout_of(work, unit->job), unit->block, work->stream, &unit->first,
                  &unit->second);
    }
    finish_stores();
    restore_floats(before);
    return NULL;
}

static void add_tally(Tally *sum, const Tally *tally)
{
    sum->total += tally->total;
    sum->absolute += tally->absolute;
    sum->squares += tally->squares;
    sum->low = tally->low < sum->low ? tally->low : sum->low;
    sum->high = tally->high > sum->high ? tally->high : sum->high;
    sum->n_nan += tally->n_nan;
    sum->n_inf += tally->n_inf;
    sum->n_zero += tally->n_zero;
    sum->fingerprint += tally->fingerprint;
}

static void run_together(Work *work, int threads)
{
    (work->teamed ? in_team : in_threads)(run_units, work, threads);
    size_t number = 0;
    for (size_t j = 0; j < work->n_jobs; j++) {
        Tally first = EMPTY, second = EMPTY;
        for (; number < work->n_units && work->units[number].job == j; number++) {
            add_tally(&first, &work->units[number].first);
            add_tally(&second, &work->units[number].second);
        }
        finish_job(&work->jobs[j], layout_of(work, j), &first, &second, work->rows);
    }
}

/* ---- Python ---------------------------------------------------------------------------------------------------- */

static int check_job(const Job *job, Py_ssize_t number, int64_t n_rows)
{
    if (job->op >= N_OPS)
        PyErr_Format(PyExc_ValueError, "job %zd: unknown op %u", number, (unsigned)job->op);
    else if (job->dtype >= N_DTYPES)
        PyErr_Format(PyExc_ValueError, "job %zd: unknown dtype code %u", number, (unsigned)job->dtype);
    else if (job->row < 0 || job->row >= n_rows)
        PyErr_Format(PyExc_ValueError, "job %zd: row %lld of %lld", number, (long long)job->row, (long long)n_rows);
    else if (job->op == UPDATE && (job->row2 < 0 || job->row2 >= n_rows))
        PyErr_Format(PyExc_ValueError, "job %zd: row2 %lld of %lld", number, (long long)job->row2, (long long)n_rows);
    else if (job->numel < 0)
        PyErr_Format(PyExc_ValueError, "job %zd: numel %lld", number, (long long)job->numel);
    else if (job->numel && (!job->a || ((job->op == UPDATE || job->op == COPY) && !job->b)))
        PyErr_Format(PyExc_ValueError, "job %zd: no address for %lld elements", number, (long long)job->numel);
    else
        return 1;
    return 0;
}

/* Reads the layout of a job into memory of its own; NULL with an error set where it does not fit. */
static Layout *read_layout(const Job *job, Py_ssize_t number)
{
    const int64_t *given = (const int64_t *)(uintptr_t)job->layout;
    if (given[0] < 0 || given[0] > MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "job %zd: a layout of %lld dimensions", number, (long long)given[0]);
        return NULL;
    }
    Layout *layout = malloc(sizeof *layout);
    if (!layout)
        return (Layout *)PyErr_NoMemory();
    const int64_t *sizes = given + 1, *strides = sizes + given[0];
    int64_t numel = 1;
    int last = -1, fits = 1;
    for (int64_t d = 0; d < given[0]; d++) {
        fits = fits && sizes[d] >= 0 && (sizes[d] < 2 || strides[d] > 0) &&
               !__builtin_mul_overflow(numel, sizes[d], &numel);
        if (!fits || sizes[d] == 1)
            continue;
        if (last >= 0 && layout->strides[last] == sizes[d] * strides[d]) {
            layout->sizes[last] *= sizes[d];
        } else {
            last++;
            layout->sizes[last] = sizes[d];
        }
        layout->strides[last] = strides[d];
    }
    if (!fits || numel != job->numel) {
        PyErr_Format(PyExc_ValueError, "job %zd: its layout does not describe its %lld elements", number,
                     (long long)job->numel);
        free(layout);
        return NULL;
    }
    if (last < 0) {
        layout->sizes[++last] = 1;
        layout->strides[last] = 1;
    }
    layout->ndim = last + 1;
    return layout;
}

static int run(Work *work, int64_t bytes, int threads)
{
    const size_t n_units = work->n_units;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if ((size_t)threads > n_units)
        threads = (int)n_units;
    if (threads > 1 && bytes >= (work->teamed ? TEAM_FROM : ONE_THREAD_BELOW)) {
        work->units = malloc(n_units * sizeof *work->units);
        if (!work->units)
            return -1;
        size_t number = 0;
        for (size_t j = 0; j < work->n_jobs; j++)
            for (int64_t block = 0; block < n_blocks(&work->jobs[j]); block++, number++) {
                work->units[number].job = j;
                work->units[number].block = block;
            }
    }
    PyThreadState *state = bytes < KEEP_GIL_BELOW ? NULL : PyEval_SaveThread();
    const uint64_t before = plain_floats();
    if (work->units)
        run_together(work, threads);
    else
        run_alone(work);
    restore_floats(before);
    if (state)
        PyEval_RestoreThread(state);
    free(work->units);
    return 0;
}

static PyObject *measure_jobs(const Py_buffer *jobs, const Py_buffer *rows, long threads)
{
    const int64_t n_rows = rows->len / (Py_ssize_t)sizeof(Row);
    Work work = {.jobs = jobs->buf, .rows = rows->buf, .n_jobs = (size_t)jobs->len / sizeof(Job)};
    Layout **layouts = NULL;
    PyObject *result = NULL;
    int64_t bytes = 0, largest = 0;
    if (jobs->len % (Py_ssize_t)sizeof(Job) || rows->len % (Py_ssize_t)sizeof(Row)) {
        PyErr_SetString(PyExc_ValueError, "jobs must be an array of dtype JOB and rows one of dtype ROW");
        return NULL;
    }
    for (size_t j = 0; j < work.n_jobs; j++) {
        const Job *job = &work.jobs[j];
        if (!check_job(job, (Py_ssize_t)j, n_rows))
            goto done;
        work.n_units += (size_t)n_blocks(job);
        largest = job->numel > largest ? job->numel : largest;
        bytes += job->numel * ITEMSIZE[job->dtype] * (job->op == UPDATE || job->op == COPY ? 2 : 1);
        if (job->layout) {
            if (!layouts && !(layouts = calloc(work.n_jobs, sizeof *layouts))) {
                PyErr_NoMemory();
                goto done;
            }
            if (!(layouts[j] = read_layout(job, (Py_ssize_t)j)))
                goto done;
        }
    }
    work.layouts = layouts;
    work.stream = bytes >= STREAM_FROM;
    work.teamed = team && largest >= TEAM_TENSOR;
    if (run(&work, bytes, threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : (int)threads) < 0)
        PyErr_NoMemory();
    else
        result = Py_NewRef(Py_None);
done:
    for (size_t j = 0; layouts && j < work.n_jobs; j++)
        free(layouts[j]);
    free(layouts);
    return result;
}

/* measure_jobs of two arrays of Python's; -1 with an error set. */
static int measure_arrays(PyObject *of_jobs, PyObject *of_rows, long threads)
{
    Py_buffer jobs, rows;
    PyObject *result = NULL;
    if (PyObject_GetBuffer(of_jobs, &jobs, PyBUF_SIMPLE) < 0)
        return -1;
    if (PyObject_GetBuffer(of_rows, &rows, PyBUF_WRITABLE) == 0) {
        result = measure_jobs(&jobs, &rows, threads);
        PyBuffer_Release(&rows);
    }
    PyBuffer_Release(&jobs);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static PyObject *measure(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    (void)module;
    if (n != 3) {
        PyErr_SetString(PyExc_TypeError, "measure(jobs, rows, threads)");
        return NULL;
    }
    const long threads = PyLong_AsLong(arguments[2]);
    if ((threads == -1 && PyErr_Occurred()) || measure_arrays(arguments[0], arguments[1], threads) < 0)
        return NULL;
    return Py_NewRef(Py_None);
}

#include "_kernel_again.h"
#include "_kernel_steps.h"

/* Names the instruction set in use, or takes another one that this processor has: the tests compare them. */
static PyObject *instructions(PyObject *module, PyObject *const *arguments, Py_ssize_t n)
{
    const char *name = NULL;
    (void)module;
    if (n && !(name = PyUnicode_AsUTF8AndSize(arguments[0], NULL)))
        return NULL;
    const Loops *wanted = NULL;
    if (!name || !strcmp(name, "plain"))
        wanted = &loops_plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if ((!name || !strcmp(name, "avx2")) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c"))
        wanted = &loops_avx2;
    if ((!name || !strcmp(name, "avx512")) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        wanted = &loops_avx512;
#endif
    if (!wanted)
        return PyErr_Format(PyExc_ValueError, "this processor or build has no %s", name);
    loops = wanted;
#if defined(__x86_64__)
    return PyUnicode_FromString(wanted == &loops_avx512 ? "avx512" : wanted == &loops_avx2 ? "avx2" : "plain");
#else
    return PyUnicode_FromString("plain");
#endif
}

static PyMethodDef METHODS[] = {
    {"measure", (PyCFunction)(void (*)(void))measure, METH_FASTCALL, "measure(jobs, rows, threads): see measure.py"},
    {"join_team", join_team, METH_O,
     "join_team(address): measure in this thread with the OpenMP runtime whose GOMP_parallel is there; 0: leave it"},
    {"instructions", (PyCFunction)(void (*)(void))instructions, METH_FASTCALL,
     "instructions([name]): choose the instruction set, the best one without a name; return its name"},
    {"before_again", (PyCFunction)(void (*)(void))before_again, METH_FASTCALL,
     "before_again(known, groups, state, threads, plans): see steady.py"},
    {"after_again", (PyCFunction)(void (*)(void))after_again, METH_FASTCALL,
     "after_again(known, groups, state, threads, plans): see steady.py"},
    {"fill_tensors", (PyCFunction)(void (*)(void))fill_tensors, METH_FASTCALL,
     "fill_tensors(message, places, step, rows): see batches.py"},
    {"fill_groups", (PyCFunction)(void (*)(void))fill_groups, METH_FASTCALL,
     "fill_groups(message, known, groups): see group_batches.py"},
    {"fill_step", (PyCFunction)(void (*)(void))fill_step, METH_FASTCALL,
     "fill_step(message, fields, step_at, optimizer_at, step, optimizer, values): see batches.py"},
    {"fill_events", (PyCFunction)(void (*)(void))fill_events, METH_FASTCALL,
     "fill_events(message, places, kinds, sizes, events): see batches.py"},
    {"write_order", (PyCFunction)(void (*)(void))write_order, METH_FASTCALL,
     "write_order(order, step, optimizer, values, events, limit): see standing.py"},
    {"map_window", (PyCFunction)(void (*)(void))map_window, METH_FASTCALL, "map_window(place, length): see stream.py"},
    {"append_message", (PyCFunction)(void (*)(void))append_message, METH_FASTCALL,
     "append_message(place, window, message): see stream.py"},
    {"observed", (PyCFunction)(void (*)(void))observed, METH_FASTCALL,
     "observed(kind, listeners, calls, slow_begin, slow_end, function, fail, failed): see recorder/plain_calls.py"},
    {"plain_steps", (PyCFunction)(void (*)(void))plain_steps, METH_FASTCALL,
     "plain_steps(known, open, over, before, after, clock, threads, modes): see recorder/plain_steps.py"},
    {"living", living, METH_O, "living(classes): see recorder/living.py"},
    {"unchanged", unchanged, METH_O, "unchanged(last): see recorder/generators.py"},
    {"sample_moments", (PyCFunction)(void (*)(void))sample_moments, METH_FASTCALL,
     "sample_moments(samples, places, flags, out): see compare/samples.py"},
    {"samples_apart", (PyCFunction)(void (*)(void))samples_apart, METH_FASTCALL,
     "samples_apart(samples_a, samples_b, places, flags, limits, out): see compare/samples.py"},
    {"elements_apart", (PyCFunction)(void (*)(void))elements_apart, METH_FASTCALL,
     "elements_apart(tensors, out, threads): see compare/elements.py"},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    const uint64_t before = plain_floats();
    fill_minifloats();
    fill_fractions();
    restore_floats(before);
    if (pthread_atfork(NULL, NULL, leave_team))
        return PyErr_NoMemory(), -1;
    PyObject *name = instructions(module, NULL, 0);
    Py_XDECREF(name);
    return name && intern_words() == 0 && intern_memory() == 0 && intern_steps() == 0 ? intern_observed() : -1;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_doc = "Measures tensors in one pass over memory.",
    .m_slots = SLOTS,
    .m_methods = METHODS,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&MODULE);
}
