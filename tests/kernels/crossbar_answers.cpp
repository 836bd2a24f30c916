/* What the crossbar's kernel gives for fixed inputs, one array after the other on standard output: a line with its name
 * and count, then its float32 values. test_portable.py builds it for several instruction sets and compares. */
#include <stdio.h>

#include "../../platform/nvcim/crossbar/kernel.cpp"

#include <vector>

typedef std::vector<float> floats;

static void put(const char *name, const floats &values) {
    printf("%s %zu\n", name, values.size());
    fwrite(values.data(), 4, values.size(), stdout);
}

/* Uniform between -1 and 1: the same on every machine, as test_portable.py draws them, too. */
static floats numbers(size_t count, uint64_t seed) {
    floats values(count);
    for (float &value : values) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        value = (float)(int32_t)(seed >> 40) * 0x1p-23f - 1.0f;
    }
    return values;
}

static const uint64_t KEYS[2] = {0, (1ull << 62) + 12345};

static void draws() {
    const int64_t first[2] = {0, (1ll << 33) - 1};
    floats normals(2 * 3 * 150), uniforms(2 * 150);
    nvcim_normals(KEYS, 2, 0, first, 3, 150, normals.data(), 2);
    nvcim_uniforms(KEYS, 2, 0, first, 150, uniforms.data(), 2);
    put("normals", normals);
    put("uniforms", uniforms);
}

static void drives() {
    floats x = numbers(5 * 37, 1), driven(5 * 37), full(5), squares(5 * 3);
    nvcim_drive(x.data(), 5, 37, 16, 127, 0, full.data(), driven.data(), squares.data(), 2);
    put("driven", driven);
    put("squares", squares);
    full.assign(5, 0.5f);
    int64_t clipped = nvcim_drive(x.data(), 5, 37, 16, 127, 1, full.data(), driven.data(), squares.data(), 2);
    put("driven_full_scale", driven);
    put("clipped", floats{(float)clipped});
}

/* Weights [2, 37, 21] as integers of 9 bits, their scales, and their cells of `levels` levels. */
static void writes(int64_t levels) {
    floats weight = numbers(2 * 37 * 21, 2), largest(2 * 3 * 21), scale(2 * 21), total(2 * 37 * 21), squares(2 * 37 * 21);
    std::vector<int16_t> integers(2 * 37 * 21);
    nvcim_quantize(weight.data(), 2, 37, 21, 255, 1, 3, largest.data(), scale.data(), integers.data(), 2);
    floats whole(integers.begin(), integers.end());
    char name[64];
    if (levels == 4) put("integers", whole), put("scale", scale);

    int bits = levels == 4 ? 2 : levels == 16 ? 4 : 8, slices = 8 / bits;
    floats conductance(levels), sigma(levels), factor(slices);
    std::vector<int32_t> shift(slices), mask(slices), stride(slices, 1);
    for (int64_t i = 0; i < levels; i++) conductance[i] = (float)i / (float)(levels - 1), sigma[i] = 0.05f + 0.001f * (float)i;
    for (int s = 0; s < slices; s++) shift[s] = s * bits, mask[s] = (int32_t)levels - 1, factor[s] = (float)(1 << (s * bits));
    const int64_t write[2] = {0, 3};
    program_args a = {};
    a.integers = integers.data(), a.scale = scale.data(), a.conductance = conductance.data(), a.sigma = sigma.data();
    a.shift = shift.data(), a.mask = mask.data(), a.stride = stride.data(), a.factor = factor.data();
    a.keys = KEYS, a.write = write, a.total = total.data(), a.squares = squares.data();
    a.devices = 2, a.cells = 37 * 21, a.stride_device = 37 * 21, a.outputs = 21, a.levels = levels, a.slices = slices;
    a.sides = 2, a.noisy = 1, a.purpose = 5, a.threads = 2;
    nvcim_program(&a);
    snprintf(name, sizeof name, "written_%d", (int)levels);
    put(name, total);
    snprintf(name, sizeof name, "written_squares_%d", (int)levels);
    put(name, squares);
}

