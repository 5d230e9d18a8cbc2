/* The loops of comparing, of whole tensors and of samples; _kernel_body.h includes this file, with its names.
 *
 * Every operation is one of IEEE arithmetic in the order of the NumPy code (compare/elements.py and compare/samples.py),
 * so that both give the same bits, whatever W is.
 */

/* How many of n elements differ in bits. */
#define DEFINE_UNLIKE(name, type)                                                                                      \
    static TARGET size_t ISA(name)(const void *a, const void *b, size_t n)                                             \
    {                                                                                                                  \
        const type *one = a, *other = b;                                                                               \
        uint32_t count = 0;                                                                                            \
        for (size_t k = 0; k < n; k++)                                                                                 \
            count += one[k] != other[k];                                                                               \
        return count;                                                                                                  \
    }

DEFINE_UNLIKE(unlike8, uint8_t)
DEFINE_UNLIKE(unlike16, uint16_t_any)
DEFINE_UNLIKE(unlike32, uint32_t_any)
DEFINE_UNLIKE(unlike64, uint64_t_any)

/* The greater of two; y where x is NaN. */
static inline TARGET ISA(Doubles) ISA(greater)(ISA(Doubles) x, ISA(Doubles) y)
{
#if W == 8
    return _mm512_max_pd(x, y);
#elif W == 4
    return _mm256_max_pd(x, y);
#elif defined(__x86_64__)
    return _mm_max_pd(x, y);
#else
    const ISA(Words) more = (ISA(Words))(x > y);
    return (ISA(Doubles))(((ISA(Words))x & more) | ((ISA(Words))y & ~more));
#endif
}

/* x where the mask is set, else 0. */
static inline TARGET ISA(Doubles) ISA(masked)(ISA(Doubles) x, ISA(Words) mask)
{
    return (ISA(Doubles))((ISA(Words))x & mask);
}

static inline TARGET ISA(Doubles) ISA(doubles_at)(const double *at)
{
    ISA(Doubles) x;
    memcpy(&x, at, sizeof x);
    return x;
}

/* difference / unit; 0 where nothing differs, whatever the unit. */
static inline TARGET ISA(Doubles) ISA(ratio)(ISA(Doubles) difference, ISA(Doubles) unit)
{
    return ISA(masked)(difference / unit, (ISA(Words))(difference > 0));
}

static inline TARGET double ISA(largest)(ISA(Doubles) x)
{
    double most = 0;
    for (int l = 0; l < W; l++)
        most = x[l] > most ? x[l] : most;
    return most;
}

/* Errors of elements as in apart_of, where each has a valid sample. */
static inline __attribute__((always_inline)) TARGET void ISA(apart_as)(Elements *e, size_t n, int has_old, int is_state, int tolerant)
{
    const ISA(Doubles) zero = {0}, infinite = zero + INFINITY;
    const ISA(Doubles) rms = zero + e->limits[RMS], eps = zero + e->limits[EPS], tiny = zero + e->limits[TINY];
    const ISA(Doubles) atol = zero + e->limits[ATOL], rtol = zero + e->limits[RTOL];
    ISA(Doubles) most_raw = zero, most_net = zero, most_step = zero, gap = zero;
    for (size_t k = 0; k < n; k += W) {
        const ISA(Doubles) x = ISA(doubles_at)(e->own[0] + k), y = ISA(doubles_at)(e->own[1] + k);
        const ISA(Doubles) plain = ISA(magnitude)(x - y);
        const ISA(Words) finite = (ISA(Words))(plain < infinite);
        const ISA(Words) same = (ISA(Words))(x == y) | ((ISA(Words))(x != x) & (ISA(Words))(y != y));
        const ISA(Doubles) difference =
            (ISA(Doubles))((ISA(Words))ISA(masked)(plain, finite) | (ISA(Words))ISA(masked)(infinite, ~finite & ~same));
        ISA(Doubles) size = ISA(greater)(ISA(magnitude)(ISA(doubles_at)(e->value[0] + k)), zero);
        size = ISA(greater)(ISA(magnitude)(ISA(doubles_at)(e->value[1] + k)), size);
        ISA(Doubles) was = zero;
        if (has_old) {
            const ISA(Doubles) old0 = ISA(doubles_at)(e->old[0] + k), old1 = ISA(doubles_at)(e->old[1] + k);
            size = ISA(greater)(ISA(magnitude)(old0), size);
            size = ISA(greater)(ISA(magnitude)(old1), size);
            was = ISA(magnitude)(old0 - old1);
        }
        const ISA(Doubles) scale = ISA(greater)(ISA(masked)(size, (ISA(Words))(size < infinite)) + rms, tiny);
        /* no unit: an infinite difference is an infinite error */
        const ISA(Doubles) unit = ISA(masked)(eps * scale, finite);
        const ISA(Doubles) raw = ISA(ratio)(difference, unit);
        ISA(Doubles) net = tolerant ? ISA(ratio)(difference - (atol + rtol * scale), unit) : raw, step = raw;
        if (is_state) {
            ISA(Doubles) brought = ISA(ratio)(was, eps * scale);
            brought = ISA(masked)(brought, (ISA(Words))(brought < infinite));
            net = ISA(greater)(net - brought, zero);
            step = ISA(greater)(raw - brought, zero);
        }
        memcpy(e->raw + k, &raw, sizeof raw);
        most_raw = ISA(greater)(raw, most_raw);
        most_net = ISA(greater)(net, most_net);
        most_step = ISA(greater)(step, most_step);
        gap = ISA(greater)(difference, gap);
    }
    e->most_raw = ISA(largest)(most_raw);
    e->most_net = ISA(largest)(most_net);
    e->most_step = ISA(largest)(most_step);
    e->gap = ISA(largest)(gap);
}

