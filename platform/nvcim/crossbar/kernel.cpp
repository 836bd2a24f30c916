/* The crossbar's inner loops, built with the package by setup.py and declared in kernel.py; counter_rng.py, mapping.py,
 * programming.py and conversion.py hold the same in plain torch and are what this file is tested against. Compiled without
 * contraction of a*b+c, so that draws, writes and quantisation agree to the bit; products are fused and summed in the
 * order of their inputs, so they are the same to the bit on every processor and differ from torch's by rounding.
 */
#include <stdlib.h>

#include "../vectors.h"

#define TINY 1.17549435e-38f
#define COUNTERS 16           /* Philox counters in a block, whatever the width of vectors */
#define BLOCK (4 * COUNTERS)  /* normals or uniforms of a block: number w of counter c stands at w * COUNTERS + c */

/* Philox4x32-10 (Salmon et al., SC 2011) for LANES counters (first + lane, c1, c2, c3). Words live in 64-bit lanes, even
 * counters in one vector and odd ones in another, because the 32x32 -> 64 bit product wants them so. */
struct words {
    vw a, b, c, d; /* the upper half of a lane may hold anything */
};

INLINE void philox_round(words &w, uint64_t k0, uint64_t k1) {
    vw p = multiply_words(w.a, 0xD2511F53u), q = multiply_words(w.c, 0xCD9E8D57u);
    w.a = (q >> 32) ^ w.b ^ k0;
    w.c = (p >> 32) ^ w.d ^ k1;
    w.b = q;
    w.d = p;
}

INLINE vu interleave(vw even, vw odd) { return (vu)((even & 0xFFFFFFFFull) | (odd << 32)); }

INLINE void philox(uint64_t key, uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, vu out[4]) {
    vw places;
    for (int i = 0; i < LANES / 2; i++) places[i] = 2 * (uint64_t)i;
    words even = {places + first, vw{} + c1, vw{} + c2, vw{} + c3};
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

/* Box and Muller on two words; the polynomials are Cephes' logf, sinf and cosf. */
INLINE void box_muller(vu first, vu second, vf *z0, vf *z1) {
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
    vf e = to_float(exponent);
    y = y + e * -2.12194440e-4f;
    y = y + square * -0.5f;
    vf log_u = x + y + e * 0.693359375f;
    vf radius = square_root(log_u * -2.0f);

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

/* Four normals each of LANES counters from `first` on. */
INLINE void normals_of(uint64_t key, uint32_t first, uint32_t purpose, uint64_t index, vf out[4]) {
    vu words[4];
    philox(key, first, purpose, (uint32_t)index, (uint32_t)(index >> 32), words);
    box_muller(words[0], words[1], &out[0], &out[1]);
    box_muller(words[2], words[3], &out[2], &out[3]);
}

INLINE void normal_block(uint64_t key, uint32_t block, uint32_t purpose, uint64_t index, float *out) {
    for (int lane = 0; lane < COUNTERS; lane += LANES) {
        vf z[4];
        normals_of(key, block * COUNTERS + (uint32_t)lane, purpose, index, z);
        for (int word = 0; word < 4; word++) store(out + word * COUNTERS + lane, z[word]);
    }
}

/* out [keys, indices, count] */
extern "C" void nvcim_normals(const uint64_t *keys, int64_t n_keys, uint32_t purpose, const int64_t *first_index, int64_t n_indices,
                   int64_t count, float *out, int threads) {
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < n_keys * n_indices * blocks; job++) {
        int64_t row = job / blocks, block = job % blocks;
        int64_t key = row / n_indices, index = first_index[key] + row % n_indices;
        float z[BLOCK];
        normal_block(keys[key], (uint32_t)block, purpose, (uint64_t)index, z);
        int64_t left = count - block * BLOCK;
        memcpy(out + row * count + block * BLOCK, z, 4 * (size_t)(left < BLOCK ? left : BLOCK));
    }
}

/* out [keys, count]: the words' upper 24 bits as fractions, in the same order as normals. */
extern "C" void nvcim_uniforms(const uint64_t *keys, int64_t n_keys, uint32_t purpose, const int64_t *index, int64_t count,
                               float *out, int threads) {
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < n_keys * blocks; job++) {
        int64_t key = job / blocks, block = job % blocks, left = count - block * BLOCK;
        float values[BLOCK];
        for (int lane = 0; lane < COUNTERS; lane += LANES) {
            vu words[4];
            philox(keys[key], (uint32_t)(block * COUNTERS + lane), purpose, (uint32_t)index[key],
                   (uint32_t)((uint64_t)index[key] >> 32), words);
            for (int word = 0; word < 4; word++)
                store(values + word * COUNTERS + lane, to_float(words[word] >> 8) * 0x1p-24f);
        }
        memcpy(out + key * count + block * BLOCK, values, 4 * (size_t)(left < BLOCK ? left : BLOCK));
    }
}

