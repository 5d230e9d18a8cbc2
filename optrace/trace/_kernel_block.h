/* One block of a job, and how blocks become a row. */

/* The sums of a block with its lanes put together. */
typedef struct {
    double total, absolute, squares, low, high;
    int64_t n_nan, n_inf, n_zero;
    uint64_t fingerprint;
} Tally;

static const Tally EMPTY = {.low = INFINITY, .high = -INFINITY};

static void start_part(Part *part)
{
    memset(part, 0, sizeof *part);
    part->low = INFINITY;
    part->high = -INFINITY;
}

static double fold(double *lanes)
{
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++)
            lanes[l] += lanes[l + half];
    return lanes[0];
}

static void add_part(Tally *tally, Part *part)
{
    tally->total += fold(part->total);
    tally->absolute += fold(part->absolute);
    tally->squares += fold(part->squares);
    tally->low = part->low < tally->low ? part->low : tally->low;
    tally->high = part->high > tally->high ? part->high : tally->high;
    tally->n_nan += part->n_nan;
    tally->n_inf += part->n_inf;
    tally->n_zero += part->n_zero;
    tally->fingerprint += part->fingerprint;
}

/* Copies a chunk; with `stream` past the cache, where the address allows: a large copy has left the cache before it is
 * wanted, and a line that is written whole need not be read first. */
static void copy_chunk(char *to, const char *from, size_t bytes, int stream)
{
#if defined(__x86_64__)
    if (stream && bytes % 64 == 0 && (uintptr_t)to % 16 == 0) {
        for (size_t k = 0; k < bytes; k += 64)
            for (size_t q = k; q < k + 64; q += 16)
                _mm_stream_si128((__m128i *)(to + q), _mm_loadu_si128((const __m128i_u *)(from + q)));
        return;
    }
#else
    (void)stream;
#endif
    memcpy(to, from, bytes);
}

/* Runs block `block` of a job; `first` and `second` gain what it gives for rows[row] and rows[row2]. */
static void run_block(const Job *job, const Layout *layout, int64_t block, int stream, Tally *first, Tally *second)
{
    const size_t size = ITEMSIZE[job->dtype];
    int64_t position = block * BLOCK;
    const int64_t end = job->numel - position > BLOCK ? position + BLOCK : job->numel;
    Part part, part2;
    if (job->op == STAT || job->op == UPDATE)
        start_part(&part);
    if (job->op == UPDATE)
        start_part(&part2);
    for (; position < end; position += CHUNK) {
        const size_t n = end - position < CHUNK ? (size_t)(end - position) : CHUNK;
        const char *a = (const char *)(uintptr_t)job->a + (size_t)position * size;
        char *b = (char *)(uintptr_t)job->b + (size_t)position * size;
        switch (job->op) {
        case STAT: measure_chunk(job, layout, a, position, n, &part); break;
        case UPDATE:
            measure_chunk(job, layout, a, position, n, &part2);
            measure_update(job, layout, a, b, position, n, &part);
            break;
        default:
            first->fingerprint += fingerprint(job, layout, a, position, n);
            if (job->op == COPY)
                copy_chunk(b, a, n * size, stream);
        }
    }
    if (job->op == STAT || job->op == UPDATE)
        add_part(first, &part);
    if (job->op == UPDATE)
        add_part(second, &part2);
}

static double value_at(const Job *job, int update, int64_t position)
{
    const size_t offset = (size_t)position * ITEMSIZE[job->dtype];
    double value, before;
    to_doubles(job->dtype, (const char *)(uintptr_t)job->a + offset, &value, 1);
    if (update) {
        to_doubles(job->dtype, (const char *)(uintptr_t)job->b + offset, &before, 1);
        value -= before;
    }
    return isnan(value) ? NAN : value;
}

/* The sums again, of values divided by 2^exponent: for tensors whose squares would overflow or vanish. */
static void scaled_sums(const Job *job, int update, int exponent, Tally *tally)
{
    tally->total = tally->absolute = tally->squares = 0;
    for (int64_t position = 0; position < job->numel;) {
        Part part;
        start_part(&part);
        for (int64_t k = 0; k < BLOCK && position < job->numel; k++, position++) {
            double x = value_at(job, update, position);
            if (isfinite(x)) {
                x = ldexp(x, -exponent);
                part.total[k % LANES] += x;
                part.absolute[k % LANES] += fabs(x);
                part.squares[k % LANES] += x * x;
            }
        }
        tally->total += fold(part.total);
        tally->absolute += fold(part.absolute);
        tally->squares += fold(part.squares);
    }
}