static TARGET void ISA(apart)(Elements *e, size_t n)
{
    if (e->is_state || e->tolerant)
        ISA(apart_as)(e, n, e->old[0] != NULL, e->is_state, e->tolerant);
    else if (e->old[0])
        ISA(apart_as)(e, n, 1, 0, 0);
    else
        ISA(apart_as)(e, n, 0, 0, 0);
}

/* Whether an element may have a larger error than `most`, as far as can be told without dividing: 0 is certain. Elements
 * that are not finite count as larger. Tells the largest difference where it returns 0. */
static inline __attribute__((always_inline)) TARGET int ISA(beyond_as)(Elements *e, size_t n, double most, int single,
                                                                       int has_scale)
{
    const ISA(Doubles) zero = {0}, infinite = zero + INFINITY, least = zero + 0x1p-1074;
    const ISA(Doubles) rms = zero + e->limits[RMS], eps = zero + e->limits[EPS], tiny = zero + e->limits[TINY];
    const ISA(Doubles) bound = zero + most * (1 - 0x1p-50); /* room for the rounding of the product and the quotient */
    ISA(Words) within = ~(ISA(Words)){0};
    ISA(Doubles) gap = zero;
    const char *one = e->single[0], *other = e->single[1];
    for (size_t k = 0; k < n; k += W) {
        const ISA(Doubles) x = single ? ISA(doubles32)(one + k * sizeof(float)) : ISA(doubles_at)(e->own[0] + k);
        const ISA(Doubles) y = single ? ISA(doubles32)(other + k * sizeof(float)) : ISA(doubles_at)(e->own[1] + k);
        const ISA(Doubles) difference = ISA(magnitude)(x - y);
        ISA(Doubles) size;
        if (has_scale) {
            size = ISA(greater)(ISA(magnitude)(ISA(doubles_at)(e->value[0] + k)), zero);
            size = ISA(greater)(ISA(magnitude)(ISA(doubles_at)(e->value[1] + k)), size);
            size = ISA(greater)(ISA(magnitude)(ISA(doubles_at)(e->old[0] + k)), size);
            size = ISA(greater)(ISA(magnitude)(ISA(doubles_at)(e->old[1] + k)), size);
            size = ISA(masked)(size, (ISA(Words))(size < infinite));
        } else {
            size = ISA(greater)(ISA(magnitude)(x), ISA(magnitude)(y));
        }
        const ISA(Doubles) unit = eps * ISA(greater)(size + rms, tiny);
        within &= (ISA(Words))(difference < ISA(greater)(bound * unit, least));
        gap = ISA(greater)(difference, gap);
    }
    e->gap = ISA(largest)(gap);
    int beyond = 0;
    for (int l = 0; l < W; l++)
        beyond |= !within[l];
    return beyond;
}

static TARGET int ISA(beyond)(Elements *e, size_t n, double most)
{
    if (e->single[0])
        return ISA(beyond_as)(e, n, most, 1, 0);
    return e->old[0] ? ISA(beyond_as)(e, n, most, 0, 1) : ISA(beyond_as)(e, n, most, 0, 0);
}

/* ---- samples --------------------------------------------------------------------------------------------------- */

