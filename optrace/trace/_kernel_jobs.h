/* The structures that a measuring call works on, and the constants that its results rest on. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { STAT, UPDATE, COPY, HASH, N_OPS };

enum {
    FLOAT64, FLOAT32, FLOAT16, BFLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BOOL,
    E4M3FN, E5M2, E4M3FNUZ, E5M2FNUZ, E8M0FNU, N_DTYPES
};

static const uint8_t ITEMSIZE[N_DTYPES] = {8, 4, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1, 1, 1, 1};

#define SAMPLE 16
#define LANES 16
#define CHUNK 1024
#define BLOCK 32768
#define KEEP_GIL_BELOW (64 << 10)
#define ONE_THREAD_BELOW (1 << 20)
#define STREAM_FROM (8 << 20)
#define MAX_THREADS 256
#define MAX_DIMS 64

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)
#define MUL1 UINT64_C(0xBF58476D1CE4E5B9)
#define MUL2 UINT64_C(0x94D049BB133111EB)
#define NAN_BITS UINT64_C(0x7FF8000000000000)
#define BIG 0x1p480   /* outside, squares leave the range of double: */
#define SMALL 0x1p-450 /* sums are then taken of scaled values */

typedef struct {
    uint32_t op, dtype;
    uint64_t a, b;
    int64_t numel, row, row2, index_base, global_numel;
    uint64_t layout;
} Job;

typedef struct {
    double mean, l1, l2, min, max;
    int64_t n_nan, n_inf, n_zero;
    uint64_t fingerprint;
    double sample[SAMPLE];
} Row;

_Static_assert(sizeof(Job) == 72 && sizeof(Row) == 200, "Job and Row are the JOB and ROW of jobs.py");

/* What a block of one tensor gives. */
typedef struct {
    double total[LANES], absolute[LANES], squares[LANES];
    double low, high;
    int64_t n_nan, n_inf, n_zero;
    uint64_t fingerprint;
} Part;

/* Dimensions of more than one element, in the order of memory, neighbours put together where they can be. */
typedef struct {
    int ndim;
    int64_t sizes[MAX_DIMS], strides[MAX_DIMS];
} Layout;

/* Of the samples of rows that are compared: which rows a row names, what limits it, what is found. */
enum { OWN, BASE, UPDATE_ROW, OTHER, N_PLACES };
enum { RMS, EPS, TINY, ATOL, RTOL, N_SCALES }; /* of whole tensors too */
enum { NUMEL_A = N_SCALES, NUMEL_B, NAN_A, NAN_B, N_LIMITS };
enum { RAW, SLOT, NET, STEP, N_VALID, GAP, MAGNITUDE, SHOWN_A, SHOWN_B, N_APART };
enum { SQUARE, ANY, UPDATE_SQUARE, UPDATE_ANY, N_MOMENTS };

#define IS_BEFORE 1
#define IS_STATE 2

static const double NO_SAMPLE[SAMPLE] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN,
                                         NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};

static inline const double *sample_of(const double *samples, int32_t row)
{
    return row < 0 ? NO_SAMPLE : samples + (size_t)row * SAMPLE;
}

/* Some elements of two tensors and what tells their scale, as doubles; n is a multiple of LANES, what was added is zero.
 * What is not there is NULL. */
typedef struct {
    const char *single[2]; /* float32: the elements as they are, where nothing else is asked for */
    const double *own[2], *value[2], *old[2];
    double limits[N_SCALES];
    int is_state, tolerant;
    double raw[CHUNK]; /* written: errors in eps of their scale */
    double most_raw, most_net, most_step, gap;
} Elements;

typedef uint16_t uint16_t_any __attribute__((aligned(1), may_alias));
typedef uint32_t uint32_t_any __attribute__((aligned(1), may_alias));
typedef uint64_t uint64_t_any __attribute__((aligned(1), may_alias));
typedef float float_any __attribute__((aligned(1), may_alias));
typedef double double_any __attribute__((aligned(1), may_alias));

typedef struct {
    uint64_t (*hash8)(const void *, size_t, uint64_t, uint64_t);
    uint64_t (*hash16)(const void *, size_t, uint64_t, uint64_t);
    uint64_t (*hash32)(const void *, size_t, uint64_t, uint64_t);
    uint64_t (*hash64)(const void *, size_t, uint64_t, uint64_t);
    int (*range32)(const uint32_t_any *, size_t, Part *);
    int (*range64)(const double_any *, size_t, Part *);
    void (*sums32)(const void *, size_t, Part *);
    void (*sums64)(const void *, size_t, Part *);
    void (*difference32)(const float_any *, const float_any *, double *, size_t);
    void (*difference64)(const double_any *, const double_any *, double *, size_t);
    void (*widen_brain)(const uint16_t_any *, uint32_t *, size_t);
    void (*widen_half)(const uint16_t_any *, uint32_t *, size_t);
    void (*widen_single)(const void *, double *, size_t);
    size_t (*unlike8)(const void *, const void *, size_t);
    size_t (*unlike16)(const void *, const void *, size_t);
    size_t (*unlike32)(const void *, const void *, size_t);
    size_t (*unlike64)(const void *, const void *, size_t);
    int (*beyond)(Elements *, size_t, double);
    void (*apart)(Elements *, size_t);
    void (*moments_of)(const double *, const int32_t *, uint8_t, double *);
    void (*apart_of)(const double *const[2], const int32_t *, uint8_t, const double *, double *);
} Loops;

static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * MUL1;
    z = (z ^ (z >> 27)) * MUL2;
    return z ^ (z >> 31);
}

static inline uint32_t widened_half(uint32_t half)
{
    uint32_t bits = (half & 0x7FFF) << 13;
    if (bits >= UINT32_C(0x0F800000)) {
        bits |= UINT32_C(0x7F800000) | (bits > UINT32_C(0x0F800000) ? UINT32_C(0x400000) : 0);
    } else {
        float value;
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f;
        memcpy(&bits, &value, sizeof value);
    }
    return bits | (half & 0x8000) << 16;
}
