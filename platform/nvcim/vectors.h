/* Vectors of floats as wide as the processor's registers: 16 lanes with AVX-512, 8 with AVX2 and FMA, 4 with Arm NEON.
 *
 * Arithmetic, comparison and choice (`mask ? a : b`) are GCC's own operators on vector types; here stands what those
 * lack or GCC takes apart lane by lane. Rounding is that of IEEE on all of them, so what is computed without
 * contraction of a*b+c is the same to the bit whatever the width.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ISA_AVX512
#define LANES 16
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define ISA_AVX2
#define LANES 8
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define ISA_NEON
#define LANES 4
#include <arm_neon.h>
#else
#error "kernels are written for AVX-512, AVX2 with FMA, and NEON"
#endif

/* The sources that a library was built from, as nvcim.compiled reads it. */
#ifdef NVCIM_SOURCES
extern "C" const char *const nvcim_sources = NVCIM_SOURCES;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint64_t vw __attribute__((vector_size(4 * LANES))); /* half as many lanes of 64 bits */

/* x - 0 is x, also for -0, so that nothing is left to compute */
INLINE vf splat(float value) { return value - vf{}; }

/* Loads and stores: whole, or the first `count` lanes with zeros in the others ---------------------------------- */

INLINE vf load(const float *from) {
    vf r;
    memcpy(&r, from, sizeof r);
    return r;
}

INLINE void store(float *to, vf value) { memcpy(to, &value, sizeof value); }

#ifdef ISA_AVX2
/* -1 in the first `count` lanes */
INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

INLINE vf load(const float *from, int64_t count) {
    if (count >= LANES) return load(from);
#if defined(ISA_AVX512)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#elif defined(ISA_AVX2)
    return (vf)_mm256_maskload_ps(from, first_lanes(count));
#else
    vf r = {};
    memcpy(&r, from, 4 * (size_t)count);
    return r;
#endif
}

INLINE void store(float *to, vf value, int64_t count) {
    if (count >= LANES) return store(to, value);
#if defined(ISA_AVX512)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
#elif defined(ISA_AVX2)
    _mm256_maskstore_ps(to, first_lanes(count), (__m256)value);
#else
    memcpy(to, &value, 4 * (size_t)count);
#endif
}

typedef int16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint16_t vb __attribute__((vector_size(2 * LANES)));

INLINE vi load_integers(const int16_t *from, int64_t count) {
    vh r = {};
    memcpy(&r, from, count >= LANES ? sizeof r : 2 * (size_t)count);
    return __builtin_convertvector(r, vi);
}

/* Integers within 16 bits. */
INLINE void store_integers(int16_t *to, vi value, int64_t count) {
#ifdef ISA_AVX2
    __m256i wide = (__m256i)value;
    __m128i r = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
#else
    vh r = __builtin_convertvector(value, vh);
#endif
    memcpy(to, &r, count >= LANES ? sizeof r : 2 * (size_t)count);
}

/* bfloat16 is the upper half of a float. */
INLINE vf load(const uint16_t *from, int64_t count) {
    vb r = {};
    memcpy(&r, from, count >= LANES ? sizeof r : 2 * (size_t)count);
    return (vf)(__builtin_convertvector(r, vu) << 16);
}

/* Arithmetic ---------------------------------------------------------------------------------------------------- */

/* a * b + c, rounded once */
INLINE vf multiply_add(vf a, vf b, vf c) {
#if defined(ISA_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(ISA_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}

INLINE vf square_root(vf x) {
#if defined(ISA_AVX512)
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(ISA_AVX2)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    return (vf)vsqrtq_f32((float32x4_t)x);
#endif
}

/* to the nearest integer, halves to the even one */
INLINE vf round_even(vf x) {
#if defined(ISA_AVX512)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(ISA_AVX2)
    return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return (vf)vrndnq_f32((float32x4_t)x);
#endif
}

/* NaN stays NaN, as in torch.clamp */
INLINE vf clamp(vf x, float low, float high) {
#if defined(ISA_AVX512) /* these return their second operand where one is NaN */
    return (vf)_mm512_min_ps((__m512)splat(high), _mm512_max_ps((__m512)splat(low), (__m512)x));
#elif defined(ISA_AVX2)
    return (vf)_mm256_min_ps((__m256)splat(high), _mm256_max_ps((__m256)splat(low), (__m256)x));
#else /* NaN if either is */
    return (vf)vminq_f32(vmaxq_f32((float32x4_t)x, vdupq_n_f32(low)), vdupq_n_f32(high));
#endif
}

INLINE vf magnitude(vf x) { return (vf)((vi)x & 0x7FFFFFFF); }

INLINE vf to_float(vu x) { return __builtin_convertvector(x, vf); }
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
/* of a float that is an integer within range */
INLINE vi to_integer(vf x) { return __builtin_convertvector(x, vi); }

/* the lower 32 bits of each 64-bit lane times a factor of 32 bits */
INLINE vw multiply_words(vw x, uint32_t factor) {
#if defined(ISA_AVX512)
    return (vw)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64((long long)factor));
#elif defined(ISA_AVX2)
    return (vw)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x((long long)factor));