/* A sum over numbers whose order does not depend on the width of vectors: number i goes to place i % 16. */
struct running_sum {
    vf part[COUNTERS / LANES];
    float value() const {
        float places[COUNTERS], sum = 0;
        memcpy(places, part, sizeof places);
        for (int i = 0; i < COUNTERS; i++) sum += places[i];
        return sum;
    }
};

/* DAC: round vectors to codes, clip them to a given full scale, and sum their squares by row tile.
 * x, driven [vectors, size]; full_scale [vectors]: given, or else set to each vector's largest magnitude; top 0: nothing
 * is rounded, and without a full scale driven is left as it is. squares [vectors, tiles]. Returns how many inputs lie
 * beyond a given full scale. */
template <bool GIVEN>
static int64_t drive_one(const float *x, int64_t size, int64_t tile_rows, float top, float *full_scale, float *driven,
                         float *squares) {
    int64_t clipped = 0;
    if (!GIVEN) {
        vf largest = {};
        for (int64_t i = 0; i < size; i += LANES) {
            vf v = magnitude(load(x + i, size - i));
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
        running_sum sum = {};
        for (int64_t from = 0; from < rows; from += COUNTERS)
            for (int part = 0; part < COUNTERS / LANES; part++) {
                int64_t i = from + part * LANES;
                if (i >= rows) break;
                vf v = load(x + start + i, rows - i);
                if (GIVEN) clipped += count_true(magnitude(v) > *full_scale);
                if (top > 0) {
                    vf code = round_even(v / step);
                    v = (GIVEN ? clamp(code, -top, top) : code) * step;
                } else if (GIVEN) {
                    v = clamp(v, -*full_scale, *full_scale);
                }
                if (GIVEN || top > 0) store(driven + start + i, v, rows - i);
                sum.part[part] = sum.part[part] + v * v;
            }
        squares[tile] = sum.value();
    }
    return clipped;
}

extern "C" int64_t nvcim_drive(const float *x, int64_t vectors, int64_t size, int64_t tile_rows, float top, int32_t given,
                               float *full_scale, float *driven, float *squares, int threads) {
    int64_t tiles = (size + tile_rows - 1) / tile_rows, clipped = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : clipped)
    for (int64_t v = 0; v < vectors; v++)
        clipped += (given ? drive_one<true> : drive_one<false>)(x + v * size, size, tile_rows, top, full_scale + v,
                                                                driven + v * size, squares + v * tiles);
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

/* What belongs to up to LANES columns. */
struct periphery {
    vf noise, gain, shift, step;
};

template <noise NOISE, bool ADC> INLINE periphery columns_at(const read_args &a, int64_t at, int64_t left) {
    periphery c = {};
    if (NOISE == UNIFORM) c.noise = load(a.noise_col + at, left);
    if (ADC) {
        c.gain = load(a.adc_gain + at, left);
        c.step = load(a.adc_col + at, left);
        if (a.adc_shift) c.shift = load(a.adc_shift + at, left);
    }
    return c;
}

/* What belongs to a vector's read of one tile. */
struct drive_row {
    float noise, step, inverse;
};

template <noise NOISE, bool ADC> INLINE drive_row row_at(const read_args &a, int64_t row) {
    drive_row r = {};
    if (NOISE == UNIFORM) r.noise = a.noise_row[row];
    if (ADC) {
        r.step = a.adc_row[row] < TINY ? TINY : a.adc_row[row];
        r.inverse = 1 / r.step;
    }
    return r;
}

/* Noise, ADC and the sum over row tiles for up to LANES outputs: currents v of columns c, driven by r; spread is the sigma
 * of BY_CELL noise, z standard normals. */
template <noise NOISE, bool ADC>
INLINE int64_t convert_lanes(const read_args &a, vf v, vf spread, vf z, const drive_row &r, const periphery &c, float *out,
                             bool first, int64_t left) {
    int64_t clipped = 0;
    if (NOISE == UNIFORM) v = v + c.noise * r.noise * z;
    if (NOISE == BY_CELL) v = v + spread * z;
    if (ADC) {
        vf code = v * c.gain * r.inverse;
        if (a.adc_shift) code = code + c.shift;
        code = round_even(code);
        vf held = clamp(code, -a.top, a.top);
        clipped = count_unlike(held, code); /* NaN is no saturation */
        v = held * c.step * r.step;
    }
    v = v * a.alpha;
    if (!first) v = load(out, left) + v;
    store(out, v, left);
    return clipped;
}

template <noise NOISE, bool ADC>
INLINE int64_t read_lanes(const read_args &a, int64_t row, int64_t columns, const float *z, float *out, bool first,
                          int64_t o, int64_t left) {
    vf spread = NOISE == BY_CELL ? square_root(load(a.variance + row * a.outputs + o, left)) : vf{};
    vf drawn = NOISE == QUIET ? vf{} : load(z + o);
    return convert_lanes<NOISE, ADC>(a, load(a.part + row * a.outputs + o, left), spread, drawn, row_at<NOISE, ADC>(a, row),
                                     columns_at<NOISE, ADC>(a, columns + o, left), out + o, first, left);
}

/* A vector's numbers lie tile by tile, each tile's outputs padded to whole blocks. */
static inline int64_t padded(int64_t outputs) { return (outputs + BLOCK - 1) / BLOCK * BLOCK; }

template <noise NOISE, bool ADC>
static int64_t read_one(const read_args &a, int64_t device, int64_t vector, float *normals) {
    int64_t clipped = 0, width = padded(a.outputs);
    float *out = a.out + device * a.out_device + vector * a.out_vector;
    if (NOISE != QUIET)
        for (int64_t block = 0; block * BLOCK < a.tiles * width; block++)
            normal_block(a.keys[device], (uint32_t)block, a.purpose, (uint64_t)(a.first[device] + vector),
                         normals + block * BLOCK);
    for (int64_t tile = 0; tile < a.tiles; tile++) {
        int64_t columns = (device * a.tiles + tile) * a.outputs, row = (device * a.tiles + tile) * a.vectors + vector;
        const float *z = normals + tile * width;
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
        size_t size = (size_t)(a.tiles * padded(a.outputs)) * 4;
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

/* The normals of LANES counters, at `lane` of a block's COUNTERS, and the cells that they belong to. */
static void program_cells(const program_args &a, int64_t device, int64_t block, int64_t lane, const table &conductances,
                          const table &sigmas) {
    int64_t start = block * BLOCK + lane, base = device * a.cells;
    const float *scale = a.scale + device * a.outputs;
    vf scales[4], total[4] = {}, squares[4] = {};
    vi codes[4] = {};
    for (int part = 0; part < 4; part++) {
        int64_t at = start + part * COUNTERS, left = a.cells - at;
        if (left <= 0) break;
        int64_t column = at % a.outputs;
        if (column + LANES <= a.outputs)
            scales[part] = load(scale + column);
        else
            for (int i = 0; i < LANES; i++) scales[part][i] = scale[(at + i) % a.outputs];
        codes[part] = load_integers(a.integers + device * a.stride_device + at, left);
    }
    vf bare_g = splat(a.conductance[0]), bare_sigma = splat(a.sigma[0]);
    for (int64_t s = 0; s < a.slices; s++) {
        /* A differential weight is on one side only: its magnitude is looked up once, the other side is at level 0. */
        vf g[4], sigma[4];
        for (int part = 0; part < 4; part++) {
            vi value = a.sides == 2 ? (codes[part] < 0 ? -codes[part] : codes[part]) : codes[part] + a.offset;
            vi level = (((value << a.spare) >> a.shift[s]) & a.mask[s]) * a.stride[s];
            g[part] = look_up(conductances, level);
            if (a.noisy) sigma[part] = look_up(sigmas, level);
        }
        for (int side = 0; side < a.sides; side++) {
            float factor = side ? -a.factor[s] : a.factor[s];
            vf z[4];
            if (a.noisy)
                normals_of(a.keys[device], (uint32_t)(block * COUNTERS + lane), a.purpose + (uint32_t)(side * a.slices + s),
                           (uint64_t)a.write[device], z);
            for (int part = 0; part < 4; part++) {
                vi here = a.sides == 1 ? ~vi{} : side ? codes[part] < 0 : codes[part] > 0;
                vf reached = here ? g[part] : bare_g;
                if (a.noisy) reached = reached + (here ? sigma[part] : bare_sigma) * z[part];
                total[part] = total[part] + reached * factor;
                if (a.squares) squares[part] = squares[part] + reached * reached * (factor * factor);
            }
        }
    }
    for (int part = 0; part < 4; part++) {
        int64_t at = start + part * COUNTERS, left = a.cells - at;
        if (left <= 0) break;
        store(a.total + base + at, total[part] * scales[part], left);
        if (a.squares) store(a.squares + base + at, squares[part] * (scales[part] * scales[part]), left);
    }
}

/* Open-loop writes, a weight's cells summed to what they amount to at its output. */
extern "C" void nvcim_program(const program_args *args) {
    const program_args a = *args;
    int64_t blocks = (a.cells + BLOCK - 1) / BLOCK;
    table conductances = table_of(a.conductance, a.levels), sigmas = table_of(a.sigma, a.levels);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t job = 0; job < a.devices * blocks; job++)
        for (int64_t lane = 0; lane < COUNTERS; lane += LANES)
            program_cells(a, job / blocks, job % blocks, lane, conductances, sigmas);
}

/* Symmetric integers of weights [devices, inputs, outputs]; scale [devices, outputs] is the largest magnitude / top, of
 * each column or of all; largest [devices, parts, outputs] is scratch. Rows are shared out in `parts`. */
extern "C" void nvcim_quantize(const float *weight, int64_t devices, int64_t inputs, int64_t outputs, float top,
                               int32_t per_column, int64_t parts, float *largest, float *scale, int16_t *integers,
                               int threads) {
    int64_t each = (inputs + parts - 1) / parts;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < devices * parts; job++) {
        float *own = largest + job * outputs;
        int64_t start = job % parts * each, stop = start + each < inputs ? start + each : inputs;
        memset(own, 0, 4 * (size_t)outputs);
        for (int64_t i = start; i < stop; i++)
            for (int64_t o = 0; o < outputs; o += LANES) {
                vf v = magnitude(load(weight + (job / parts * inputs + i) * outputs + o, outputs - o));
                vf held = load(own + o, outputs - o);
                store(own + o, v > held ? v : held, outputs - o);
            }
    }
    for (int64_t device = 0; device < devices; device++) {
        const float *own = largest + device * parts * outputs;
        float *unit = scale + device * outputs, all = 0;
        for (int64_t o = 0; o < outputs; o++) {
            unit[o] = 0;
            for (int64_t part = 0; part < parts; part++)
                unit[o] = own[part * outputs + o] > unit[o] ? own[part * outputs + o] : unit[o];
            all = unit[o] > all ? unit[o] : all;
        }
        for (int64_t o = 0; o < outputs; o++) unit[o] = (per_column ? unit[o] : all) / top;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < devices * inputs; row++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            int64_t left = outputs - o;
            vf unit = load(scale + row / inputs * outputs + o, left);
            vf ratio = load(weight + row * outputs + o, left) / unit;
            ratio = unit > 0.0f ? ratio : splat(0);
            store_integers(integers + row * outputs + o, to_integer(clamp(round_even(ratio), -top, top)), left);
        }
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
                sum = sum + (squared ? v * v : magnitude(v));
            }
            store(sums + job * outputs + o, sum, outputs - o);
        }
    }
}

