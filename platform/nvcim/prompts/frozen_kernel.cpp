/* Loss of one row (virtual tokens, question, answer) under a frozen decoder of the Llama family, and its gradient with
 * respect to the virtual tokens; built with the package by setup.py; frozen_kernel.py documents the structures.
 *
 * A row is computed on its own, on one thread, from first to last: its result depends on no other row, and its
 * activations stay in the cache. Nothing is computed that the answer's loss does not need:
 *   - the last layer's queries, output projection and MLP, and the logits, at the answer's positions only;
 *   - the first layer's queries, keys and values of the text once per job, since neither its embeddings nor its
 *     positions ever change, and no gradient with respect to the text;
 *   - no gradient of any weight; each matrix is packed once, in the order in which it is read, both ways.
 * Norm weights are folded into the matrix that follows them.
 */
#include <stdlib.h>

#include "../vectors.h"

/* TALL x PANEL sums fill the registers, with room for a panel's row and one input. */
#if defined(ISA_AVX512)
#define TALL 12 /* rows computed together */
#define ACROSS 2 /* vectors of a panel's row */
#elif defined(ISA_AVX2)
#define TALL 6
#define ACROSS 2
#else
#define TALL 6
#define ACROSS 4
#endif
#define PANEL (ACROSS * LANES) /* columns of a packed matrix that are computed together */
#define DEPTH 1024             /* inputs summed before the result is written */

/* Structures shared with frozen_kernel.py --------------------------------------------------------------------- */

struct matrix { /* [inputs, outputs] in panels of PANEL columns, each [inputs][PANEL]; bfloat16: [inputs / 2][PANEL][2] */
    const void *packed;
    const float *bias; /* [outputs] or NULL */
    int64_t inputs, outputs;
};

struct layer { /* forward, and transposed for the gradient */
    matrix q, kv, o, gate_up, down;
    matrix q_back, kv_back, o_back, gate_up_back, down_back;
};

struct decoder {
    const layer *layers;
    matrix head, head_back;
    const float *cosine, *sine; /* [positions, head_size] */
    int64_t count, hidden, heads, kv_heads, head_size, inner;
    float epsilon, scale;
    int32_t half;       /* matrices are bfloat16 */
    int32_t first_once; /* 0 and 0: everything at every position, to measure what the shortcuts gain */
    int32_t last_few;
};

struct row {
    const float *tokens;   /* [n, hidden] */
    const float *text;     /* [length, hidden] */
    const float *first_q;  /* [length, heads * head_size], with their positions */
    const float *first_kv; /* [length, 2 * kv_heads * head_size] */
    const int64_t *places; /* [answers] positions that predict, ascending, counted from the first virtual token */
    const int64_t *labels; /* [answers] */
    float *gradient;       /* [n, hidden], of loss */
    float *loss;           /* mean over the answer, times share */
    int64_t n, length, answers;
    float share;
};

/* Products ---------------------------------------------------------------------------------------------------- */

template <int M>
static void tile(int64_t depth, const float *a, int64_t row, int64_t column, const float *b, int64_t stride, float *c,
                 int64_t out, int64_t columns, bool add) {
    vf s[M][ACROSS];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
        for (int v = 0; v < ACROSS; v++) s[m][v] = vf{};
    for (int64_t k = 0; k < depth; k++) {
        vf wide[ACROSS];
        for (int v = 0; v < ACROSS; v++) wide[v] = load(b + k * stride + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            vf x = splat(a[m * row + k * column]);
            for (int v = 0; v < ACROSS; v++) s[m][v] = multiply_add(x, wide[v], s[m][v]);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
        for (int v = 0; v < ACROSS && v * LANES < columns; v++) {
            float *target = c + m * out + v * LANES;
            int64_t left = columns - v * LANES;
            store(target, add ? load(target, left) + s[m][v] : s[m][v], left);
        }
}

#ifdef ISA_AVX512
#define HALF __attribute__((target("avx512bf16"))) /* called only where nvcim_frozen_half says 1 */

template <int M>
HALF static void tile_half(int64_t pairs, const uint16_t *a, int64_t row, const uint16_t *b, float *c, int64_t out,
                      int64_t columns, bool add) {
    __m512 s[M][2];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) s[m][0] = s[m][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + k * 2 * PANEL);
        __m512bh b1 = (__m512bh)_mm512_loadu_si512(b + k * 2 * PANEL + PANEL);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            int32_t pair;
            memcpy(&pair, a + m * row + 2 * k, 4);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            s[m][0] = _mm512_dpbf16_ps(s[m][0], x, b0);
            s[m][1] = _mm512_dpbf16_ps(s[m][1], x, b1);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
        float part[PANEL];
        _mm512_storeu_ps(part, s[m][0]);
        _mm512_storeu_ps(part + LANES, s[m][1]);
        float *target = c + m * out;
        for (int64_t j = 0; j < columns; j++) target[j] = add ? target[j] + part[j] : part[j];
    }
}
#endif

