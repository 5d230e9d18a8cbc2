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

static inline TARGET ISA(Words) ISA(mix)(ISA(Words) z)
{
    z = (z ^ (z >> 30)) * MUL1;
    z = (z ^ (z >> 27)) * MUL2;
    return z ^ (z >> 31);
}

/* Sum of mix(w + counter + k * step) over the words w != 0 at position k; UNIT is the vector that loads W elements. */
#define DEFINE_HASH(name, type, UNIT)                                                                                  \
    static TARGET uint64_t ISA(name)(const void *memory, size_t n, uint64_t counter, uint64_t step)                    \
    {                                                                                                                  \
        const char *at = memory;                                                                                       \
        ISA(Words) c0, c1, sum0 = {0}, sum1 = {0};                                                                     \
        uint64_t sum = 0;                                                                                              \
        size_t k = 0;                                                                                                  \
        for (int l = 0; l < W; l++)                                                                                    \
            c0[l] = counter + (uint64_t)l * step;                                                                      \
        c1 = c0 + step * W;                                                                                            \
        for (; k + 2 * W <= n; k += 2 * W, at += 2 * W * sizeof(type)) {                                               \
            ISA(UNIT) u0, u1;                                                                                          \
            memcpy(&u0, at, sizeof u0);                                                                                \
            memcpy(&u1, at + sizeof u0, sizeof u1);                                                                    \
            ISA(Words) w0 = __builtin_convertvector(u0, ISA(Words)), w1 = __builtin_convertvector(u1, ISA(Words));     \
            sum0 += ISA(mix)(w0 + c0) & (ISA(Words))(w0 != 0);                                                         \
            sum1 += ISA(mix)(w1 + c1) & (ISA(Words))(w1 != 0);                                                         \
            c0 += step * (2 * W);                                                                                      \
            c1 += step * (2 * W);                                                                                      \
        }                                                                                                              \
        sum0 += sum1;                                                                                                  \
        for (int l = 0; l < W; l++)                                                                                    \
            sum += sum0[l];                                                                                            \
        counter += (uint64_t)k * step;                                                                                 \
        for (; k < n; k++, at += sizeof(type), counter += step) {                                                      \
            type w;                                                                                                    \
            memcpy(&w, at, sizeof w);                                                                                  \
            sum += w ? mix((uint64_t)w + counter) : 0;                                                                 \
        }                                                                                                              \
        return sum;                                                                                                    \
    }

DEFINE_HASH(hash8, uint8_t, Bytes)
DEFINE_HASH(hash16, uint16_t, Shorts)
DEFINE_HASH(hash32, uint32_t, Halves)
DEFINE_HASH(hash64, uint64_t, Words)

/* Least and greatest value and zeros of a chunk of floats, by comparing their bits: unsigned order is the order of
 * magnitudes with every negative above every positive, signed order puts the positives above. Returns 0 where the chunk
 * holds a NaN or an infinity: then nothing is settled. */