/* Products and conversion in one pass ------------------------------------------------------------------------------
 *
 * A matrix product by tiles of ROWS x WIDE outputs held in registers: when a row tile of the array is summed, its
 * noise and ADC follow there and then, so no partial output ever reaches memory. Every output is summed in the order
 * of its inputs, whatever the shape, so a result does not depend on what it is computed together with. */

/* ROWS x 2 sums, two vectors of cells and one input fill the registers; BAND is a multiple of ROWS. */
#if defined(ISA_AVX512)
#define ROWS 13
#define BAND 260 /* vectors whose packed inputs stay in the second-level cache */
#elif defined(ISA_AVX2)
#define ROWS 6
#define BAND 258
#else
#define ROWS 8
#define BAND 256
#endif
#define WIDE (2 * LANES)

/* x: [vectors][size], stride x_stride -> [tiles][groups of ROWS vectors][rows of a tile][ROWS], padded with 0.
 * Whole vectors of lanes are stored, each over the end of the one before: `packed` holds LANES more. */
static void pack_inputs(const float *x, int64_t x_stride, int64_t vectors, int64_t size, int64_t tile_rows, bool square,
                        float *packed) {
    static_assert(ROWS <= LANES || ROWS % LANES == 0, "a store over the end must only reach what is stored later");
    for (int64_t start = 0; start < size; start += tile_rows) {
        int64_t rows = size - start < tile_rows ? size - start : tile_rows;
        for (int64_t group = 0; group < vectors; group += ROWS) {
            for (int64_t k = 0; k < rows; k += LANES)
                for (int64_t first = 0; first < ROWS; first += LANES) {
                    const float *from = x + (group + first) * x_stride + start + k;
                    int64_t high = vectors - group - first, wide = rows - k < LANES ? rows - k : LANES;
                    vf r[LANES];
#pragma GCC unroll 16
                    for (int64_t v = 0; v < LANES; v++) {
                        r[v] = v < ROWS - first && v < high ? load(from + v * x_stride, wide) : vf{};
                        if (square) r[v] = r[v] * r[v];
                    }
                    transpose(r);
#pragma GCC unroll 16
                    for (int64_t i = 0; i < LANES; i++)
                        if (i < wide) store(packed + (k + i) * ROWS + first, r[i]);
                }
            packed += rows * ROWS;
        }
    }
}

