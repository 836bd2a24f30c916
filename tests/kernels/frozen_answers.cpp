/* Loss and gradient that the frozen decoder's kernel gives for a small model of fixed numbers, as crossbar_answers.cpp
 * prints its arrays. */
#include <stdio.h>

#include "../../platform/nvcim/prompts/frozen_kernel.cpp"

#include <list>
#include <vector>

typedef std::vector<float> floats;

static uint64_t seed = 1;
static std::list<floats> alive;

static float *numbers(int64_t count, float size) {
    alive.emplace_back(count + 2 * PANEL);
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        alive.back()[i] = ((float)(int32_t)(seed >> 40) * 0x1p-23f - 1.0f) * size;
    }
    return alive.back().data();
}

/* weight [inputs, outputs], or its transpose, as panels */
static matrix packed(const float *weight, int64_t inputs, int64_t outputs, bool back, const float *bias) {
    int64_t in = back ? outputs : inputs, out = back ? inputs : outputs;
    alive.emplace_back(rounded(out, PANEL) * in);
    for (int64_t i = 0; i < in; i++)
        for (int64_t o = 0; o < out; o++)
            alive.back()[o / PANEL * in * PANEL + i * PANEL + o % PANEL] = back ? weight[o * outputs + i] : weight[i * outputs + o];
    return {alive.back().data(), back ? NULL : bias, in, out};
}

int main() {
    const int64_t hidden = 20, heads = 4, kv_heads = 2, size = 10, inner = 27, words = 53, layers = 3, n = 3, length = 14;
    std::vector<layer> stack(layers);
    for (layer &l : stack) {
        struct { matrix *forward, *back; int64_t inputs, outputs; } all[] = {
            {&l.q, &l.q_back, hidden, heads * size},         {&l.kv, &l.kv_back, hidden, 2 * kv_heads * size},
            {&l.o, &l.o_back, heads * size, hidden},         {&l.gate_up, &l.gate_up_back, hidden, 2 * inner},
            {&l.down, &l.down_back, inner, hidden},
        };
        for (auto &one : all) {
            float *weight = numbers(one.inputs * one.outputs, 0.4f), *bias = one.forward == &l.q ? numbers(one.outputs, 0.1f) : NULL;
            *one.forward = packed(weight, one.inputs, one.outputs, false, bias);
            *one.back = packed(weight, one.inputs, one.outputs, true, NULL);
        }
    }
    float *head = numbers(hidden * words, 0.4f);
    decoder d = {};
    d.layers = stack.data(), d.head = packed(head, hidden, words, false, NULL), d.head_back = packed(head, hidden, words, true, NULL);
    d.cosine = numbers(64 * size, 1), d.sine = numbers(64 * size, 1);
    d.count = layers, d.hidden = hidden, d.heads = heads, d.kv_heads = kv_heads, d.head_size = size, d.inner = inner;
    d.epsilon = 1e-5f, d.scale = 0.3f, d.first_once = 1, d.last_few = 1;

    int64_t places[4] = {12, 13, 14, 16}, labels[4] = {5, 52, 0, 17};
    floats q(length * heads * size + 2 * PANEL), kv(length * 2 * kv_heads * size + 2 * PANEL), gradient(n * hidden);
    float loss = 0;
    float *tokens = numbers(n * hidden, 1), *text = numbers(length * hidden, 1);
    if (nvcim_frozen_first(&d, text, length, n, q.data(), kv.data())) return 1;
    row r = {tokens, text, q.data(), kv.data(), places, labels, gradient.data(), &loss, n, length, 4, 1.0f};
    if (nvcim_frozen_rows(&d, &r, 1, 1)) return 1;
    printf("loss 1\n");
    fwrite(&loss, 4, 1, stdout);
    printf("gradient %zu\n", gradient.size());
    fwrite(gradient.data(), 4, gradient.size(), stdout);
    return 0;
}