#define DEFINE_RANGE(name, type, stype, floating, INFINITE)                                                            \
    static TARGET int ISA(name)(const type##_any *bits, size_t n, Part *part)                                          \
    {                                                                                                                  \
        const type sign = (type)1 << (sizeof(type) * 8 - 1);                                                           \
        type least = ~(type)0, most = 0, zeros = 0;                                                                    \
        stype most_signed = (stype)sign;                                                                               \
        for (size_t k = 0; k < n; k++) {                                                                               \
            type w = bits[k];                                                                                          \
            least = w < least ? w : least;                                                                             \
            most = w > most ? w : most;                                                                                \
            most_signed = (stype)w > most_signed ? (stype)w : most_signed;                                             \
            zeros += (type)(w << 1) == 0;                                                                              \
        }                                                                                                              \
        type low = most, high = least;          /* all negative, or both signs: the greatest magnitude below zero */   \
        if (most < sign)                                                                                               \
            low = least, high = most;                                                                                  \
        else if (least < sign)                                                                                         \
            high = (type)most_signed;                                                                                  \
        if ((low & ~sign) >= INFINITE || (high & ~sign) >= INFINITE)                                                   \
            return 0;                                                                                                  \
        floating value;                                                                                                \
        memcpy(&value, &low, sizeof value);                                                                            \
        part->low = value < part->low ? value : part->low;                                                             \
        memcpy(&value, &high, sizeof value);                                                                           \
        part->high = value > part->high ? value : part->high;                                                          \
        part->n_zero += (int64_t)zeros;                                                                                \
        return 1;                                                                                                      \
    }

DEFINE_RANGE(range32, uint32_t, int32_t, float, UINT32_C(0x7F800000))
DEFINE_RANGE(range64, uint64_t, int64_t, double, UINT64_C(0x7FF0000000000000))

/* Sum, sum of magnitudes and sum of squares of finite floats into the lanes of `part`. */
#define GROUP (W == 8 ? 2 : W == 4 ? 2 : 2) /* vectors of lanes that stay in registers together */
#define DEFINE_SUMS(name, floating, UNIT)                                                                              \
    static TARGET void ISA(name)(const void *memory, size_t n, Part *part)                                             \
    {                                                                                                                  \
        const ISA(Words) magnitude = (ISA(Words)){0} + (~UINT64_C(0) >> 1);                                            \
        const char *start = memory;                                                                                    \
        const size_t whole = n / LANES * LANES;                                                                        \
        for (int lane = 0; whole && lane < LANES; lane += GROUP * W) {                                                 \
            ISA(Doubles) total[GROUP], absolute[GROUP], squares[GROUP];                                                \
            memcpy(total, part->total + lane, sizeof total);                                                           \
            memcpy(absolute, part->absolute + lane, sizeof absolute);                                                  \
            memcpy(squares, part->squares + lane, sizeof squares);                                                     \
            const char *at = start + (size_t)lane * sizeof(floating);                                                  \
            for (size_t k = 0; k < whole; k += LANES, at += LANES * sizeof(floating)) {                                \
                _Pragma("GCC unroll 8") for (int g = 0; g < GROUP; g++)                                                \
                {                                                                                                      \
                    ISA(UNIT) unit;                                                                                    \
                    memcpy(&unit, at + g * sizeof unit, sizeof unit);                                                  \
                    ISA(Doubles) x = __builtin_convertvector(unit, ISA(Doubles));                                      \
                    total[g] += x;                                                                                     \
                    absolute[g] += (ISA(Doubles))((ISA(Words))x & magnitude);                                          \
                    squares[g] += x * x;                                                                               \
                }                                                                                                      \
            }                                                                                                          \
            memcpy(part->total + lane, total, sizeof total);                                                           \
            memcpy(part->absolute + lane, absolute, sizeof absolute);                                                  \
            memcpy(part->squares + lane, squares, sizeof squares);                                                     \
        }                                                                                                              \
        for (size_t k = whole; k < n; k++) {                                                                           \
            floating single;                                                                                           \
            memcpy(&single, start + k * sizeof single, sizeof single);                                                 \
            double x = single;                                                                                         \
            part->total[k % LANES] += x;                                                                               \
            part->absolute[k % LANES] += fabs(x);                                                                      \
            part->squares[k % LANES] += x * x;                                                                         \
        }                                                                                                              \
    }

DEFINE_SUMS(sums32, float, Singles)
DEFINE_SUMS(sums64, double, Doubles)

static TARGET void ISA(difference32)(const float_any *after, const float_any *before, double *update, size_t n)
{
    for (size_t k = 0; k < n; k++)
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

static const Loops ISA(loops) = {
    ISA(hash8),        ISA(hash16),       ISA(hash32),      ISA(hash64),     ISA(range32), ISA(range64), ISA(sums32),
    ISA(sums64),       ISA(difference32), ISA(difference64), ISA(widen_brain), ISA(widen_half),
};

#undef VECTOR
#undef DEFINE_HASH
#undef DEFINE_RANGE
#undef GROUP
#undef DEFINE_SUMS