#define EACH_HEIGHT(CALL)                                                                                             \
    case 1: CALL(1); break; case 2: CALL(2); break; case 3: CALL(3); break; case 4: CALL(4); break;                   \
    case 5: CALL(5); break; case 6: CALL(6); break; case 7: CALL(7); break; case 8: CALL(8); break;                   \
    case 9: CALL(9); break; case 10: CALL(10); break; case 11: CALL(11); break; case 12: CALL(12); break;

static void block(int64_t rows, int64_t depth, const float *a, int64_t row, int64_t column, const float *b,
                  int64_t stride, float *c, int64_t out, int64_t columns, bool add) {
#define CALL(M) tile<M>(depth, a, row, column, b, stride, c, out, columns, add)
    switch (rows) { EACH_HEIGHT(CALL) }
#undef CALL
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t rounded(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* c[rows, columns] (+)= a[rows, depth] b[depth, columns]; b row by row, readable PANEL columns beyond any start */
static void product(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t row, int64_t column,
                    const float *b, int64_t stride, int64_t panel, float *c, int64_t out, bool add) {
    for (int64_t j = 0; j < columns; j += PANEL)
        for (int64_t i = 0; i < rows; i += TALL)
            block(least(TALL, rows - i), depth, a + i * row, row, column, b + j / PANEL * panel, stride,
                  c + i * out + j, out, least(PANEL, columns - j), add);
}

#ifdef ISA_AVX512
/* round to nearest even; NaN stays NaN as long as its upper half says so */
HALF static void halved(const float *x, int64_t rows, int64_t inputs, int64_t stride, uint16_t *half) {
    int64_t even = rounded(inputs, 2);
    for (int64_t i = 0; i < rows; i++) {
        int64_t j = 0;
        for (; j + LANES <= inputs; j += LANES)
            _mm256_storeu_si256((__m256i *)(half + i * even + j),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i * stride + j)));
        for (; j < even; j++) {
            __m128bh one = _mm_cvtneps_pbh(_mm_set_ss(j < inputs ? x[i * stride + j] : 0.0f));
            half[i * even + j] = (uint16_t)_mm_extract_epi16((__m128i)one, 0);
        }
    }
}
#endif

/* y[rows, outputs] (+)= x[rows, inputs] w + bias; half: room for x in bfloat16, or NULL for float32 */
static void linear(const matrix &w, const float *x, int64_t stride, int64_t rows, float *y, int64_t out, bool add,
                   uint16_t *half) {
#ifdef ISA_AVX512
    if (half) {
        int64_t even = rounded(w.inputs, 2);
        halved(x, rows, w.inputs, stride, half);
        for (int64_t j = 0; j < w.outputs; j += PANEL)
            for (int64_t i = 0; i < rows; i += TALL) {
                const uint16_t *b = (const uint16_t *)w.packed + j * even;
#define CALL(M) tile_half<M>(even / 2, half + i * even, even, b, y + i * out + j, out, least(PANEL, w.outputs - j), add)
                switch (least(TALL, rows - i)) { EACH_HEIGHT(CALL) }
#undef CALL
            }
    } else
#endif
        for (int64_t j = 0; j < w.outputs; j += PANEL) {
            const float *b = (const float *)w.packed + j * w.inputs;
            for (int64_t k = 0; k < w.inputs; k += DEPTH)
                product(rows, least(PANEL, w.outputs - j), least(DEPTH, w.inputs - k), x + k, stride, 1, b + k * PANEL,
                        PANEL, 0, y + j, out, add || k);
        }
    if (w.bias)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < w.outputs; j++) y[i * out + j] += w.bias[j];
}

