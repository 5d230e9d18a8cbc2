/* The loops of the kernel over one chunk in the first-level cache, written for vectors of W 64-bit words.
 *
 * _kernel.c includes this file once for each instruction set, with
 *   W         64-bit words of a vector (2, 4 or 8)
 *   ISA(name) the function's name for this instruction set
 *   TARGET    the attribute that makes the compiler use it
 * All versions give the same bits: integer work does not depend on its order, and sums of floats keep LANES partial
 * sums, element k of a block going to lane k % LANES, whatever W is.
 */

#define VECTOR(type, n) type __attribute__((vector_size(sizeof(type) * (n))))
typedef VECTOR(uint64_t, W) ISA(Words);
typedef VECTOR(double, W) ISA(Doubles);
typedef VECTOR(float, W) ISA(Singles);
typedef VECTOR(uint32_t, W) ISA(Halves);
typedef VECTOR(uint16_t, W) ISA(Shorts);
typedef VECTOR(uint8_t, W) ISA(Bytes);

static inline TARGET ISA(Words) ISA(product)(ISA(Words) z, uint64_t factor)
{
#if W == 4
    /* The two cross products at once, in 32 bits, added up in the upper half: fewer steps than the compilers take. */
    const __m256i wide = _mm256_set1_epi64x((long long)factor), swapped = _mm256_shuffle_epi32(wide, 0xB1);
    const __m256i cross = _mm256_mullo_epi32((__m256i)z, swapped);
    const __m256i upper = _mm256_add_epi32(cross, _mm256_slli_epi64(cross, 32));
    return (ISA(Words))_mm256_add_epi64(_mm256_mul_epu32((__m256i)z, wide),
                                        (__m256i)((ISA(Words))upper & ~UINT64_C(0xFFFFFFFF)));
#else
    return z * factor;
#endif
}

static inline TARGET ISA(Words) ISA(mix)(ISA(Words) z)
{
    z = ISA(product)(z ^ (z >> 30), MUL1);
    z = ISA(product)(z ^ (z >> 27), MUL2);
    return z ^ (z >> 31);
}

/* W elements from memory. The two that matter are spelt out: the compilers' own conversions go by halves of a vector. */
#define DEFINE_LOAD(name, UNIT, RESULT)                                                                                \
    static inline TARGET ISA(RESULT) ISA(name)(const char *at)                                                         \
    {                                                                                                                  \
        ISA(UNIT) unit;                                                                                                \
        memcpy(&unit, at, sizeof unit);                                                                                \
        return __builtin_convertvector(unit, ISA(RESULT));                                                             \
    }

DEFINE_LOAD(words8, Bytes, Words)
DEFINE_LOAD(words16, Shorts, Words)
DEFINE_LOAD(words64, Words, Words)
DEFINE_LOAD(doubles64, Doubles, Doubles)
#if W == 8
static inline TARGET ISA(Words) ISA(words32)(const char *at)
{
    return (ISA(Words))_mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i_u *)at));
}
static inline TARGET ISA(Doubles) ISA(doubles32)(const char *at)
{
    return _mm512_cvtps_pd(_mm256_loadu_ps((const float *)at));
}
#elif W == 4
static inline TARGET ISA(Words) ISA(words32)(const char *at)
{
    return (ISA(Words))_mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i_u *)at));
}
static inline TARGET ISA(Doubles) ISA(doubles32)(const char *at)
{
    return _mm256_cvtps_pd(_mm_loadu_ps((const float *)at));
}
#else
DEFINE_LOAD(words32, Halves, Words)
DEFINE_LOAD(doubles32, Singles, Doubles)
#endif

/* sum + mix(w + counter), where w is not zero. */
static inline TARGET ISA(Words) ISA(add_mixed)(ISA(Words) sum, ISA(Words) w, ISA(Words) counter)
{
    const ISA(Words) mixed = ISA(mix)(w + counter);
#if W == 8
    return (ISA(Words))_mm512_mask_add_epi64((__m512i)sum, _mm512_test_epi64_mask((__m512i)w, (__m512i)w), (__m512i)sum,
                                             (__m512i)mixed);
#else
    return sum + (mixed & ~(ISA(Words))(w == 0));
#endif
}

