/* One chunk of a tensor: its values as doubles, its words, its statistics, with the loops of this processor. */

#define W 2
#define ISA(name) name##_plain
#define TARGET
#include "_kernel_body.h"
#undef W
#undef ISA
#undef TARGET

#if defined(__x86_64__)
#define HAVE_F16C
#define W 4
#define ISA(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma,bmi2,f16c")))
#include "_kernel_body.h"
#undef W
#undef ISA
#undef TARGET

#define W 8
#define ISA(name) name##_avx512
#if defined(__clang__)
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2,f16c"), min_vector_width(512)))
#else
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2,f16c,prefer-vector-width=512")))
#endif
#include "_kernel_body.h"
#endif

static const Loops *loops = &loops_plain;
static uint32_t minifloats[E8M0FNU + 1 - E4M3FN][256];

/* ---- values of every dtype ------------------------------------------------------------------------------------- */

static uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void fill_minifloats(void)
{
    for (uint32_t code = 0; code < 256; code++) {
        const uint32_t sign = (code & 0x80) << 24, quiet = UINT32_C(0x7FC00000);
        const int e4 = code >> 3 & 15, m3 = code & 7, e5 = code >> 2 & 31, m2 = code & 3;
        const float four = ldexpf((float)(m3 + (e4 ? 8 : 0)), (e4 ? e4 : 1) - 7 - 3);
        const float five = ldexpf((float)(m2 + (e5 ? 4 : 0)), (e5 ? e5 : 1) - 16 - 2);
        minifloats[E4M3FN - E4M3FN][code] = ((code & 0x7F) == 0x7F ? quiet : float_bits(four)) | sign;
        minifloats[E5M2 - E4M3FN][code] = widened_half(code << 8);
        minifloats[E4M3FNUZ - E4M3FN][code] = (code == 0x80 ? quiet : float_bits(four / 2)) | sign;
        minifloats[E5M2FNUZ - E4M3FN][code] = (code == 0x80 ? quiet : float_bits(five)) | sign;
        minifloats[E8M0FNU - E4M3FN][code] = code == 255 ? quiet : float_bits(ldexpf(1, (int)code - 127));
    }
}

static int is_narrow(uint32_t dtype)
{
    return dtype == FLOAT16 || dtype == BFLOAT16 || dtype >= E4M3FN;
}

/* float32 bits of n narrow floats. */
static void widen(uint32_t dtype, const void *memory, uint32_t *wide, size_t n)
{
    if (dtype == BFLOAT16)
        loops->widen_brain(memory, wide, n);
    else if (dtype == FLOAT16)
        loops->widen_half(memory, wide, n);
    else
        for (size_t k = 0; k < n; k++)
            wide[k] = minifloats[dtype - E4M3FN][((const uint8_t *)memory)[k]];
}

#define CONVERT(type)                                                                                                  \
    do {                                                                                                               \
        for (size_t k = 0; k < n; k++) {                                                                               \
            type element;                                                                                              \
            memcpy(&element, (const char *)memory + k * sizeof element, sizeof element);                               \
            values[k] = (double)element;                                                                               \
        }                                                                                                              \
    } while (0)

/* n <= CHUNK elements as doubles. */
static void to_doubles(uint32_t dtype, const void *memory, double *values, size_t n)
{
    uint32_t wide[CHUNK];
    if (is_narrow(dtype)) {
        widen(dtype, memory, wide, n);
        memory = wide;
        dtype = FLOAT32;
    }
    switch (dtype) {
    case FLOAT64: memcpy(values, memory, n * sizeof *values); break;
    case FLOAT32: CONVERT(float); break;
    case INT8: CONVERT(int8_t); break;
    case INT16: CONVERT(int16_t); break;
    case INT32: CONVERT(int32_t); break;
    case INT64: CONVERT(int64_t); break;
    case UINT16: CONVERT(uint16_t); break;
    case UINT32: CONVERT(uint32_t); break;
    case UINT64: CONVERT(uint64_t); break;
    default: CONVERT(uint8_t); break;
    }
}

/* ---- one chunk ------------------------------------------------------------------------------------------------- */

/* Counts and range of a chunk that holds NaNs or infinities; those become zeros in `cleaned`. */
static void screen(const double *values, size_t n, double *cleaned, Part *part)
{
    for (size_t k = 0; k < n; k++) {
        const double x = values[k];
        cleaned[k] = 0;
        if (isnan(x)) {
            part->n_nan++;
        } else if (isinf(x)) {
            part->n_inf++;
        } else {
            part->n_zero += x == 0;
            part->low = x < part->low ? x : part->low;
            part->high = x > part->high ? x : part->high;
            cleaned[k] = x;
        }
    }
}