/* The first `wide` columns of some rows of a weight -> [panels][rows][WIDE], padded with 0. */
template <typename CELL>
static void pack_cells(const CELL *weight, int64_t outputs, int64_t rows, int64_t wide, float *packed) {
    for (int64_t k = 0; k < rows; k++, weight += outputs)
        for (int64_t o = 0; o < wide; o += WIDE)
            for (int64_t half = 0; half < WIDE; half += LANES) {
                vf v = wide > o + half ? load(weight + o + half, wide - o - half) : vf{};
                store(packed + o * rows + k * WIDE + half, v);
            }
}

struct product_args {
    read_args read;                 /* part and variance play no part */
    const float *x;                 /* [devices or 1, vectors, inputs], contiguous */
    const void *weight;             /* [devices, groups, inputs, outputs], float or bfloat16 */
    const void *variance;           /* like weight, or NULL */
    int64_t inputs, tile_rows;
    int64_t x_device;               /* stride */
    const float *alphas;            /* [groups], times read.alpha; the columns' numbers are [devices, groups, tiles, outputs] */
    int64_t groups;
    uint32_t group_purpose; /* from one group's stream to the next */
    int32_t half;           /* cells are bfloat16 */
};

/* The cells that are packed next lie a whole row of the weight apart, where the hardware does not look: each product of
 * the present ones asks for a share of them. */