/* Sum of mix(w + counter + k * step) over the words w != 0 at position k. Where the processor multiplies no vectors of 64
 * bits (W == 2), one word at a time is faster; the empty asm keeps the compiler from making vectors of them. */
#define DEFINE_HASH(name, type, load)                                                                                  \
    static TARGET uint64_t ISA(name)(const void *memory, size_t n, uint64_t counter, uint64_t step)                    \
    {                                                                                                                  \
        const char *at = memory;                                                                                       \
        uint64_t sum = 0;                                                                                              \
        size_t k = 0;                                                                                                  \
        if (W > 2) {                                                                                                   \
            ISA(Words) c0, c1, sum0 = {0}, sum1 = {0};                                                                 \
            for (int l = 0; l < W; l++)                                                                                \
                c0[l] = counter + (uint64_t)l * step;                                                                  \
            c1 = c0 + step * W;                                                                                        \
            for (; k + 2 * W <= n; k += 2 * W, at += 2 * W * sizeof(type)) {                                           \
                sum0 = ISA(add_mixed)(sum0, ISA(load)(at), c0);                                                        \
                sum1 = ISA(add_mixed)(sum1, ISA(load)(at + W * sizeof(type)), c1);                                     \
                c0 += step * (2 * W);                                                                                  \
                c1 += step * (2 * W);                                                                                  \
            }                                                                                                          \
            sum0 += sum1;                                                                                              \
            for (int l = 0; l < W; l++)                                                                                \
                sum += sum0[l];                                                                                        \
            counter += (uint64_t)k * step;                                                                             \
        }                                                                                                              \
        for (; k < n; k++, at += sizeof(type), counter += step) {                                                      \
            type w;                                                                                                    \
            memcpy(&w, at, sizeof w);                                                                                  \
            uint64_t mixed = mix((uint64_t)w + counter);                                                               \
            __asm__("" : "+r"(mixed));                                                                                 \
            sum += w ? mixed : 0;                                                                                      \
        }                                                                                                              \
        return sum;                                                                                                    \
    }

DEFINE_HASH(hash8, uint8_t, words8)
DEFINE_HASH(hash16, uint16_t, words16)
DEFINE_HASH(hash32, uint32_t, words32)
DEFINE_HASH(hash64, uint64_t, words64)

/* Least and greatest value and zeros of a chunk of float32, by comparing bits: unsigned order is the order of magnitudes
 * with every negative above every positive, signed order puts the positives above. Returns 0 where the chunk holds a NaN
 * or an infinity: then nothing is settled. */
static TARGET int ISA(range32)(const uint32_t_any *bits, size_t n, Part *part)
{
    const uint32_t sign = UINT32_C(0x80000000), infinite = UINT32_C(0x7F800000);
    uint32_t least = UINT32_MAX, most = 0, zeros = 0;
    int32_t most_signed = INT32_MIN;
    for (size_t k = 0; k < n; k++) {
        const uint32_t w = bits[k];
        least = w < least ? w : least;
        most = w > most ? w : most;
        most_signed = (int32_t)w > most_signed ? (int32_t)w : most_signed;
        zeros += w << 1 == 0;
    }
    uint32_t low = most, high = least; /* all negative */
    if (most < sign)
        low = least, high = most;
    else if (least < sign)
        high = (uint32_t)most_signed;
    if ((low & ~sign) >= infinite || (high & ~sign) >= infinite)
        return 0;
    float value;
    memcpy(&value, &low, sizeof value);
    part->low = value < part->low ? value : part->low;
    memcpy(&value, &high, sizeof value);
    part->high = value > part->high ? value : part->high;
    part->n_zero += zeros;
    return 1;
}

