/* The crossbar's inner loops, compiled once per machine by kernel.py; counter_rng.py, reading.py and
 * programming.py hold the same arithmetic in plain torch, operation for operation, and are what this file is
 * tested against. Compiled without contraction of a*b+c, so that both round alike.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define TINY 1.17549435e-38f
#define BLOCK 64 /* normals of 16 Philox counters */

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

static inline vf splat(float value) { return vf{} + value; }

/* sqrt, round-half-even and convert lane by lane: GCC turns each loop into one instruction where there is one. */
static inline vf vsqrt(vf x) {
    vf r;
    for (int i = 0; i < LANES; i++) r[i] = sqrtf(x[i]);
    return r;
}

static inline vf vrint(vf x) {
    vf r;
    for (int i = 0; i < LANES; i++) r[i] = rintf(x[i]);
    return r;
}

static inline vf vclamp(vf x, float low, float high) {
    x = x < low ? splat(low) : x; /* NaN stays NaN, as in torch.clamp */
    return x > high ? splat(high) : x;
}

/* Philox4x32-10 (Salmon et al., SC 2011) for 16 counters (first + lane, c1, c2, c3). Words live in 64-bit lanes, even
 * counters in one vector and odd ones in another, because the 32x32 -> 64 bit product wants them so. */
typedef uint64_t vw __attribute__((vector_size(4 * LANES)));

static inline vw multiply(vw x, uint64_t factor) {
#ifdef __AVX512F__
    return (vw)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64((long long)factor));
#else
    return (x & 0xFFFFFFFFull) * factor;
#endif
}

struct words {
    vw a, b, c, d; /* the upper half of a lane may hold anything */
};

static inline void philox_round(words &w, uint64_t k0, uint64_t k1) {
    vw p = multiply(w.a, 0xD2511F53u), q = multiply(w.c, 0xCD9E8D57u);
    w.a = (q >> 32) ^ w.b ^ k0;
    w.c = (p >> 32) ^ w.d ^ k1;
    w.b = q;
    w.d = p;
}

static inline vu interleave(vw even, vw odd) { return (vu)((even & 0xFFFFFFFFull) | (odd << 32)); }

static inline void philox(uint64_t key, uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, vu out[4]) {
    words even = {vw{0, 2, 4, 6, 8, 10, 12, 14} + first, vw{} + c1, vw{} + c2, vw{} + c3};
    words odd = {even.a + 1, even.b, even.c, even.d};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        philox_round(even, k0, k1);
        philox_round(odd, k0, k1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = interleave(even.a, odd.a);
    out[1] = interleave(even.b, odd.b);
    out[2] = interleave(even.c, odd.c);
    out[3] = interleave(even.d, odd.d);
}

static inline vf to_float(vu x) {
    return __builtin_convertvector(x, vf);
}

/* Box and Muller on two words; the polynomials are Cephes' logf, sinf and cosf. */
static inline void box_muller(vu first, vu second, vf *z0, vf *z1) {
    vf u = to_float(first) * 0x1p-32f + 0x1p-33f;
    vi bits = (vi)u;
    vi exponent = (bits >> 23) - 126;
    vf m = (vf)((bits & 0x007FFFFF) | 0x3F000000); /* [0.5, 1) */
    vi small = m < 0.707106781186547524f;
    exponent = exponent + small; /* true is -1 */
    m = small ? m + m : m;
    vf x = m - 1.0f;
    vf square = x * x;
    vf y = x * 7.0376836292E-2f + -1.1514610310E-1f;
    y = y * x + 1.1676998740E-1f;
    y = y * x + -1.2420140846E-1f;
    y = y * x + 1.4249322787E-1f;
    y = y * x + -1.6668057665E-1f;
    y = y * x + 2.0000714765E-1f;
    y = y * x + -2.4999993993E-1f;
    y = y * x + 3.3333331174E-1f;
    y = y * x * square;
    vf e = __builtin_convertvector(exponent, vf);
    y = y + e * -2.12194440e-4f;
    y = y + square * -0.5f;
    vf log_u = x + y + e * 0.693359375f;
    vf radius = vsqrt(log_u * -2.0f);

    vf angle = (to_float(second & 0x3FFFFFFFu) * 0x1p-30f + -0.5f) * 1.57079632679489662f;
    vf z = angle * angle;
    vf s = z * -1.9515295891E-4f + 8.3321608736E-3f;
    s = s * z + -1.6666654611E-1f;
    s = s * z * angle + angle;
    vf c = z * 2.443315711809948E-5f + -1.388731625493765E-3f;
    c = c * z + 4.166664568298827E-2f;
    c = c * z * z + z * -0.5f + 1.0f;
    vi odd = (vi)(second & 0x40000000u) != 0;
    vi negative = (vi)(second & 0x80000000u) != 0;
    vf p = odd ? -s : c;
    vf q = odd ? c : s;
    *z0 = radius * (negative ? -p : p);
    *z1 = radius * (negative ? -q : q);
}

static inline void normal_block(uint64_t key, uint32_t block, uint32_t purpose, uint64_t index, vf out[4]) {
    vu words[4];
    philox(key, block * LANES, purpose, (uint32_t)index, (uint32_t)(index >> 32), words);
    box_muller(words[0], words[1], &out[0], &out[1]);
    box_muller(words[2], words[3], &out[2], &out[3]);
}

/* out [keys, indices, count] */
extern "C" void nvcim_normals(const uint64_t *keys, int64_t n_keys, uint32_t purpose, const int64_t *first_index, int64_t n_indices,
                   int64_t count, float *out, int threads) {
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < n_keys * n_indices * blocks; job++) {
        int64_t row = job / blocks, block = job % blocks;
        int64_t key = row / n_indices, index = first_index[key] + row % n_indices;
        vf z[4];
        normal_block(keys[key], (uint32_t)block, purpose, (uint64_t)index, z);
        int64_t left = count - block * BLOCK;
        memcpy(out + row * count + block * BLOCK, z, 4 * (size_t)(left < BLOCK ? left : BLOCK));
    }
}