/* Norm, rotation, SwiGLU -------------------------------------------------------------------------------------- */

static void norm(const float *x, int64_t rows, int64_t width, float epsilon, float *y, float *inverse) {
    for (int64_t i = 0; i < rows; i++, x += width, y += width) {
        vf s = vf{};
        float rest = 0;
        int64_t j = 0;
        for (; j + LANES <= width; j += LANES) s += load(x + j) * load(x + j);
        for (; j < width; j++) rest += x[j] * x[j];
        float r = 1.0f / sqrtf((total(s) + rest) / (float)width + epsilon);
        inverse[i] = r;
        for (j = 0; j < width; j++) y[j] = x[j] * r;
    }
}

/* dx += gradient of norm: r dy - x r^3 (dy . x) / width */
static void norm_back(const float *x, const float *inverse, const float *dy, int64_t rows, int64_t width, float *dx) {
    for (int64_t i = 0; i < rows; i++, x += width, dy += width, dx += width) {
        vf s = vf{};
        float rest = 0, r = inverse[i];
        int64_t j = 0;
        for (; j + LANES <= width; j += LANES) s += load(x + j) * load(dy + j);
        for (; j < width; j++) rest += x[j] * dy[j];
        float along = r * r * r * (total(s) + rest) / (float)width;
        for (j = 0; j < width; j++) dx[j] += r * dy[j] - along * x[j];
    }
}

/* Turn each head's two halves by its position's angle (direction 1) or back (-1); places NULL: 0, 1, 2, ... */
static void turn(const decoder &d, float *x, int64_t rows, int64_t heads, int64_t stride, const int64_t *places,
                 int64_t first, float direction) {
    int64_t half = d.head_size / 2;
    for (int64_t i = 0; i < rows; i++) {
        int64_t place = places ? places[i] : first + i;
        const float *c = d.cosine + place * d.head_size, *s = d.sine + place * d.head_size;
        for (int64_t h = 0; h < heads; h++) {
            float *low = x + i * stride + h * d.head_size, *high = low + half;
            for (int64_t j = 0; j < half; j++) {
                float a = low[j], b = high[j];
                low[j] = a * c[j] - direction * b * s[j];
                high[j] = b * c[j] + direction * a * s[j];
            }
        }
    }
}

static void swiglu(const float *gate_up, int64_t rows, int64_t inner, float *y) {
    for (int64_t i = 0; i < rows; i++) {
        const float *g = gate_up + i * 2 * inner, *u = g + inner;
        int64_t j = 0;
        for (; j + LANES <= inner; j += LANES)
            store(y + i * inner + j, load(g + j) * load(u + j) / (1.0f + exponential(-load(g + j))));
        for (; j < inner; j++) y[i * inner + j] = g[j] * u[j] / (1.0f + expf(-g[j]));
    }
}

/* gate_up becomes its gradient; dy: [rows, inner] */
static void swiglu_back(float *gate_up, const float *dy, int64_t rows, int64_t inner) {
    for (int64_t i = 0; i < rows; i++) {
        float *g = gate_up + i * 2 * inner, *u = g + inner;
        int64_t j = 0;
        for (; j + LANES <= inner; j += LANES) {
            vf gate = load(g + j), open = 1.0f / (1.0f + exponential(-gate)), d = load(dy + i * inner + j);
            vf up = load(u + j);
            store(u + j, d * gate * open);
            store(g + j, d * up * open * (1.0f + gate * (1.0f - open)));
        }
        for (; j < inner; j++) {
            float open = 1.0f / (1.0f + expf(-g[j])), d = dy[i * inner + j], up = u[j];
            u[j] = d * g[j] * open;
            g[j] = d * up * open * (1.0f + g[j] * (1.0f - open));
        }
    }
}

/* Attention --------------------------------------------------------------------------------------------------- */

/* [rows, size] with stride -> panels of PANEL rows, each [size][PANEL]: the transposed matrix, ready as a factor */
static void transposed(const float *x, int64_t rows, int64_t size, int64_t stride, float *t) {
    for (int64_t first = 0; first < rows; first += PANEL, t += size * PANEL)
        for (int64_t i = 0; i < PANEL; i++)
            for (int64_t j = 0; j < size; j++) t[j * PANEL + i] = first + i < rows ? x[(first + i) * stride + j] : 0.0f;
}

