/* Compares two whole tensors element by element, in one pass over both: see compare/elements.py, which does the same in
 * NumPy. A tensor is cut into blocks, handed out to the threads by a counter and put together in order; of a block,
 * chunks that are equal to the bit are read and nothing else. */

typedef struct {
    uint64_t at[2][N_PLACES]; /* of either side: the elements, what tells their scale (or NULL: they themselves), the
                                 update and the value before the step (NULL: none) */
    uint32_t dtype[2][N_PLACES];
    int64_t numel, is_state;
    double limits[N_SCALES];
} Tensors;

typedef struct {
    int64_t n_different, first, worst;
    double raw, net, step, gap;
} Difference;

_Static_assert(sizeof(Tensors) == 152 && sizeof(Difference) == 56, "TENSORS and DIFFERENCE of elements.py");

static const Difference EQUAL = {.first = -1};

typedef struct {
    const Tensors *tensors;
    Difference *blocks;
    int64_t n_blocks;
    atomic_llong next;
} Comparison;

static size_t count_unlike(uint32_t dtype, const void *a, const void *b, size_t n)
{
    switch (ITEMSIZE[dtype]) {
    case 8: return loops->unlike64(a, b, n);
    case 4: return loops->unlike32(a, b, n);
    case 2: return loops->unlike16(a, b, n);
    default: return loops->unlike8(a, b, n);
    }
}

/* n elements from `position` on as doubles, zeros behind them up to a multiple of LANES; NULL where there are none. */
static const double *doubles_of(const Tensors *t, int side, int place, int64_t position, size_t n, double *values)
{
    const uint32_t dtype = t->dtype[side][place];
    if (!t->at[side][place])
        return NULL;
    const char *memory = (const char *)(uintptr_t)t->at[side][place] + (size_t)position * ITEMSIZE[dtype];
    if (dtype == FLOAT32)
        loops->widen_single(memory, values, n);
    else
        to_doubles(dtype, memory, values, n);
    for (size_t k = n; k % LANES; k++)
        values[k] = 0;
    return values;
}

/* Position of the first element that differs in bits; there is one. */
static size_t first_unlike(const void *a, const void *b, size_t size)
{
    size_t k = 0;
    while (!memcmp((const char *)a + k * size, (const char *)b + k * size, size))
        k++;
    return k;
}

/* Whether the elements themselves tell their scale, and nothing else does. */
static int is_alone(const Tensors *t)
{
    int alone = 1;
    for (int side = 0; side < 2; side++)
        for (int place = BASE; place < N_PLACES; place++)
            alone = alone && !t->at[side][place];
    return alone;
}

/* `most`: the largest error that this thread has found so far; chunks without a larger one need no division. */
static void compare_chunk(const Tensors *t, int64_t position, size_t n, double *most, Difference *found)
{
    double own[2][CHUNK], value[2][CHUNK], old[2][CHUNK];
    Elements e;
    size_t unlike = 0;
    const uint32_t dtype = t->dtype[0][OWN];
    const int alike = dtype == t->dtype[1][OWN], alone = is_alone(t);
    const int plain = !t->is_state && t->limits[ATOL] == 0 && t->limits[RTOL] == 0;
    memcpy(e.limits, t->limits, sizeof e.limits);
    if (alike) {
        const size_t size = ITEMSIZE[dtype], offset = (size_t)position * size;
        const char *a = (const char *)(uintptr_t)t->at[0][OWN] + offset;
        const char *b = (const char *)(uintptr_t)t->at[1][OWN] + offset;
        if (!memcmp(a, b, n * size))
            return;
        unlike = count_unlike(dtype, a, b, n);
        if (found->first < 0)
            found->first = position + (int64_t)first_unlike(a, b, size);
        if (plain && alone && dtype == FLOAT32 && n == CHUNK) {
            e.single[0] = a;
            e.single[1] = b;
            if (!loops->beyond(&e, n, *most)) {
                found->n_different += (int64_t)unlike;
                found->gap = e.gap > found->gap ? e.gap : found->gap;
                return;
            }
        }
    }
    for (int side = 0; side < 2; side++) {
        e.single[side] = NULL;
        e.own[side] = doubles_of(t, side, OWN, position, n, own[side]);
        e.value[side] = doubles_of(t, side, BASE, position, n, value[side]);
        if (!e.value[side])
            e.value[side] = e.own[side];
        if (t->at[side][UPDATE_ROW]) {
            e.old[side] = doubles_of(t, side, UPDATE_ROW, position, n, old[side]);
            for (size_t k = 0; k < n; k++)
                old[side][k] = e.value[side][k] - old[side][k];
        } else {
            e.old[side] = doubles_of(t, side, OTHER, position, n, old[side]);
        }
        if (!e.old[side] && !alone)
            e.old[side] = e.value[side]; /* nothing more to count in the scale */
    }
    if (!alike) {
        for (size_t k = 0; k < n; k++)
            unlike += memcmp(&own[0][k], &own[1][k], sizeof **own) != 0;
        if (!unlike)
            return;
        if (found->first < 0)
            found->first = position + (int64_t)first_unlike(own[0], own[1], sizeof **own);
    }
    found->n_different += (int64_t)unlike;
    const size_t padded = (n + LANES - 1) / LANES * LANES;
    if (!plain || loops->beyond(&e, padded, *most)) {
        e.is_state = t->is_state != 0;
        e.tolerant = t->limits[ATOL] != 0 || t->limits[RTOL] != 0;
        loops->apart(&e, padded);
        if (e.most_raw > *most) {
            size_t k = 0;
            while (e.raw[k] != e.most_raw)
                k++;
            found->raw = *most = e.most_raw;
            found->worst = position + (int64_t)k;
        }
        found->net = e.most_net > found->net ? e.most_net : found->net;
        found->step = e.most_step > found->step ? e.most_step : found->step;
    }
    found->gap = e.gap > found->gap ? e.gap : found->gap;
}