/* Inlined where `count` is LANES, the branch and the call of memcpy vanish. */
static inline __attribute__((always_inline)) vf load(const float *from, int64_t count) {
    vf r = {};
    if (count >= LANES)
        memcpy(&r, from, 4 * LANES);
    else
        for (int64_t i = 0; i < count; i++) r[i] = from[i];
    return r;
}

static inline __attribute__((always_inline)) void store(float *to, vf value, int64_t count) {
    if (count >= LANES)
        memcpy(to, &value, 4 * LANES);
    else
        for (int64_t i = 0; i < count; i++) to[i] = value[i];
}

/* DAC: round vectors to codes, and sum their squares by row tile.
 * x, driven [vectors, size]; full_scale [vectors]: given, or else set to each vector's largest magnitude; top 0: no DAC.
 * squares [vectors, tiles]. Returns how many inputs were clipped. */
static int64_t drive_one(const float *x, int64_t size, int64_t tile_rows, float top, bool given, float *full_scale,
                         float *driven, float *squares) {
    int64_t clipped = 0;
    if (!given) {
        vf largest = {};
        for (int64_t i = 0; i < size; i += LANES) {
            vf v = load(x + i, size - i);
            v = v < 0.0f ? -v : v;
            largest = (v > largest) | (v != v) ? v : largest;
        }
        float limit = 0;
        for (int i = 0; i < LANES; i++)
            if (largest[i] > limit || largest[i] != largest[i]) limit = largest[i];
        *full_scale = limit;
    }
    float step = top > 0 ? *full_scale / top : 1;
    step = step < TINY ? TINY : step;
    for (int64_t start = 0, tile = 0; start < size; start += tile_rows, tile++) {
        int64_t rows = size - start < tile_rows ? size - start : tile_rows;
        vf sum = {};
        for (int64_t i = 0; i < rows; i += LANES) {
            vf v = load(x + start + i, rows - i);
            if (top > 0) {
                vf code = vrint(v / step), held = given ? vclamp(code, -top, top) : code;
                vi over = (held != code) & (code == code);
                for (int lane = 0; given && lane < LANES; lane++) clipped -= over[lane];
                v = held * step;
                store(driven + start + i, v, rows - i);
            }
            sum = sum + v * v;
        }
        float total = 0;
        for (int i = 0; i < LANES; i++) total += sum[i];
        squares[tile] = total;
    }
    return clipped;
}