struct attention {
    const float *q, *kv;   /* [asking, heads * size], [length, 2 * kv_heads * size] */
    const int64_t *places; /* [asking] of each query among the keys, ascending */
    int64_t asking, length;
    float *weights, *slope; /* [asking, wide] each */
    float *keys, *values;   /* a head's, transposed */
    int64_t wide;           /* length rounded up to whole panels */
};

/* weights of one head: softmax over the keys up to each query's own place, 0 beyond */
static void attend(const decoder &d, const attention &a, int64_t head) {
    int64_t size = d.head_size, group = head / (d.heads / d.kv_heads), stride = 2 * d.kv_heads * size;
    transposed(a.kv + group * size, a.length, size, stride, a.keys);
    for (int64_t i = 0; i < a.asking; i += TALL) {
        int64_t rows = least(TALL, a.asking - i), seen = rounded(a.places[i + rows - 1] + 1, PANEL);
        product(rows, seen, size, a.q + i * d.heads * size + head * size, d.heads * size, 1, a.keys, PANEL, size * PANEL,
                a.weights + i * a.wide, a.wide, false);
        for (int64_t m = i; m < i + rows; m++) {
            float *w = a.weights + m * a.wide;
            int64_t end = a.places[m] + 1, whole = rounded(end, LANES);
            for (int64_t j = end; j < whole; j++) w[j] = w[end - 1];
            vf high = load(w);
            for (int64_t j = LANES; j < whole; j += LANES) high = load(w + j) > high ? load(w + j) : high;
            float top = high[0];
            for (int l = 1; l < LANES; l++) top = high[l] > top ? high[l] : top;
            for (int64_t j = 0; j < whole; j += LANES) store(w + j, exponential((load(w + j) - top) * d.scale));
            for (int64_t j = end; j < a.wide; j++) w[j] = 0;
            vf s = vf{};
            for (int64_t j = 0; j < whole; j += LANES) s += load(w + j);
            float inverse = 1.0f / total(s);
            for (int64_t j = 0; j < whole; j += LANES) store(w + j, load(w + j) * inverse);
        }
    }
}

static void attention_forward(const decoder &d, const attention &a, float *out) {
    int64_t size = d.head_size, width = d.heads * size, stride = 2 * d.kv_heads * size;
    for (int64_t head = 0; head < d.heads; head++) {
        const float *v = a.kv + d.kv_heads * size + head / (d.heads / d.kv_heads) * size;
        attend(d, a, head);
        for (int64_t i = 0; i < a.asking; i += TALL) {
            int64_t rows = least(TALL, a.asking - i);
            product(rows, size, a.places[i + rows - 1] + 1, a.weights + i * a.wide, a.wide, 1, v, stride, PANEL,
                    out + i * width + head * size, width, false);
        }
    }
}

/* dq [asking, heads * size] and dkv [length, 2 * kv_heads * size] from dout; dkv is set, not added to */
static void attention_back(const decoder &d, const attention &a, const float *dout, float *dq, float *dkv) {
    int64_t size = d.head_size, width = d.heads * size, stride = 2 * d.kv_heads * size, share = d.heads / d.kv_heads;
    for (int64_t head = 0; head < d.heads; head++) {
        int64_t group = head / share;
        const float *k = a.kv + group * size, *q = a.q + head * size, *dy = dout + head * size;
        float *dk = dkv + group * size, *dv = dk + d.kv_heads * size;
        attend(d, a, head);
        transposed(k + d.kv_heads * size, a.length, size, stride, a.values);
        for (int64_t i = 0; i < a.asking; i += TALL) {
            int64_t rows = least(TALL, a.asking - i), seen = a.places[i + rows - 1] + 1, whole = rounded(seen, PANEL);
            product(rows, whole, size, dy + i * width, width, 1, a.values, PANEL, size * PANEL, a.slope + i * a.wide,
                    a.wide, false);
            for (int64_t m = i; m < i + rows; m++) { /* gradient of the softmax's input, before its scale */
                float *s = a.slope + m * a.wide;
                const float *w = a.weights + m * a.wide;
                vf sum = vf{};
                for (int64_t j = 0; j < whole; j += LANES) sum += load(s + j) * load(w + j);
                float mean = total(sum);
                for (int64_t j = 0; j < whole; j += LANES) store(s + j, (load(s + j) - mean) * load(w + j) * d.scale);
                for (int64_t j = whole; j < a.wide; j++) s[j] = 0;
            }
            product(rows, size, seen, a.slope + i * a.wide, a.wide, 1, k, stride, PANEL, dq + i * width + head * size,
                    width, false);
        }
        bool add = head % share != 0;
        int64_t from = 0;
        for (int64_t j = 0; j < a.length; j += TALL) { /* keys are seen by the queries at or after them */
            int64_t rows = least(TALL, a.length - j);
            while (from < a.asking && a.places[from] < j) from++;
            product(rows, size, a.asking - from, a.slope + from * a.wide + j, 1, a.wide, q + from * width, width, PANEL,
                    dk + j * stride, stride, add);
            product(rows, size, a.asking - from, a.weights + from * a.wide + j, 1, a.wide, dy + from * width, width,
                    PANEL, dv + j * stride, stride, add);
        }
    }
}