/* Position in memory of a logical index of the whole tensor, or -1 where this piece does not hold it. */
static int64_t position_of(const Job *job, const Layout *layout, int64_t index)
{
    int64_t rest = index - job->index_base, position = 0, place[MAX_DIMS];
    if (rest < 0)
        return -1;
    if (!layout)
        return rest < job->numel ? rest : -1;
    for (int d = 0; d < layout->ndim; d++)
        place[d] = -1;
    for (int done = 0; done < layout->ndim; done++) {
        int widest = -1;
        for (int d = 0; d < layout->ndim; d++)
            if (place[d] < 0 && (widest < 0 || layout->strides[d] > layout->strides[widest]))
                widest = d;
        place[widest] = rest / layout->strides[widest];
        rest %= layout->strides[widest];
        if (place[widest] >= layout->sizes[widest])
            return -1;
    }
    for (int d = 0; d < layout->ndim; d++)
        position = position * layout->sizes[d] + place[d];
    return rest ? -1 : position;
}

static double fractions[SAMPLE]; /* where the slots from 2 on lie in a tensor */

static void fill_fractions(void)
{
    for (int slot = 2; slot < SAMPLE; slot++)
        fractions[slot] = fmod((slot - 1) * 0.6180339887498949, 1);
}

/* All elements of a small tensor, which are its sample. */
static void take_all(const Job *job, int update, double *sample)
{
    const size_t n = (size_t)job->numel;
    double before[SAMPLE];
    to_doubles(job->dtype, (const void *)(uintptr_t)job->a, sample, n);
    if (update)
        to_doubles(job->dtype, (const void *)(uintptr_t)job->b, before, n);
    for (size_t k = 0; k < SAMPLE; k++) {
        if (k < n && update)
            sample[k] -= before[k];
        if (k >= n || isnan(sample[k]))
            sample[k] = NAN;
    }
}

static void take_sample(const Job *job, const Layout *layout, int update, double *sample)
{
    const int64_t numel = job->global_numel ? job->global_numel : job->numel;
    if (numel <= SAMPLE && job->numel == numel && !layout && !job->index_base) {
        take_all(job, update, sample);
        return;
    }
    for (int slot = 0; slot < SAMPLE; slot++) {
        int64_t index = slot;
        if (numel > SAMPLE && slot == 1)
            index = numel - 1;
        else if (numel > SAMPLE && slot > 1)
            index = (int64_t)(fractions[slot] * (double)numel);
        const int64_t position = index < numel && job->numel ? position_of(job, layout, index) : -1;
        sample[slot] = position < 0 ? NAN : value_at(job, update, position);
    }
}

static void write_row(const Job *job, const Layout *layout, int update, Tally *tally, Row *row)
{
    const int64_t count = job->numel - tally->n_nan - tally->n_inf;
    int exponent = 0;
    if (count) {
        const double largest = fmax(fabs(tally->low), fabs(tally->high));
        if (largest != 0 && !(largest >= SMALL && largest <= BIG)) {
            frexp(largest, &exponent);
            scaled_sums(job, update, exponent, tally);
        }
    }
    row->mean = count ? ldexp(tally->total / (double)count, exponent) : NAN;
    row->l1 = ldexp(tally->absolute, exponent);
    row->l2 = ldexp(sqrt(tally->squares), exponent);
    row->min = count ? tally->low + 0.0 : NAN;
    row->max = count ? tally->high + 0.0 : NAN;
    row->n_nan = tally->n_nan;
    row->n_inf = tally->n_inf;
    row->n_zero = tally->n_zero;
    row->fingerprint = tally->fingerprint;
    take_sample(job, layout, update, row->sample);
}

static void finish_job(const Job *job, const Layout *layout, Tally *first, Tally *second, Row *rows)
{
    if (job->op == STAT || job->op == UPDATE)
        write_row(job, layout, job->op == UPDATE, first, &rows[job->row]);
    else
        rows[job->row].fingerprint = first->fingerprint;
    if (job->op == UPDATE)
        write_row(job, layout, 0, second, &rows[job->row2]);
}