/* The mean of the squares of the finite ones of 16 numbers, added in pairs; how many there are. */
static inline TARGET double ISA(mean_square)(const double *x, double *count)
{
    const ISA(Doubles) infinite = (ISA(Doubles)){0} + INFINITY;
    ISA(Words) finite = {0};
    double squares[SAMPLE], sums[8];
    for (int k = 0; k < SAMPLE; k += W) {
        const ISA(Doubles) part = ISA(doubles_at)(x + k);
        const ISA(Words) mask = (ISA(Words))(ISA(magnitude)(part) < infinite);
        const ISA(Doubles) square = ISA(masked)(part * part, mask);
        memcpy(squares + k, &square, sizeof square);
        finite -= mask;
    }
    for (int k = 0; k < 8; k++)
        sums[k] = squares[k] + squares[k + 8];
    uint64_t n = 0;
    for (int l = 0; l < W; l++)
        n += finite[l];
    const double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    *count = (double)n;
    return sum / (n ? (double)n : 1.0);
}

/* The values before the step, from the update where there is one, else from the row that tells them. */
static inline TARGET const double *ISA(values_before)(const double *samples, const int32_t *places, uint8_t flags,
                                                      double *old)
{
    const double *value = sample_of(samples, places[BASE]);
    if (places[UPDATE_ROW] < 0)
        return sample_of(samples, places[OTHER]);
    const double *change = sample_of(samples, places[UPDATE_ROW]);
    for (int k = 0; k < SAMPLE; k += W) {
        const ISA(Doubles) now = ISA(doubles_at)(value + k), moved = ISA(doubles_at)(change + k);
        const ISA(Doubles) was = flags & IS_BEFORE ? now + moved : now - moved;
        memcpy(old + k, &was, sizeof was);
    }
    return old;
}

static TARGET void ISA(moments_of)(const double *samples, const int32_t *places, uint8_t flags, double *out)
{
    double room[SAMPLE], moved[SAMPLE], count;
    const double *own = sample_of(samples, places[OWN]);
    const double *old = ISA(values_before)(samples, places, flags, room);
    for (int k = 0; k < SAMPLE; k += W) {
        const ISA(Doubles) difference = ISA(doubles_at)(own + k) - ISA(doubles_at)(old + k);
        memcpy(moved + k, &difference, sizeof difference);
    }
    out[SQUARE] = ISA(mean_square)(moved, &count);
    out[ANY] = count > 0;
    out[UPDATE_SQUARE] = ISA(mean_square)(sample_of(samples, places[UPDATE_ROW]), &count);
    out[UPDATE_ANY] = count > 0;
}

/* x where the mask is set, else y. */
static inline TARGET ISA(Doubles) ISA(either)(ISA(Words) mask, ISA(Doubles) x, ISA(Doubles) y)
{
    return (ISA(Doubles))(((ISA(Words))x & mask) | ((ISA(Words))y & ~mask));
}

/* The greater of two, and of a number and NaN the number. */
static inline TARGET ISA(Doubles) ISA(fmax)(ISA(Doubles) x, ISA(Doubles) y)
{
    return ISA(either)((ISA(Words))(y == y), ISA(greater)(x, y), x);
}

/* difference / unit; 0 where nothing differs, infinite without a unit or where the difference is. */
static inline TARGET ISA(Doubles) ISA(error)(ISA(Doubles) difference, ISA(Doubles) unit)
{
    const ISA(Doubles) zero = {0}, infinite = zero + INFINITY;
    const ISA(Words) finite = (ISA(Words))(unit > zero) & (ISA(Words))(difference < infinite);
    return ISA(masked)(ISA(either)(finite, difference / unit, infinite), (ISA(Words))(difference > zero));
}