/* A row ------------------------------------------------------------------------------------------------------- */

struct arena { /* hands out pieces of one allocation, each with room to be read a panel too far */
    float *base;
    int64_t used;
    float *take(int64_t floats) {
        float *piece = base ? base + used : nullptr;
        used += rounded(floats, LANES) + 2 * PANEL;
        return piece;
    }
};

struct kept { /* of one layer's forward pass */
    float *x, *inverse, *q, *kv, *middle, *middle_inverse, *gate_up;
};

struct room {
    kept *layers;
    float *normal, *wide, *mixed, *back, *slope_q, *slope_kv, *dx, *few, *logits, *weights, *slope, *keys, *values;
    float *last, *last_inverse;
    int64_t *all;
    uint16_t *half;
};

static room lay_out(const decoder &d, const row &r, arena &a) {
    int64_t length = r.n + r.length, q = d.heads * d.head_size, kv = 2 * d.kv_heads * d.head_size;
    int64_t wide = rounded(length, PANEL), broad = most(most(q, kv), most(2 * d.inner, d.hidden));
    room m = {};
    m.layers = (kept *)a.take(d.count * (int64_t)sizeof(kept) / 4 + LANES);
    for (int64_t l = 0; l < d.count; l++) {
        kept k = {a.take(length * d.hidden), a.take(length),  a.take(length * q), a.take(length * kv),
                  a.take(length * d.hidden), a.take(length), a.take(length * 2 * d.inner)};
        if (m.layers) m.layers[l] = k;
    }
    m.normal = a.take(length * d.hidden);
    m.wide = a.take(length * broad);
    m.mixed = a.take(length * q);
    m.back = a.take(length * q);
    m.slope_q = a.take(length * q);
    m.slope_kv = a.take(length * kv);
    m.dx = a.take(length * d.hidden);
    m.few = a.take(length * d.hidden);
    m.last = a.take(length * d.hidden);
    m.last_inverse = a.take(length);
    m.logits = a.take(r.answers * d.head.outputs);
    m.weights = a.take(length * wide);
    m.slope = a.take(length * wide);
    m.keys = a.take(wide * d.head_size);
    m.values = a.take(wide * d.head_size);
    m.all = (int64_t *)a.take(2 * length);
    m.half = d.half ? (uint16_t *)a.take(length * rounded(most(broad, d.head.outputs), 2)) : nullptr;
    return m;
}

static void gather(const float *x, const int64_t *places, int64_t rows, int64_t width, float *y) {
    for (int64_t i = 0; i < rows; i++) memmove(y + i * width, x + places[i] * width, (size_t)width * 4);
}

