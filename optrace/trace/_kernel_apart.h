/* Comparing the samples of rows of two traces, from Python: see compare/samples.py, and _kernel_apart_body.h. */

#define MAX_BUFFERS 6

/* Opens the buffers of all arguments, the last one writable; 0 with an error set. */
static int open_buffers(PyObject *const *arguments, Py_ssize_t n, Py_ssize_t wanted, Py_buffer *buffers)
{
    if (n != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arrays are wanted, not %zd", wanted, n);
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (PyObject_GetBuffer(arguments[i], &buffers[i], i == n - 1 ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
            while (i--)
                PyBuffer_Release(&buffers[i]);
            return 0;
        }
    return 1;
}

static PyObject *close_buffers(Py_buffer *buffers, Py_ssize_t n, int fine)
{
    for (Py_ssize_t i = 0; i < n; i++)
        PyBuffer_Release(&buffers[i]);
    if (fine)
        return Py_NewRef(Py_None);
    PyErr_SetString(PyExc_ValueError, "the arrays do not fit each other, or a row lies outside of the samples");
    return NULL;
}

static int places_fit(const int32_t *places, size_t n, size_t each, int64_t rows_a, int64_t rows_b)
{
    for (size_t i = 0; i < n * each; i++)
        if (places[i] >= (i % each < N_PLACES ? rows_a : rows_b))
            return 0;
    return 1;
}

/* sample_moments(samples, places, flags, out) */
static PyObject *sample_moments(PyObject *module, PyObject *const *arguments, Py_ssize_t n_arguments)
{
    Py_buffer of[MAX_BUFFERS];
    (void)module;
    if (!open_buffers(arguments, n_arguments, 4, of))
        return NULL;
    const size_t n = (size_t)of[2].len;
    const int32_t *places = of[1].buf;
    const uint8_t *flags = of[2].buf;
    double *out = of[3].buf;
    const int fine = (size_t)of[1].len == n * N_PLACES * sizeof *places && (size_t)of[3].len == n * N_MOMENTS * 8 &&
                     places_fit(places, n, N_PLACES, of[0].len / (8 * SAMPLE), 0);
    if (fine) {
        PyThreadState *state = PyEval_SaveThread();
        for (size_t i = 0; i < n; i++)
            loops->moments_of(of[0].buf, places + i * N_PLACES, flags[i], out + i * N_MOMENTS);
        PyEval_RestoreThread(state);
    }
    return close_buffers(of, 4, fine);
}

/* samples_apart(samples of A, samples of B, places, flags, limits, out) */
static PyObject *samples_apart(PyObject *module, PyObject *const *arguments, Py_ssize_t n_arguments)
{
    Py_buffer of[MAX_BUFFERS];
    (void)module;
    if (!open_buffers(arguments, n_arguments, 6, of))
        return NULL;
    const size_t n = (size_t)of[3].len;
    const double *const samples[2] = {of[0].buf, of[1].buf};
    const int32_t *places = of[2].buf;
    const uint8_t *flags = of[3].buf;
    const double *limits = of[4].buf;
    double *out = of[5].buf;
    const int fine = (size_t)of[2].len == n * 2 * N_PLACES * sizeof *places && (size_t)of[4].len == n * N_LIMITS * 8 &&
                     (size_t)of[5].len == n * N_APART * 8 &&
                     places_fit(places, n, 2 * N_PLACES, of[0].len / (8 * SAMPLE), of[1].len / (8 * SAMPLE));
    if (fine) {
        PyThreadState *state = PyEval_SaveThread();
        for (size_t i = 0; i < n; i++)
            loops->apart_of(samples, places + i * 2 * N_PLACES, flags[i], limits + i * N_LIMITS, out + i * N_APART);
        PyEval_RestoreThread(state);
    }
    return close_buffers(of, 6, fine);
}