static TARGET void ISA(apart_of)(const double *const samples[2], const int32_t *places, uint8_t flags,
                                 const double *limits, double *out)
{
    const ISA(Doubles) zero = {0}, infinite = zero + INFINITY, none = zero - 1;
    const ISA(Doubles) eps = zero + limits[EPS], tiny = zero + limits[TINY];
    const ISA(Doubles) atol = zero + limits[ATOL], rtol = zero + limits[RTOL];
    const ISA(Doubles) rms = zero + (isfinite(limits[RMS]) ? limits[RMS] : 0.0);
    const ISA(Words) nowhere = {0}, everywhere = ~nowhere;
    const ISA(Words) nans_of_a = limits[NAN_A] > 0 ? everywhere : nowhere;
    const ISA(Words) nans_of_b = limits[NAN_B] > 0 ? everywhere : nowhere;
    double room[2][SAMPLE], magnitude[SAMPLE], raw[SAMPLE], net[SAMPLE], step[SAMPLE], gaps[SAMPLE];
    const double *own[2], *value[2], *old[2];
    ISA(Doubles) slots;
    ISA(Words) n_valid = {0}, unknown = {0};
    for (int side = 0; side < 2; side++) {
        own[side] = sample_of(samples[side], places[side * N_PLACES + OWN]);
        value[side] = sample_of(samples[side], places[side * N_PLACES + BASE]);
        old[side] = ISA(values_before)(samples[side], places + side * N_PLACES, flags, room[side]);
    }
    for (int l = 0; l < W; l++)
        slots[l] = l;
    for (int k = 0; k < SAMPLE; k += W, slots += W) {
        const ISA(Doubles) a = ISA(doubles_at)(own[0] + k), b = ISA(doubles_at)(own[1] + k);
        const ISA(Doubles) old_a = ISA(doubles_at)(old[0] + k), old_b = ISA(doubles_at)(old[1] + k);
        const ISA(Doubles) size = ISA(fmax)(
            ISA(fmax)(ISA(magnitude)(ISA(doubles_at)(value[0] + k)), ISA(magnitude)(old_a)),
            ISA(fmax)(ISA(magnitude)(ISA(doubles_at)(value[1] + k)), ISA(magnitude)(old_b)));
        const ISA(Doubles) scale = ISA(greater)(ISA(masked)(size, (ISA(Words))(size < infinite)) + rms, tiny);
        const ISA(Doubles) unit = eps * scale, plain = ISA(magnitude)(a - b);
        const ISA(Words) real_a = (ISA(Words))(a == a), real_b = (ISA(Words))(b == b);
        const ISA(Words) same = (ISA(Words))(a == b) | (~real_a & ~real_b);
        const ISA(Words) valid = (ISA(Words))(slots < limits[NUMEL_A]) & (ISA(Words))(slots < limits[NUMEL_B]) &
                                 (real_a | nans_of_a) & (real_b | nans_of_b);
        const ISA(Doubles) difference =
            ISA(either)((ISA(Words))(plain < infinite), plain, ISA(masked)(infinite, ~same));
        ISA(Doubles) errors[3];
        errors[0] = errors[2] = ISA(error)(difference, unit);
        errors[1] = ISA(error)(difference - (atol + rtol * scale), unit);
        if (flags & IS_STATE) {
            const ISA(Doubles) was = ISA(magnitude)(old_a - old_b);
            ISA(Doubles) brought = ISA(masked)(ISA(error)(was, unit), (ISA(Words))(was < infinite));
            brought = ISA(masked)(brought, (ISA(Words))(brought < infinite));
            errors[1] = ISA(greater)(errors[1] - brought, zero);
            errors[2] = ISA(greater)(errors[2] - brought, zero);
        }
        double *const to[3] = {raw + k, net + k, step + k};
        for (int kind = 0; kind < 3; kind++) {
            errors[kind] = ISA(either)(valid, errors[kind], none);
            memcpy(to[kind], &errors[kind], sizeof errors[kind]);
        }
        const ISA(Doubles) gap = ISA(masked)(plain, valid);
        memcpy(gaps + k, &gap, sizeof gap);
        memcpy(magnitude + k, &size, sizeof size);
        unknown |= (ISA(Words))(gap != gap);
        n_valid -= valid;
    }
    int slot = 0;
    uint64_t count = 0, any_unknown = 0;
    double most_net = net[0], most_step = step[0], most_gap = 0;
    for (int k = 0; k < SAMPLE; k++) {
        slot = raw[k] > raw[slot] ? k : slot;
        most_net = net[k] > most_net ? net[k] : most_net;
        most_step = step[k] > most_step ? step[k] : most_step;
        most_gap = gaps[k] > most_gap ? gaps[k] : most_gap;
    }
    for (int l = 0; l < W; l++) {
        count += n_valid[l];
        any_unknown |= unknown[l];
    }
    double n_finite;
    out[RAW] = raw[slot];
    out[SLOT] = slot;
    out[NET] = most_net;
    out[STEP] = most_step;
    out[N_VALID] = (double)count;
    out[GAP] = any_unknown ? NAN : most_gap;
    out[MAGNITUDE] = ISA(mean_square)(magnitude, &n_finite);
    out[SHOWN_A] = own[0][slot];
    out[SHOWN_B] = own[1][slot];
}

#undef DEFINE_UNLIKE