static void solve(const decoder &d, const row &r, room &m) {
    int64_t length = r.n + r.length, hidden = d.hidden, q = d.heads * d.head_size, kv = 2 * d.kv_heads * d.head_size;
    int64_t wide = rounded(length, PANEL);
    for (int64_t i = 0; i < length; i++) m.all[i] = i;
    memcpy(m.layers[0].x, r.tokens, (size_t)(r.n * hidden) * 4);
    memcpy(m.layers[0].x + r.n * hidden, r.text, (size_t)(r.length * hidden) * 4);
    for (int64_t l = 0; l < d.count; l++) {
        const layer &w = d.layers[l];
        kept &k = m.layers[l];
        bool final = l + 1 == d.count, few = final && d.last_few, once = l == 0 && d.first_once;
        int64_t made = once ? r.n : length; /* positions whose queries, keys and values are computed */
        int64_t asking = few ? r.answers : length;
        const int64_t *places = few ? r.places : m.all;
        norm(k.x, made, hidden, d.epsilon, m.normal, k.inverse);
        linear(w.kv, m.normal, hidden, made, k.kv, kv, false, m.half);
        turn(d, k.kv, made, d.kv_heads, kv, nullptr, 0, 1);
        if (few && !once) {
            gather(m.normal, places, asking, hidden, m.few);
            linear(w.q, m.few, hidden, asking, k.q, q, false, m.half);
            turn(d, k.q, asking, d.heads, q, places, 0, 1);
        } else {
            linear(w.q, m.normal, hidden, made, k.q, q, false, m.half);
            turn(d, k.q, made, d.heads, q, nullptr, 0, 1);
        }
        if (once) {
            memcpy(k.q + r.n * q, r.first_q, (size_t)(r.length * q) * 4);
            memcpy(k.kv + r.n * kv, r.first_kv, (size_t)(r.length * kv) * 4);
            if (few) gather(k.q, places, asking, q, k.q); /* ascending, so nothing is overwritten before it is read */
        }
        attention a = {k.q, k.kv, places, asking, length, m.weights, m.slope, m.keys, m.values, wide};
        attention_forward(d, a, m.mixed);
        if (few) gather(k.x, places, asking, hidden, k.middle);
        else memcpy(k.middle, k.x, (size_t)(length * hidden) * 4);
        linear(w.o, m.mixed, q, asking, k.middle, hidden, true, m.half);
        norm(k.middle, asking, hidden, d.epsilon, m.normal, k.middle_inverse);
        linear(w.gate_up, m.normal, hidden, asking, k.gate_up, 2 * d.inner, false, m.half);
        swiglu(k.gate_up, asking, d.inner, m.wide);
        float *next = final ? m.last : m.layers[l + 1].x;
        memcpy(next, k.middle, (size_t)(asking * hidden) * 4);
        linear(w.down, m.wide, d.inner, asking, next, hidden, true, m.half);
    }

    /* the answer's loss, and its gradient with respect to the last layer's output */
    if (!d.last_few) gather(m.last, r.places, r.answers, hidden, m.last); /* as above */
    norm(m.last, r.answers, hidden, d.epsilon, m.normal, m.last_inverse);
    int64_t words = d.head.outputs;
    linear(d.head, m.normal, hidden, r.answers, m.logits, words, false, m.half);
    double loss = 0;
    for (int64_t i = 0; i < r.answers; i++) {
        float *z = m.logits + i * words, top = z[0], said = z[r.labels[i]], weight = r.share / (float)r.answers;
        for (int64_t j = 1; j < words; j++) top = z[j] > top ? z[j] : top;
        vf part = vf{};
        double sum = 0;
        int64_t j = 0;
        for (; j + LANES <= words; j += LANES) {
            store(z + j, exponential(load(z + j) - top));
            part += load(z + j);
        }
        for (; j < words; j++) sum += z[j] = expf(z[j] - top);
        sum += total(part);
        loss += (log(sum) + top - said) * weight;
        float scale = weight / (float)sum;
        for (j = 0; j < words; j++) z[j] *= scale;
        z[r.labels[i]] -= weight;
    }
    *r.loss = (float)loss;
    linear(d.head_back, m.logits, words, r.answers, m.normal, hidden, false, m.half);
    memset(m.dx, 0, (size_t)(length * hidden) * 4);
    if (d.last_few) {
        norm_back(m.last, m.last_inverse, m.normal, r.answers, hidden, m.dx);
    } else {
        memset(m.few, 0, (size_t)(r.answers * hidden) * 4);
        norm_back(m.last, m.last_inverse, m.normal, r.answers, hidden, m.few);
        for (int64_t i = 0; i < r.answers; i++)
            memcpy(m.dx + r.places[i] * hidden, m.few + i * hidden, (size_t)hidden * 4);
    }

    for (int64_t l = d.count - 1; l >= 0; l--) { /* dx: of the layer's output, [asking]; becomes that of its input */
        const layer &w = d.layers[l];
        kept &k = m.layers[l];
        bool few = l + 1 == d.count && d.last_few;
        int64_t asking = few ? r.answers : length, made = l == 0 && d.first_once ? r.n : length;
        const int64_t *places = few ? r.places : m.all;
        linear(w.down_back, m.dx, hidden, asking, m.wide, d.inner, false, m.half);
        swiglu_back(k.gate_up, m.wide, asking, d.inner);
        linear(w.gate_up_back, k.gate_up, 2 * d.inner, asking, m.normal, hidden, false, m.half);
        norm_back(k.middle, k.middle_inverse, m.normal, asking, hidden, m.dx);
        linear(w.o_back, m.dx, hidden, asking, m.back, q, false, m.half);
        attention a = {k.q, k.kv, places, asking, length, m.weights, m.slope, m.keys, m.values, wide};
        attention_back(d, a, m.back, m.slope_q, m.slope_kv);
        turn(d, m.slope_q, asking, d.heads, q, places, 0, -1);
        turn(d, m.slope_kv, made, d.kv_heads, kv, nullptr, 0, -1);
        linear(w.kv_back, m.slope_kv, kv, made, m.normal, hidden, false, m.half);
        if (few) { /* queries and residual of a few positions, spread over all */
            linear(w.q_back, m.slope_q, q, asking, m.few, hidden, false, m.half);
            for (int64_t i = 0; i < asking; i++)
                if (places[i] < made)
                    for (int64_t j = 0; j < hidden; j++) m.normal[places[i] * hidden + j] += m.few[i * hidden + j];
            memcpy(m.few, m.dx, (size_t)(asking * hidden) * 4);
            memset(m.dx, 0, (size_t)(length * hidden) * 4);
            for (int64_t i = 0; i < asking; i++)
                memcpy(m.dx + places[i] * hidden, m.few + i * hidden, (size_t)hidden * 4);
        } else {
            linear(w.q_back, m.slope_q, q, made, m.normal, hidden, true, m.half);
        }
        norm_back(k.x, k.inverse, m.normal, made, hidden, m.dx);
    }
    memcpy(r.gradient, m.dx, (size_t)(r.n * hidden) * 4);
}