template <typename CELL> struct ahead {
    const CELL *cells; /* NULL: these were the last */
    int64_t rows, stride;

    __attribute__((always_inline)) void ask(int64_t call, int64_t calls) const {
        if (cells == NULL) return;
        for (int64_t k = call * rows / calls; k < (call + 1) * rows / calls; k++)
            for (int64_t o = 0; o < BLOCK; o += 64 / (int64_t)sizeof(CELL)) /* a cache line */
                __builtin_prefetch(cells + k * stride + o, 0, 2);
    }
};

template <typename CELL>
static ahead<CELL> next_cells(const product_args &p, const CELL *weight, int64_t device, int64_t group, int64_t tile,
                              int64_t column, int64_t last_column) {
    if (++tile == p.read.tiles) tile = 0, group++;
    if (group == p.groups) group = 0, column += BLOCK;
    if (weight == NULL || column >= last_column) return {NULL, 0, 0};
    int64_t start = tile * p.tile_rows, rows = p.inputs - start < p.tile_rows ? p.inputs - start : p.tile_rows;
    return {weight + ((device * p.groups + group) * p.inputs + start) * p.read.outputs + column, rows, p.read.outputs};
}

/* A function of its own: inlined, GCC does not always keep the sums in registers. */
static __attribute__((noinline)) void product(const float *inputs, const float *cells, int64_t rows, vf out[ROWS][2]) {
    vf sum[ROWS][2] = {};
    for (int64_t k = 0; k < rows; k++) {
        vf low = load(cells + k * WIDE), high = load(cells + k * WIDE + LANES);
#pragma GCC unroll 16
        for (int v = 0; v < ROWS; v++) {
            vf x = splat(inputs[k * ROWS + v]);
            sum[v][0] = multiply_add(x, low, sum[v][0]);
            sum[v][1] = multiply_add(x, high, sum[v][1]);
        }
    }
    memcpy(out, sum, sizeof sum);
}