static void *compare_blocks(void *argument)
{
    Comparison *comparison = argument;
    const Tensors *t = comparison->tensors;
    const uint64_t before = plain_floats();
    double most = 0; /* a thread takes blocks in their order, so an equal error that comes later is not the first */
    int64_t block;
    while ((block = atomic_fetch_add(&comparison->next, 1)) < comparison->n_blocks) {
        Difference *found = &comparison->blocks[block];
        *found = EQUAL;
        const int64_t start = block * BLOCK, end = t->numel - start > BLOCK ? start + BLOCK : t->numel;
        if (t->dtype[0][OWN] == t->dtype[1][OWN]) {
            const size_t size = ITEMSIZE[t->dtype[0][OWN]], offset = (size_t)start * size;
            if (!memcmp((const char *)(uintptr_t)t->at[0][OWN] + offset, (const char *)(uintptr_t)t->at[1][OWN] + offset,
                        (size_t)(end - start) * size))
                continue;
        }
        for (int64_t position = start; position < end; position += CHUNK)
            compare_chunk(t, position, end - position < CHUNK ? (size_t)(end - position) : CHUNK, &most, found);
    }
    restore_floats(before);
    return NULL;
}

static void add_difference(Difference *sum, const Difference *found)
{
    sum->n_different += found->n_different;
    if (sum->first < 0)
        sum->first = found->first;
    if (found->raw > sum->raw) {
        sum->raw = found->raw;
        sum->worst = found->worst;
    }
    sum->net = found->net > sum->net ? found->net : sum->net;
    sum->step = found->step > sum->step ? found->step : sum->step;
    sum->gap = found->gap > sum->gap ? found->gap : sum->gap;
}

static int tensors_fit(const Tensors *t)
{
    int fine = t->numel >= 0;
    for (int side = 0; side < 2; side++) {
        fine = fine && (t->at[side][OWN] || !t->numel);
        for (int place = 0; place < N_PLACES; place++)
            fine = fine && t->dtype[side][place] < N_DTYPES;
    }
    return fine;
}

/* Fills in `result`; -1 without memory. */
static int compare_tensors(const Tensors *t, Difference *result, long threads)
{
    Comparison comparison = {.tensors = t, .n_blocks = (t->numel + BLOCK - 1) / BLOCK};
    *result = EQUAL;
    if (!comparison.n_blocks)
        return 0;
    if (!(comparison.blocks = malloc((size_t)comparison.n_blocks * sizeof *comparison.blocks)))
        return -1;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (threads > comparison.n_blocks)
        threads = (long)comparison.n_blocks;
    if (t->numel * ITEMSIZE[t->dtype[0][OWN]] * 2 < ONE_THREAD_BELOW)
        threads = 1;
    PyThreadState *state = PyEval_SaveThread();
    in_threads(compare_blocks, &comparison, (int)threads);
    for (int64_t block = 0; block < comparison.n_blocks; block++)
        add_difference(result, &comparison.blocks[block]);
    PyEval_RestoreThread(state);
    free(comparison.blocks);
    return 0;
}

/* elements_apart(tensors, out, threads) */
static PyObject *elements_apart(PyObject *module, PyObject *const *arguments, Py_ssize_t n_arguments)
{
    Py_buffer tensors, out;
    PyObject *result = NULL;
    (void)module;
    if (n_arguments != 3) {
        PyErr_SetString(PyExc_TypeError, "elements_apart(tensors, out, threads)");
        return NULL;
    }
    const long threads = PyLong_AsLong(arguments[2]);
    if (threads == -1 && PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(arguments[0], &tensors, PyBUF_SIMPLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(arguments[1], &out, PyBUF_WRITABLE) == 0) {
        if (tensors.len != sizeof(Tensors) || out.len != sizeof(Difference) || !tensors_fit(tensors.buf))
            PyErr_SetString(PyExc_ValueError, "one TENSORS with known dtypes and addresses and one DIFFERENCE are wanted");
        else if (compare_tensors(tensors.buf, out.buf, threads) < 0)
            PyErr_NoMemory();
        else
            result = Py_NewRef(Py_None);
        PyBuffer_Release(&out);
    }
    PyBuffer_Release(&tensors);
    return result;
}