extern "C" {

/* Losses and gradients of rows; returns 0, or 1 if memory ran out. */
int32_t nvcim_frozen_rows(const decoder *d, const row *rows, int64_t count, int32_t threads) {
    int64_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        arena measure = {nullptr, 0};
        lay_out(*d, rows[i], measure);
        largest = most(largest, measure.used);
    }
    int32_t failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        arena own = {(float *)aligned_alloc(64, (size_t)rounded(largest * 4, 64)), 0};
        failed = own.base == nullptr;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            if (failed) continue;
            own.used = 0;
            room m = lay_out(*d, rows[i], own);
            solve(*d, rows[i], m);
        }
        free(own.base);
    }
    return failed;
}

/* First layer's queries, keys and values of texts [length, hidden] that begin at position n; q and kv are written. */
int32_t nvcim_frozen_first(const decoder *d, const float *text, int64_t length, int64_t n, float *q, float *kv) {
    int64_t wide = d->heads * d->head_size, pair = 2 * d->kv_heads * d->head_size;
    int64_t floats = length * (d->hidden + 1) + 2 * PANEL, halves = d->half ? length * (d->hidden + 1) : 0;
    float *normal = (float *)malloc((size_t)(floats * 4 + halves * 2));
    if (!normal) return 1;
    uint16_t *half = d->half ? (uint16_t *)(normal + floats) : nullptr;
    norm(text, length, d->hidden, d->epsilon, normal + length, normal);
    linear(d->layers[0].q, normal + length, d->hidden, length, q, wide, false, half);
    linear(d->layers[0].kv, normal + length, d->hidden, length, kv, pair, false, half);
    turn(*d, q, length, d->heads, wide, nullptr, n, 1);
    turn(*d, kv, length, d->kv_heads, pair, nullptr, n, 1);
    free(normal);
    return 0;
}

/* Columns of a panel: matrices are packed to it. */
int64_t nvcim_frozen_panel(void) { return PANEL; }

/* Whether this processor has products in bfloat16. */
int32_t nvcim_frozen_half(void) {
#ifdef ISA_AVX512
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}
}