struct workspace {
    float *inputs, *squares, *cells, *spread, *normals, *out;
};

/* A tile's cells of one block of columns, for all vectors of a band: products, noise, ADC, added to w.out. */
template <noise NOISE, bool ADC, typename CELL>
static int64_t product_tile(const product_args &p, const read_args &a, int64_t device, int64_t group, int64_t tile,
                            int64_t band, int64_t vectors, int64_t column, int64_t wide, bool first,
                            const ahead<CELL> next[2], const workspace &w) {
    int64_t start = tile * p.tile_rows, rows = p.inputs - start < p.tile_rows ? p.inputs - start : p.tile_rows;
    int64_t batches = (vectors + ROWS - 1) / ROWS, packed = start * batches * ROWS, clipped = 0;
    int64_t cell = ((device * p.groups + group) * p.inputs + start) * a.outputs + column;
    pack_cells((const CELL *)p.weight + cell, a.outputs, rows, wide, w.cells);
    if (NOISE == BY_CELL) pack_cells((const CELL *)p.variance + cell, a.outputs, rows, wide, w.spread);
    if (NOISE != QUIET)
        for (int64_t v = 0; v < vectors; v++)
            normal_block(a.keys[device], (uint32_t)((tile * padded(a.outputs) + column) / BLOCK), a.purpose,
                         (uint64_t)(a.first[device] + band + v), w.normals + v * BLOCK);
    int64_t calls = (wide + WIDE - 1) / WIDE * batches, call = 0;
    for (int64_t panel = 0; panel < wide; panel += WIDE) {
        int64_t count = wide - panel < WIDE ? wide - panel : WIDE;
        int64_t columns = ((device * p.groups + group) * a.tiles + tile) * a.outputs + column + panel;
        periphery own[2] = {};
        for (int h = 0; h < 2 && h * LANES < count; h++)
            own[h] = columns_at<NOISE, ADC>(a, columns + h * LANES, count - h * LANES);
        for (int64_t batch = 0; batch < batches; batch++, call++) {
            next[0].ask(call, calls);
            if (NOISE == BY_CELL) next[1].ask(call, calls);
            vf sum[ROWS][2], spread[ROWS][2];
            if (NOISE == BY_CELL) {
                product(w.squares + packed + batch * rows * ROWS, w.spread + panel * rows, rows, sum);
                for (int v = 0; v < ROWS; v++)
                    for (int h = 0; h < 2; h++) spread[v][h] = square_root(sum[v][h]);
            }
            product(w.inputs + packed + batch * rows * ROWS, w.cells + panel * rows, rows, sum);
            int64_t some = vectors - batch * ROWS < ROWS ? vectors - batch * ROWS : ROWS;
            for (int64_t v = 0; v < some; v++) {
                int64_t vector = batch * ROWS + v;
                drive_row r = row_at<NOISE, ADC>(a, (device * a.tiles + tile) * a.vectors + band + vector);
                for (int h = 0; h < 2 && h * LANES < count; h++) {
                    int64_t o = vector * BLOCK + panel + h * LANES;
                    vf z = NOISE == QUIET ? vf{} : load(w.normals + o);
                    clipped += convert_lanes<NOISE, ADC>(a, sum[v][h], spread[v][h], z, r, own[h], w.out + o, first,
                                                         count - h * LANES);
                }
            }
        }
    }
    return clipped;
}