static void statistics64(const void *values, size_t n, Part *part)
{
    double cleaned[CHUNK];
    if (!loops->range64(values, n, part)) {
        memcpy(cleaned, values, n * sizeof *cleaned);
        screen(cleaned, n, cleaned, part);
        values = cleaned;
    }
    loops->sums64(values, n, part);
}

static void statistics32(const void *bits, size_t n, Part *part)
{
    if (loops->range32(bits, n, part)) {
        loops->sums32(bits, n, part);
    } else {
        double values[CHUNK];
        to_doubles(FLOAT32, bits, values, n);
        screen(values, n, values, part);
        loops->sums64(values, n, part);
    }
}

typedef uint64_t Hash(const void *, size_t, uint64_t, uint64_t);

/* Fingerprint of the words of elements [position, position + n) of a job. */
static uint64_t hash_words(Hash *hash, size_t width, const Job *job, const Layout *layout, const void *words,
                           int64_t position, size_t n)
{
    const uint64_t base = (uint64_t)job->index_base + 1;
    if (!layout)
        return hash(words, n, (base + (uint64_t)position) * GOLDEN, GOLDEN);
    const int last = layout->ndim - 1;
    const int64_t length = layout->sizes[last];
    const uint64_t step = (uint64_t)layout->strides[last];
    uint64_t sum = 0;
    while (n) {
        const int64_t start = position % length;
        int64_t rest = position / length;
        uint64_t index = base + (uint64_t)start * step;
        for (int d = last - 1; d >= 0; d--) {
            index += (uint64_t)(rest % layout->sizes[d]) * (uint64_t)layout->strides[d];
            rest /= layout->sizes[d];
        }
        const size_t run = (size_t)(length - start) < n ? (size_t)(length - start) : n;
        sum += hash(words, run, index * GOLDEN, step * GOLDEN);
        words = (const char *)words + run * width;
        position += (int64_t)run;
        n -= run;
    }
    return sum;
}

static uint64_t fingerprint(const Job *job, const Layout *layout, const void *memory, int64_t position, size_t n)
{
    uint32_t wide[CHUNK];
    if (is_narrow(job->dtype)) {
        widen(job->dtype, memory, wide, n);
        return hash_words(loops->hash32, 4, job, layout, wide, position, n);
    }
    switch (ITEMSIZE[job->dtype]) {
    case 8: return hash_words(loops->hash64, 8, job, layout, memory, position, n);
    case 4: return hash_words(loops->hash32, 4, job, layout, memory, position, n);
    case 2: return hash_words(loops->hash16, 2, job, layout, memory, position, n);
    default: return hash_words(loops->hash8, 1, job, layout, memory, position, n);
    }
}

/* Statistics and fingerprint of the elements themselves. */
static void measure_chunk(const Job *job, const Layout *layout, const void *memory, int64_t position, size_t n,
                          Part *part)
{
    uint32_t wide[CHUNK];
    double values[CHUNK];
    if (job->dtype == FLOAT32 || is_narrow(job->dtype)) {
        if (job->dtype != FLOAT32) {
            widen(job->dtype, memory, wide, n);
            memory = wide;
        }
        part->fingerprint += hash_words(loops->hash32, 4, job, layout, memory, position, n);
        statistics32(memory, n, part);
        return;
    }
    part->fingerprint += fingerprint(job, layout, memory, position, n);
    if (job->dtype != FLOAT64) {
        to_doubles(job->dtype, memory, values, n);
        memory = values;
    }
    statistics64(memory, n, part);
}

static void subtract_chunk(uint32_t dtype, const void *after, const void *before, double *update, size_t n)
{
    if (dtype == FLOAT32) {
        loops->difference32(after, before, update, n);
    } else if (dtype == FLOAT64) {
        loops->difference64(after, before, update, n);
    } else {
        double a[CHUNK], b[CHUNK];
        to_doubles(dtype, after, a, n);
        to_doubles(dtype, before, b, n);
        loops->difference64(a, b, update, n);
    }
}

static void measure_update(const Job *job, const Layout *layout, const void *after, const void *before,
                           int64_t position, size_t n, Part *part)
{
    double update[CHUNK];
    const int64_t nans = part->n_nan;
    subtract_chunk(job->dtype, after, before, update, n);
    statistics64(update, n, part);
    if (part->n_nan != nans)
        for (size_t k = 0; k < n; k++)
            if (isnan(update[k])) {
                const uint64_t bits = NAN_BITS;
                memcpy(&update[k], &bits, sizeof bits);
            }
    part->fingerprint += hash_words(loops->hash64, 8, job, layout, update, position, n);
}