extern "C" int64_t nvcim_drive(const float *x, int64_t vectors, int64_t size, int64_t tile_rows, float top, int32_t given,
                               float *full_scale, float *driven, float *squares, int threads) {
    int64_t tiles = (size + tile_rows - 1) / tile_rows, clipped = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : clipped)
    for (int64_t v = 0; v < vectors; v++)
        clipped += drive_one(x + v * size, size, tile_rows, top, given, full_scale + v, driven + v * size,
                             squares + v * tiles);
    return clipped;
}

struct read_args {
    const float *part;      /* [devices, tiles, vectors, outputs]: inputs times cells */
    const float *variance;  /* like part, or NULL */
    const float *noise_row; /* [devices, tiles, vectors], or NULL */
    const float *noise_col; /* [devices, tiles, outputs]: sigma of a read is noise_row * noise_col */
    const float *adc_row;   /* [devices, tiles, vectors], or NULL: no ADC */
    const float *adc_col;   /* [devices, tiles, outputs]: an ADC's step is adc_row * adc_col */
    const float *adc_gain;  /* [devices, tiles, outputs]: codes per output at adc_row 1; 1 / adc_col and its gain error */
    const float *adc_shift; /* [devices, tiles, outputs] codes, or NULL (0) */
    const uint64_t *keys;   /* [devices] */
    const int64_t *first;   /* [devices]: number of the first read */
    float *out;             /* [devices, vectors, outputs], with strides */
    int64_t devices, tiles, vectors, outputs;
    int64_t out_device, out_vector; /* strides of out */
    float top;   /* largest code */
    float alpha; /* what a code of this read counts in the output */
    int32_t accumulate;
    uint32_t purpose;
    int32_t threads;
};

enum noise { QUIET, UNIFORM, BY_CELL };

/* One row tile's outputs from `o` on, 16 of them or, at the end of a row, `left`. */
template <noise NOISE, bool ADC>
static inline __attribute__((always_inline)) int64_t read_lanes(const read_args &a, int64_t row, int64_t columns, const float *z, float *out, bool first,
                                 int64_t o, int64_t left) {
    vf v = load(a.part + row * a.outputs + o, left);
    int64_t clipped = 0;
    if (NOISE == UNIFORM) v = v + load(a.noise_col + columns + o, left) * a.noise_row[row] * load(z + o, left);
    if (NOISE == BY_CELL) v = v + vsqrt(load(a.variance + row * a.outputs + o, left)) * load(z + o, left);
    if (ADC) {
        float step = a.adc_row[row] < TINY ? TINY : a.adc_row[row];
        vf code = v * load(a.adc_gain + columns + o, left) * (1 / step);
        if (a.adc_shift) code = code + load(a.adc_shift + columns + o, left);
        code = vrint(code);
        vf held = vclamp(code, -a.top, a.top);
        vi over = (held != code) & (code == code); /* NaN is no saturation */
#ifdef __AVX512DQ__
        clipped = __builtin_popcount(_mm512_movepi32_mask((__m512i)over));
#else
        for (int lane = 0; lane < LANES; lane++) clipped -= over[lane];
#endif
        v = held * load(a.adc_col + columns + o, left) * step;
    }
    v = v * a.alpha;
    if (!first) v = load(out + o, left) + v;
    store(out + o, v, left);
    return clipped;
}

template <noise NOISE, bool ADC>
static int64_t read_one(const read_args &a, int64_t device, int64_t vector, float *normals) {
    int64_t clipped = 0;
    float *out = a.out + device * a.out_device + vector * a.out_vector;
    if (NOISE != QUIET)
        for (int64_t block = 0; block * BLOCK < a.tiles * a.outputs; block++)
            normal_block(a.keys[device], (uint32_t)block, a.purpose, (uint64_t)(a.first[device] + vector),
                         (vf *)(normals + block * BLOCK));
    for (int64_t tile = 0; tile < a.tiles; tile++) {
        int64_t columns = (device * a.tiles + tile) * a.outputs, row = (device * a.tiles + tile) * a.vectors + vector;
        const float *z = normals + tile * a.outputs;
        bool first = tile == 0 && !a.accumulate;
        int64_t o = 0;
        for (; o + LANES <= a.outputs; o += LANES)
            clipped += read_lanes<NOISE, ADC>(a, row, columns, z, out, first, o, LANES);
        if (o < a.outputs) clipped += read_lanes<NOISE, ADC>(a, row, columns, z, out, first, o, a.outputs - o);
    }
    return clipped;
}