static inline TARGET ISA(Doubles) ISA(lesser)(ISA(Doubles) x, ISA(Doubles) y)
{
#if W == 8
    return _mm512_min_pd(x, y);
#elif W == 4
    return _mm256_min_pd(x, y);
#elif defined(__x86_64__)
    return _mm_min_pd(x, y);
#else
    const ISA(Words) less = (ISA(Words))(x < y);
    return (ISA(Doubles))(((ISA(Words))x & less) | ((ISA(Words))y & ~less));
#endif
}

/* The same for doubles, by comparing values: 64-bit integers are compared slowly before AVX-512. x - x has no bit set but
 * where x is no finite number. */
static TARGET int ISA(range64)(const double_any *values, size_t n, Part *part)
{
    ISA(Doubles) low = (ISA(Doubles)){0} + INFINITY, high = low;
    ISA(Words) odd = {0}, zeros = {0};
    size_t k = 0;
    for (; k + W <= n; k += W) {
        ISA(Doubles) x;
        memcpy(&x, values + k, sizeof x);
        low = ISA(lesser)(x, low);
        high = ISA(lesser)(-x, high);
        odd |= (ISA(Words))(x - x);
        zeros -= (ISA(Words))(x == 0);
    }
    double least = INFINITY, most = -INFINITY;
    int64_t n_zero = 0, n_odd = 0;
    for (; k < n; k++) {
        const double x = values[k];
        least = x < least ? x : least;
        most = x > most ? x : most;
        n_zero += x == 0;
        n_odd += !isfinite(x);
    }
    for (int l = 0; l < W; l++) {
        least = low[l] < least ? low[l] : least;
        most = -high[l] > most ? -high[l] : most;
        n_zero += (int64_t)zeros[l];
        n_odd += odd[l] != 0;
    }
    if (n_odd)
        return 0;
    part->low = least < part->low ? least : part->low;
    part->high = most > part->high ? most : part->high;
    part->n_zero += n_zero;
    return 1;
}

/* Three sums over two vectors of lanes. */
typedef struct {
    ISA(Doubles) total0, total1, absolute0, absolute1, squares0, squares1;
} ISA(Sums);

static inline TARGET ISA(Doubles) ISA(magnitude)(ISA(Doubles) x)
{
    return (ISA(Doubles))((ISA(Words))x & (~UINT64_C(0) >> 1));
}

/* Sum, sum of magnitudes and sum of squares of finite floats into the lanes of `part`, two vectors of lanes at a time. */
#define DEFINE_SUMS(name, floating, load)                                                                              \
    static TARGET void ISA(name)(const void *memory, size_t n, Part *part)                                             \
    {                                                                                                                  \
        const size_t whole = n / LANES * LANES;                                                                        \
        for (int lane = 0; whole && lane < LANES; lane += 2 * W) {                                                     \
            const char *at = (const char *)memory + (size_t)lane * sizeof(floating);                                   \
            ISA(Sums) s;                                                                                               \
            memcpy(&s.total0, part->total + lane, sizeof s.total0);                                                    \
            memcpy(&s.total1, part->total + lane + W, sizeof s.total1);                                                \
            memcpy(&s.absolute0, part->absolute + lane, sizeof s.absolute0);                                           \
            memcpy(&s.absolute1, part->absolute + lane + W, sizeof s.absolute1);                                       \
            memcpy(&s.squares0, part->squares + lane, sizeof s.squares0);                                              \
            memcpy(&s.squares1, part->squares + lane + W, sizeof s.squares1);                                          \
            for (size_t k = 0; k < whole; k += LANES, at += LANES * sizeof(floating)) {                                \
                const ISA(Doubles) x = ISA(load)(at), y = ISA(load)(at + W * sizeof(floating));                        \
                s.total0 += x;                                                                                         \
                s.total1 += y;                                                                                         \
                s.absolute0 += ISA(magnitude)(x);                                                                      \
                s.absolute1 += ISA(magnitude)(y);                                                                      \
                s.squares0 += x * x;                                                                                   \
                s.squares1 += y * y;                                                                                   \
            }                                                                                                          \
            memcpy(part->total + lane, &s.total0, sizeof s.total0);                                                    \
            memcpy(part->total + lane + W, &s.total1, sizeof s.total1);                                                \
            memcpy(part->absolute + lane, &s.absolute0, sizeof s.absolute0);                                           \
            memcpy(part->absolute + lane + W, &s.absolute1, sizeof s.absolute1);                                       \
            memcpy(part->squares + lane, &s.squares0, sizeof s.squares0);                                              \
            memcpy(part->squares + lane + W, &s.squares1, sizeof s.squares1);                                          \
        }                                                                                                              \
        for (size_t k = whole; k < n; k++) {                                                                           \
            floating single;                                                                                           \
            memcpy(&single, (const char *)memory + k * sizeof single, sizeof single);                                  \
            const double x = single;                                                                                   \
            part->total[k % LANES] += x;                                                                               \
            part->absolute[k % LANES] += fabs(x);                                                                      \
            part->squares[k % LANES] += x * x;                                                                         \
        }                                                                                                              \
    }