static void sums() {
    floats weight = numbers(2 * 37 * 21, 2), squares(2 * 3 * 21), magnitudes(2 * 3 * 21);
    nvcim_column_sums(weight.data(), 2, 37, 21, 16, 1, squares.data(), 2);
    nvcim_column_sums(weight.data(), 2, 37, 21, 16, 0, magnitudes.data(), 2);
    put("column_squares", squares);
    put("column_magnitudes", magnitudes);
}

/* 2 devices, 2 groups, 70 inputs in tiles of 32, 150 outputs, 23 vectors; with and without noise and converters. */
static void products() {
    const int64_t devices = 2, groups = 2, inputs = 70, outputs = 150, vectors = 23, rows = 32, tiles = 3;
    floats x = numbers(devices * vectors * inputs, 3), weight = numbers(devices * groups * inputs * outputs, 4);
    floats variance(weight.size()), out(devices * vectors * outputs), alphas = {1.0f, 0.25f};
    std::vector<uint16_t> half(weight.size());
    floats noise_row(devices * tiles * vectors), noise_col(devices * groups * tiles * outputs);
    floats adc_row(noise_row.size()), adc_col(noise_col.size()), gain(noise_col.size()), shift = numbers(noise_col.size(), 5);
    for (size_t i = 0; i < weight.size(); i++) {
        variance[i] = weight[i] * weight[i] * 0.01f;
        uint32_t bits;
        memcpy(&bits, &weight[i], 4);
        half[i] = (uint16_t)(bits >> 16);
    }
    for (size_t i = 0; i < noise_row.size(); i++) noise_row[i] = 0.5f + 0.01f * (float)i, adc_row[i] = 0.1f + 0.001f * (float)i;
    for (size_t i = 0; i < noise_col.size(); i++) noise_col[i] = 0.1f, adc_col[i] = 1 + 0.001f * (float)i, gain[i] = 1 / adc_col[i];
    const int64_t first[2] = {7, 8};

    product_args p = {};
    read_args &a = p.read;
    a.keys = KEYS, a.first = first, a.out = out.data(), a.devices = devices, a.tiles = tiles, a.vectors = vectors;
    a.outputs = outputs, a.out_device = vectors * outputs, a.out_vector = outputs, a.top = 127, a.alpha = 1;
    a.purpose = 9, a.threads = 2;
    p.x = x.data(), p.weight = weight.data(), p.inputs = inputs, p.tile_rows = rows, p.x_device = vectors * inputs;
    p.alphas = alphas.data(), p.groups = groups, p.group_purpose = 1;
    nvcim_product_read(&p);
    put("products", out);
    a.adc_row = adc_row.data(), a.adc_col = adc_col.data(), a.adc_gain = gain.data(), a.adc_shift = shift.data();
    int64_t clipped = nvcim_product_read(&p);
    put("converted", out);
    put("converted_clipped", floats{(float)clipped});
    a.noise_row = noise_row.data(), a.noise_col = noise_col.data();
    nvcim_product_read(&p);
    put("noisy", out);
    a.noise_row = NULL, p.variance = variance.data();
    nvcim_product_read(&p);
    put("noisy_by_cell", out);
    p.variance = NULL, p.weight = half.data(), p.half = 1;
    nvcim_product_read(&p);
    put("bfloat16", out);

    /* conversion alone, of parts that were multiplied elsewhere */
    floats part = numbers(devices * tiles * vectors * outputs, 6);
    a.part = part.data(), a.noise_row = noise_row.data();
    nvcim_read(&a);
    put("read", out);
}

int main() {
    draws();
    drives();
    writes(4);
    writes(16);
    writes(256);
    sums();
    products();
    return 0;
}
