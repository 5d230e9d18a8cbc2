/* Compares the samples of rows of two traces, element by element: see compare/samples.py, which does the same in NumPy.
 *
 * Every operation is one of IEEE arithmetic in the order of the NumPy code, so that both give the same bits.
 */

enum { OWN, BASE, UPDATE_ROW, OTHER, N_PLACES };
enum { NUMEL_A = N_SCALES, NUMEL_B, NAN_A, NAN_B, N_LIMITS }; /* after RMS, EPS, TINY, ATOL, RTOL */
enum { RAW, SLOT, NET, STEP, N_VALID, GAP, MAGNITUDE, SHOWN_A, SHOWN_B, N_APART };
enum { SQUARE, ANY, UPDATE_SQUARE, UPDATE_ANY, N_MOMENTS };

#define IS_BEFORE 1
#define IS_STATE 2

static const double NO_SAMPLE[SAMPLE] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN,
                                         NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};

/* The mean of the squares of the finite ones of 16 numbers, added in pairs; how many there are. */
static double mean_square(const double *x, int *count)
{
    double sums[8], squares[SAMPLE];
    *count = 0;
    for (int k = 0; k < SAMPLE; k++) {
        const int finite = isfinite(x[k]);
        *count += finite;
        squares[k] = finite ? x[k] * x[k] : 0.0;
    }
    for (int k = 0; k < 8; k++)
        sums[k] = squares[k] + squares[k + 8];
    const double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    return sum / (*count ? *count : 1);
}

static inline const double *sample_of(const double *samples, int32_t row)
{
    return row < 0 ? NO_SAMPLE : samples + (size_t)row * SAMPLE;
}

/* The values before the step, from the update where there is one, else from the row that tells them. */
static void values_before(const double *samples, const int32_t *places, uint8_t flags, double *old)
{
    const double *value = sample_of(samples, places[BASE]);
    if (places[UPDATE_ROW] >= 0) {
        const double *change = sample_of(samples, places[UPDATE_ROW]);
        for (int k = 0; k < SAMPLE; k++)
            old[k] = flags & IS_BEFORE ? value[k] + change[k] : value[k] - change[k];
    } else {
        memcpy(old, sample_of(samples, places[OTHER]), SAMPLE * sizeof *old);
    }
}

static void moments_of(const double *samples, const int32_t *places, uint8_t flags, double *out)
{
    double old[SAMPLE], moved[SAMPLE];
    int count;
    const double *own = sample_of(samples, places[OWN]);
    values_before(samples, places, flags, old);
    for (int k = 0; k < SAMPLE; k++)
        moved[k] = own[k] - old[k];
    out[SQUARE] = mean_square(moved, &count);
    out[ANY] = count > 0;
    out[UPDATE_SQUARE] = mean_square(sample_of(samples, places[UPDATE_ROW]), &count);
    out[UPDATE_ANY] = count > 0;
}

static inline double ratio(double difference, double unit)
{
    return difference > 0 ? (unit > 0 && difference < INFINITY ? difference / unit : INFINITY) : 0.0;
}

static void apart_of(const double *const samples[2], const int32_t *places, uint8_t flags, const double *limits,
                     double *out)
{
    double old[2][SAMPLE], magnitude[SAMPLE];
    const double *own[2], *value[2];
    for (int side = 0; side < 2; side++) {
        own[side] = sample_of(samples[side], places[side * N_PLACES + OWN]);
        value[side] = sample_of(samples[side], places[side * N_PLACES + BASE]);
        values_before(samples[side], places + side * N_PLACES, flags, old[side]);
    }
    const double rms = isfinite(limits[RMS]) ? limits[RMS] : 0.0;
    double raw = -INFINITY, net = -INFINITY, step = -INFINITY, gap = 0.0;
    int slot = 0, n_valid = 0;
    for (int k = 0; k < SAMPLE; k++) {
        const double a = own[0][k], b = own[1][k];
        magnitude[k] = fmax(fmax(fabs(value[0][k]), fabs(old[0][k])), fmax(fabs(value[1][k]), fabs(old[1][k])));
        double errors[3] = {-1.0, -1.0, -1.0};
        if (k < limits[NUMEL_A] && k < limits[NUMEL_B] && (!isnan(a) || limits[NAN_A] > 0) && (!isnan(b) || limits[NAN_B] > 0)) {
            const double sum = (isfinite(magnitude[k]) ? magnitude[k] : 0.0) + rms;
            const double scale = sum >= limits[TINY] ? sum : limits[TINY];
            const double unit = limits[EPS] * scale, plain = fabs(a - b);
            const double difference = isfinite(plain) ? plain : a == b || (isnan(a) && isnan(b)) ? 0.0 : INFINITY;
            errors[0] = errors[2] = ratio(difference, unit);
            errors[1] = ratio(difference - (limits[ATOL] + limits[RTOL] * scale), unit);
            if (flags & IS_STATE) {
                const double was = fabs(old[0][k] - old[1][k]);
                double brought = isfinite(was) ? ratio(was, unit) : 0.0;
                brought = isfinite(brought) ? brought : 0.0;
                errors[1] = errors[1] > brought ? errors[1] - brought : 0.0;
                errors[2] = errors[2] > brought ? errors[2] - brought : 0.0;
            }
            gap = plain > gap || isnan(plain) ? plain : gap;
            n_valid++;
        }
        if (errors[0] > raw) {
            raw = errors[0];
            slot = k;
        }
        net = errors[1] > net ? errors[1] : net;
        step = errors[2] > step ? errors[2] : step;
    }
    int count;
    out[RAW] = raw;
    out[SLOT] = slot;
    out[NET] = net;
    out[STEP] = step;
    out[N_VALID] = n_valid;
    out[GAP] = gap;
    out[MAGNITUDE] = mean_square(magnitude, &count);
    out[SHOWN_A] = own[0][slot];
    out[SHOWN_B] = own[1][slot];
}

/* ---- Python ---------------------------------------------------------------------------------------------------- */

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
            moments_of(of[0].buf, places + i * N_PLACES, flags[i], out + i * N_MOMENTS);
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
            apart_of(samples, places + i * 2 * N_PLACES, flags[i], limits + i * N_LIMITS, out + i * N_APART);
        PyEval_RestoreThread(state);
    }
    return close_buffers(of, 6, fine);
}