template <noise NOISE, bool ADC> static int64_t read_all(const read_args a) {
    int64_t clipped = 0;
#pragma omp parallel num_threads(a.threads) reduction(+ : clipped)
    {
        size_t size = (size_t)((a.tiles * a.outputs + BLOCK - 1) / BLOCK * BLOCK) * 4;
        float *normals = (float *)aligned_alloc(64, size);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < a.devices * a.vectors; job++)
            clipped += read_one<NOISE, ADC>(a, job / a.vectors, job % a.vectors, normals);
        free(normals);
    }
    return clipped;
}

/* What the sense amplifiers and ADCs make of the products; returns how many outputs were clipped. */
extern "C" int64_t nvcim_read(const read_args *a) {
    if (a->variance) return a->adc_row ? read_all<BY_CELL, true>(*a) : read_all<BY_CELL, false>(*a);
    if (a->noise_row) return a->adc_row ? read_all<UNIFORM, true>(*a) : read_all<UNIFORM, false>(*a);
    return a->adc_row ? read_all<QUIET, true>(*a) : read_all<QUIET, false>(*a);
}

struct program_args {
    const int16_t *integers;  /* [devices, inputs * outputs]; stride_device may be 0 */
    const float *scale;       /* [devices, outputs] */
    const float *conductance; /* [levels] */
    const float *sigma;       /* [levels] */
    const int32_t *shift;     /* [slices]: bits below the slice */
    const int32_t *mask;      /* [slices] */
    const int32_t *stride;    /* [slices]: levels between neighbouring values */
    const float *factor;      /* [slices] */
    const uint64_t *keys;     /* [devices] */
    const int64_t *write;     /* [devices]: number of the write */
    float *total;             /* like integers */
    float *squares;           /* like integers, or NULL */
    int64_t devices, cells, stride_device, outputs, levels, slices;
    int32_t sides, offset, spare, noisy;
    uint32_t purpose;
    int32_t threads;
};

static inline vf look_up(const float *table, int64_t levels, vf small, vi level) {
    if (levels <= LANES) return __builtin_shuffle(small, level);
#ifdef __AVX512F__
    return (vf)_mm512_i32gather_ps((__m512i)level, table, 4);
#else
    vf r;
    for (int i = 0; i < LANES; i++) r[i] = table[level[i]];
    return r;
#endif
}

typedef int16_t vh __attribute__((vector_size(2 * LANES)));

static inline vi load_integers(const int16_t *from, int64_t count) {
    vh r = {};
    if (count >= LANES)
        memcpy(&r, from, 2 * LANES);
    else
        memcpy(&r, from, 2 * (size_t)count);
    return __builtin_convertvector(r, vi);
}

static void program_block(const program_args &a, int64_t device, int64_t block, vf conductances, vf sigmas) {
    int64_t start = block * BLOCK, base = device * a.cells;
    const float *scale = a.scale + device * a.outputs;
    vf scales[4], total[4] = {}, squares[4] = {};
    vi codes[4] = {};
    for (int part = 0; part < 4; part++) {
        int64_t at = start + part * LANES, left = a.cells - at;
        if (left <= 0) break;
        int64_t column = at % a.outputs;
        if (column + LANES <= a.outputs)
            scales[part] = load(scale + column, LANES);
        else
            for (int i = 0; i < LANES; i++) scales[part][i] = scale[(at + i) % a.outputs];
        codes[part] = load_integers(a.integers + device * a.stride_device + at, left);
    }
    for (int side = 0; side < a.sides; side++)
        for (int64_t s = 0; s < a.slices; s++) {
            vf z[4];
            if (a.noisy)
                normal_block(a.keys[device], (uint32_t)block, a.purpose + (uint32_t)(side * a.slices + s),
                             (uint64_t)a.write[device], z);
            for (int part = 0; part < 4; part++) {
                vi magnitude = (side ? -codes[part] : codes[part]) + a.offset;
                magnitude = magnitude > 0 ? magnitude : vi{};
                vi level = (((magnitude << a.spare) >> a.shift[s]) & a.mask[s]) * a.stride[s];
                vf g = look_up(a.conductance, a.levels, conductances, level);
                if (a.noisy) g = g + look_up(a.sigma, a.levels, sigmas, level) * z[part];
                float factor = side ? -a.factor[s] : a.factor[s];
                total[part] = total[part] + g * factor;
                if (a.squares) squares[part] = squares[part] + g * g * (factor * factor);
            }
        }
    for (int part = 0; part < 4; part++) {
        int64_t at = start + part * LANES, left = a.cells - at;
        if (left <= 0) break;
        store(a.total + base + at, total[part] * scales[part], left);
        if (a.squares) store(a.squares + base + at, squares[part] * (scales[part] * scales[part]), left);
    }
}