template <noise NOISE, bool ADC, typename CELL>
static int64_t product_band(const product_args &p, int64_t device, int64_t band, int64_t first_column, int64_t last_column,
                            const workspace &w) {
    int64_t vectors = p.read.vectors - band < BAND ? p.read.vectors - band : BAND, clipped = 0;
    const float *x = p.x + device * p.x_device + band * p.inputs;
    float *out = p.read.out + device * p.read.out_device + band * p.read.out_vector;
    pack_inputs(x, p.inputs, vectors, p.inputs, p.tile_rows, false, w.inputs);
    if (NOISE == BY_CELL) pack_inputs(x, p.inputs, vectors, p.inputs, p.tile_rows, true, w.squares);
    for (int64_t column = first_column; column < last_column; column += BLOCK) {
        int64_t wide = last_column - column < BLOCK ? last_column - column : BLOCK;
        for (int64_t v = 0; p.read.accumulate && v < vectors; v++)
            for (int64_t o = 0; o < wide; o += LANES)
                store(w.out + v * BLOCK + o, load(out + v * p.read.out_vector + column + o, wide - o), LANES);
        for (int64_t group = 0; group < p.groups; group++) {
            read_args own = p.read;
            own.alpha *= p.alphas[group];
            own.purpose += (uint32_t)group * p.group_purpose;
            for (int64_t tile = 0; tile < own.tiles; tile++) {
                const ahead<CELL> next[2] = {
                    next_cells(p, (const CELL *)p.weight, device, group, tile, column, last_column),
                    next_cells(p, (const CELL *)p.variance, device, group, tile, column, last_column)};
                bool first = tile == 0 && group == 0 && !own.accumulate;
                clipped += product_tile<NOISE, ADC, CELL>(p, own, device, group, tile, band, vectors, column, wide, first, next,
                                                          w);
            }
        }
        for (int64_t v = 0; v < vectors; v++)
            for (int64_t o = 0; o < wide; o += LANES)
                store(out + v * p.read.out_vector + column + o, load(w.out + v * BLOCK + o), wide - o);
    }
    return clipped;
}