#else
    return (vw)vmull_n_u32(vmovn_u64((uint64x2_t)x), factor);
#endif
}

/* exp to 2 units in the last place (Cephes' polynomial); NaN stays NaN */
INLINE vf exponential(vf x) {
    x = clamp(x, -87.0f, 88.0f);
    const vf magic = splat(12582912.0f);
    vf shifted = multiply_add(x, splat(1.44269504088896341f), magic), n = shifted - magic;
    vf r = multiply_add(n, splat(-0.693359375f), x);
    r = multiply_add(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = multiply_add(p, r, splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    p = multiply_add(p, r * r, r) + 1.0f;
    return p * (vf)(((vi)shifted - (vi)magic + 127) << 23);
}

/* Across lanes -------------------------------------------------------------------------------------------------- */

/* how many lanes are true */
INLINE int64_t count_true(vi truth) {
#if defined(ISA_AVX512)
    return __builtin_popcount(_mm512_movepi32_mask((__m512i)truth));
#elif defined(ISA_AVX2)
    return __builtin_popcount((unsigned)_mm256_movemask_ps((__m256)truth));
#else
    return -vaddvq_s32((int32x4_t)truth);
#endif
}

/* in how many lanes two numbers differ; NaN differs from none */
INLINE int64_t count_unlike(vf a, vf b) {
#if defined(ISA_AVX512)
    return __builtin_popcount(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_OQ));
#elif defined(ISA_AVX2)
    return count_true((vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NEQ_OQ));
#else
    return count_true((a < b) | (a > b));
#endif
}

INLINE float total(vf v) {
#if defined(ISA_AVX512)
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(ISA_AVX2)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return vaddvq_f32((float32x4_t)v);
#endif
}

/* r[i][j] <-> r[j][i], by swapping blocks of 1, 2, 4 and 8 */
INLINE void transpose(vf r[LANES]) {
#pragma GCC unroll 4
    for (int d = 1; d < LANES; d *= 2) {
        vi upper, lower;
        for (int e = 0; e < LANES; e++) {
            upper[e] = e & d ? LANES + e - d : e;
            lower[e] = e & d ? LANES + e : e + d;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & d)) {
                vf first = r[i], second = r[i + d];
                r[i] = __builtin_shuffle(first, second, upper);
                r[i + d] = __builtin_shuffle(first, second, lower);
            }
    }
}

/* A table of floats that is looked up lane by lane; up to 16 entries stay in registers. */
struct table {
    const float *values;
    int64_t size;
#if defined(ISA_AVX512)
    vf low;
#elif defined(ISA_AVX2)
    vf low, high;
#else
    uint8x16x4_t bytes;
#endif
};

INLINE table table_of(const float *values, int64_t size) {
    table t = {};
    t.values = values;
    t.size = size;
#if defined(ISA_AVX512)
    t.low = load(values, size);
#elif defined(ISA_AVX2)
    t.low = load(values, size);
    if (size > LANES) t.high = load(values + LANES, size - LANES);
#else
    float first[16] = {};
    memcpy(first, values, 4 * (size_t)(size < 16 ? size : 16));
    for (int i = 0; i < 4; i++) t.bytes.val[i] = vld1q_u8((const uint8_t *)(first + 4 * i));
#endif
    return t;
}

INLINE vf look_up(const table &t, vi index) {
#if defined(ISA_AVX512)
    if (t.size <= 16) return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)t.low);
    return (vf)_mm512_i32gather_ps((__m512i)index, t.values, 4);
#elif defined(ISA_AVX2)
    vf r = (vf)_mm256_permutevar8x32_ps((__m256)t.low, (__m256i)index);
    if (t.size <= 8) return r;
    if (t.size <= 16) return index > 7 ? (vf)_mm256_permutevar8x32_ps((__m256)t.high, (__m256i)index) : r;
    return (vf)_mm256_i32gather_ps(t.values, (__m256i)index, 4);
#else
    if (t.size <= 16) return (vf)vqtbl4q_u8(t.bytes, (uint8x16_t)(index * 0x04040404 + 0x03020100));
    float32x4_t r = vdupq_n_f32(t.values[index[0]]); /* NEON gathers by single loads */
    r = vld1q_lane_f32(t.values + index[1], r, 1);
    r = vld1q_lane_f32(t.values + index[2], r, 2);
    return (vf)vld1q_lane_f32(t.values + index[3], r, 3);
#endif
}