/* Open-loop writes, a weight's cells summed to what they amount to at its output. */
extern "C" void nvcim_program(const program_args *args) {
    const program_args a = *args;
    int64_t blocks = (a.cells + BLOCK - 1) / BLOCK;
    vf conductances = load(a.conductance, a.levels), sigmas = load(a.sigma, a.levels);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t job = 0; job < a.devices * blocks; job++)
        program_block(a, job / blocks, job % blocks, conductances, sigmas);
}

/* Symmetric integers of one device's weights [inputs, outputs]; scale [outputs] is the largest magnitude / top, of each
 * column or of all. */
static void quantize_one(const float *weight, int64_t inputs, int64_t outputs, float top, bool per_column, float *scale,
                         int16_t *integers) {
    memset(scale, 0, 4 * (size_t)outputs);
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            vf v = load(weight + i * outputs + o, outputs - o), held = load(scale + o, outputs - o);
            v = v < 0.0f ? -v : v;
            store(scale + o, v > held ? v : held, outputs - o);
        }
    if (!per_column) {
        float largest = 0;
        for (int64_t o = 0; o < outputs; o++) largest = scale[o] > largest ? scale[o] : largest;
        for (int64_t o = 0; o < outputs; o++) scale[o] = largest;
    }
    for (int64_t o = 0; o < outputs; o++) scale[o] = scale[o] / top;
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            int64_t left = outputs - o;
            vf unit = load(scale + o, left);
            vf ratio = load(weight + i * outputs + o, left) / unit;
            ratio = unit > 0.0f ? ratio : splat(0);
            vi code = __builtin_convertvector(vclamp(vrint(ratio), -top, top), vi);
            vh narrow = __builtin_convertvector(code, vh);
            memcpy(integers + i * outputs + o, &narrow, 2 * (size_t)(left < LANES ? left : LANES));
        }
}

extern "C" void nvcim_quantize(const float *weight, int64_t devices, int64_t inputs, int64_t outputs, float top,
                               int32_t per_column, float *scale, int16_t *integers, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (devices > 1)
    for (int64_t device = 0; device < devices; device++)
        quantize_one(weight + device * inputs * outputs, inputs, outputs, top, per_column, scale + device * outputs,
                     integers + device * inputs * outputs);
}

/* Sums over the rows of every tile: squares (or magnitudes) of weights [devices, inputs, outputs] ->
 * sums [devices, tiles, outputs]. */
extern "C" void nvcim_column_sums(const float *weight, int64_t devices, int64_t inputs, int64_t outputs, int64_t tile_rows,
                                  int32_t squared, float *sums, int threads) {
    int64_t tiles = (inputs + tile_rows - 1) / tile_rows;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < devices * tiles; job++) {
        int64_t start = job % tiles * tile_rows, rows = inputs - start < tile_rows ? inputs - start : tile_rows;
        const float *from = weight + (job / tiles * inputs + start) * outputs;
        for (int64_t o = 0; o < outputs; o += LANES) {
            vf sum = {};
            for (int64_t i = 0; i < rows; i++) {
                vf v = load(from + i * outputs + o, outputs - o);
                sum = sum + (squared ? v * v : v < 0.0f ? -v : v);
            }
            store(sums + job * outputs + o, sum, outputs - o);
        }
    }
}