DEFINE_SUMS(sums32, float, doubles32)
DEFINE_SUMS(sums64, double, doubles64)

static TARGET void ISA(difference32)(const float_any *after, const float_any *before, double *update, size_t n)
{
    size_t k = 0;
    for (; k + W <= n; k += W) {
        const ISA(Doubles) d = ISA(doubles32)((const char *)(after + k)) - ISA(doubles32)((const char *)(before + k));
        memcpy(update + k, &d, sizeof d);
    }
    for (; k < n; k++)
        update[k] = (double)after[k] - (double)before[k];
}

static TARGET void ISA(difference64)(const double_any *after, const double_any *before, double *update, size_t n)
{
    for (size_t k = 0; k < n; k++)
        update[k] = after[k] - before[k];
}

static TARGET void ISA(widen_brain)(const uint16_t_any *bits, uint32_t *wide, size_t n)
{
    for (size_t k = 0; k < n; k++)
        wide[k] = (uint32_t)bits[k] << 16;
}

/* float16 to float32, exactly: the shifted exponent is put right by a product with 2^112, subnormals too. */
static TARGET void ISA(widen_half)(const uint16_t_any *bits, uint32_t *wide, size_t n)
{
    size_t k = 0;
#if defined(HAVE_F16C) && W == 8
    for (; k + 16 <= n; k += 16)
        _mm512_storeu_ps(wide + k, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)(bits + k))));
#elif defined(HAVE_F16C) && W == 4
    for (; k + 8 <= n; k += 8)
        _mm256_storeu_ps((float *)(wide + k), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(bits + k))));
#endif
    for (; k < n; k++)
        wide[k] = widened_half(bits[k]);
}

static TARGET void ISA(widen_single)(const void *memory, double *wide, size_t n)
{
    const float_any *singles = memory;
    size_t k = 0;
    for (; k + W <= n; k += W) {
        const ISA(Doubles) x = ISA(doubles32)((const char *)(singles + k));
        memcpy(wide + k, &x, sizeof x);
    }
    for (; k < n; k++)
        wide[k] = singles[k];
}

#include "_kernel_apart_body.h"

static const Loops ISA(loops) = {
    ISA(hash8),        ISA(hash16),       ISA(hash32),       ISA(hash64),      ISA(range32),     ISA(range64),
    ISA(sums32),       ISA(sums64),       ISA(difference32), ISA(difference64), ISA(widen_brain), ISA(widen_half),
    ISA(widen_single), ISA(unlike8),      ISA(unlike16),     ISA(unlike32),    ISA(unlike64),    ISA(beyond),
    ISA(apart),        ISA(moments_of),   ISA(apart_of),
};

#undef VECTOR
#undef DEFINE_LOAD
#undef DEFINE_HASH
#undef DEFINE_SUMS