template <noise NOISE, bool ADC> static int64_t product_all(const product_args p) {
    const read_args &a = p.read;
    int64_t clipped = 0, bands = (a.vectors + BAND - 1) / BAND, blocks = (a.outputs + BLOCK - 1) / BLOCK;
    /* Few bands are shared out by columns, at the price of packing their inputs more than once. */
    int64_t shares = a.devices * bands >= 4 * a.threads ? 1 : (a.threads < blocks ? a.threads : blocks);
    int64_t each = (blocks + shares - 1) / shares * BLOCK;
#pragma omp parallel num_threads(a.threads) reduction(+ : clipped)
    {
        size_t inputs = (size_t)((p.inputs * BAND + LANES) * 4 + 63) / 64 * 64, cells = (size_t)(p.tile_rows * BLOCK * 4);
        workspace w;
        w.inputs = (float *)aligned_alloc(64, inputs);
        w.squares = NOISE == BY_CELL ? (float *)aligned_alloc(64, inputs) : NULL;
        w.cells = (float *)aligned_alloc(64, cells);
        w.spread = NOISE == BY_CELL ? (float *)aligned_alloc(64, cells) : NULL;
        w.normals = (float *)aligned_alloc(64, BAND * BLOCK * 4);
        w.out = (float *)aligned_alloc(64, BAND * BLOCK * 4);
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < a.devices * bands * shares; job++) {
            int64_t share = job % shares, rest = job / shares;
            int64_t start = share * each, stop = start + each < a.outputs ? start + each : a.outputs;
            if (start < stop) clipped += (p.half ? product_band<NOISE, ADC, uint16_t> : product_band<NOISE, ADC, float>)(
                p, rest / bands, rest % bands * BAND, start, stop, w);
        }
        free(w.inputs);
        free(w.squares);
        free(w.cells);
        free(w.spread);
        free(w.normals);
        free(w.out);
    }
    return clipped;
}

/* inputs @ weight tile by tile, noise, ADC, and the sum over row tiles; returns how many outputs were clipped. */
extern "C" int64_t nvcim_product_read(const product_args *p) {
    bool adc = p->read.adc_row != NULL;
    if (p->variance) return adc ? product_all<BY_CELL, true>(*p) : product_all<BY_CELL, false>(*p);
    if (p->read.noise_row) return adc ? product_all<UNIFORM, true>(*p) : product_all<UNIFORM, false>(*p);
    return adc ? product_all<QUIET, true>(*p) : product_all<QUIET, false>(*p);
}

struct patch_args {
    const float *image;
    float *driven;     /* [groups, vectors, size] */
    float *full_scale; /* [groups, vectors]: given, or set */
    float *squares;    /* [groups, vectors, tiles] */
    int64_t shape[7];  /* images, rows, columns, groups, kernel rows, kernel columns, channels */
    int64_t stride[7]; /* of the patches in the image; the last one is 1 */
    int64_t tile_rows;
    float top;
    int32_t given, threads;
};

static void gather_patch(const patch_args &a, const float *from, float *to) {
    int64_t columns = a.shape[5], run = a.shape[6];
    if (a.stride[5] == run) run *= columns, columns = 1; /* neighbouring pixels lie side by side */
    for (int64_t row = 0; row < a.shape[4]; row++)
        for (int64_t column = 0; column < columns; column++, to += run) {
            const float *start = from + row * a.stride[4] + column * a.stride[5];
            int64_t i = 0;
            for (; i < run; i += LANES) store(to + i, load(start + i, run - i), run - i);
        }
}

/* Patches of images as a DAC drives them: nvcim_drive of what gather_patch finds. */
extern "C" int64_t nvcim_patches(const patch_args *args) {
    const patch_args a = *args;
    int64_t per_image = a.shape[1] * a.shape[2], vectors = a.shape[0] * per_image, clipped = 0;
    int64_t size = a.shape[4] * a.shape[5] * a.shape[6], tiles = (size + a.tile_rows - 1) / a.tile_rows;
#pragma omp parallel for num_threads(a.threads) schedule(static) reduction(+ : clipped)
    for (int64_t vector = 0; vector < vectors; vector++) {
        const float *position = a.image + vector / per_image * a.stride[0] +
                                vector % per_image / a.shape[2] * a.stride[1] + vector % a.shape[2] * a.stride[2];
        for (int64_t group = 0; group < a.shape[3]; group++) {
            int64_t at = group * vectors + vector;
            float *to = a.driven + at * size;
            gather_patch(a, position + group * a.stride[3], to);
            clipped += (a.given ? drive_one<true> : drive_one<false>)(to, size, a.tile_rows, a.top, a.full_scale + at, to,
                                                                      a.squares + at * tiles);
        }
    }
    return clipped;
}
