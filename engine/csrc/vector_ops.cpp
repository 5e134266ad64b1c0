#include <algorithm>
#include <cmath>

#include "executor.h"

namespace sidestep {

namespace {

float function(Function f, float x, float slope) {
    switch (f) {
        case Function::relu: return x > 0 ? x : slope != 0 ? slope * x : 0;
        case Function::sigmoid: return 1 / (1 + std::exp(-x));
        case Function::tanh: return std::tanh(x);
        case Function::sqrt: return std::sqrt(x);
        case Function::exp: return std::exp(x);
    }
    return x;
}

}  // namespace

void Executor::linear(const Op& op, const Jobs& jobs) {
    const Packed& packed = network_.packed[op.index];
    const Linear layer{packed.weight.data(), packed.bias.data(), crew_.scratch,
                       at(op.in[0]).shape.c, at(op.out).shape.c, closing(op, 0)};
    const float* inputs[MOST_JOBS];
    float* outputs[MOST_JOBS];
    for (size_t i = 0; i < jobs.size(); ++i) {
        job_ = jobs[i];
        inputs[i] = vector(op.in[0]);
        outputs[i] = vector(op.out);
    }
    const auto [begin, end] = linear_share(op);
    if (begin < end) kernels_.linear(layer, inputs, outputs, static_cast<int64_t>(jobs.size()), begin, end);
    if (at(op.out).joint) sync();
}

// The outputs of a linear layer that this thread makes: those of a joint vector are shared out, since reading
// the weights is what takes time.
std::pair<int64_t, int64_t> Executor::linear_share(const Op& op) const {
    const int64_t outputs = at(op.out).shape.c;
    if (!at(op.out).joint) return {0, outputs};
    const auto [first, last] = share((outputs + kernels_.linear_share - 1) / kernels_.linear_share);
    return {first * kernels_.linear_share, std::min(last * kernels_.linear_share, outputs)};
}

template <class F>
void Executor::join(const Op& op, const F& f) {
    const float *a = vector(op.in[0]), *b = vector(op.in[1]);
    const int64_t n = at(op.out).shape.c;
    const int64_t step_a = at(op.in[0]).shape.c == n, step_b = at(op.in[1]).shape.c == n;
    float* out = vector(op.out);
    if (step_a && step_b) {
        for (int64_t i = 0; i < n; ++i) out[i] = f(a[i], b[i]);
        return;
    }
    for (int64_t i = 0; i < n; ++i) out[i] = f(a[i * step_a], b[i * step_b]);
}

void Executor::vector_op(const Op& op) {
    const Packed& packed = network_.packed[op.index];
    const int64_t n = at(op.out).shape.c;
    float* out = vector(op.out);
    const float* a = op.in.empty() ? nullptr : vector(op.in[0]);
    switch (op.kind) {
        case Kind::vconst: std::copy_n(packed.factors.data(), n, out); return;
        case Kind::vgather: return gather(op, out);
        case Kind::vadd:
            if (op.ints[0])
                return join(op, [&](float x, float y) {
                    return function(Function::relu, x + op.floats[1] * y, op.floats[0]);
                });
            return join(op, [&](float x, float y) { return x + op.floats[1] * y; });
        case Kind::vmul: return join(op, [](float x, float y) { return x * y; });
        case Kind::vdiv: return join(op, [](float x, float y) { return x / y; });
        case Kind::vaffine:
            for (int64_t i = 0; i < n; ++i) out[i] = a[i] * op.floats[0] + op.floats[1];
            return;
        case Kind::vclamp_min:
            for (int64_t i = 0; i < n; ++i) out[i] = std::max(a[i], op.floats[0]);
            return;
        case Kind::vmap:
            for (int64_t i = 0; i < n; ++i)
                out[i] = function(static_cast<Function>(op.ints[0]), a[i], op.floats[0]);
            return;
        case Kind::vsum: {
            float sum = 0;
            for (int64_t i = 0; i < at(op.in[0]).shape.c; ++i) sum += a[i];
            *out = sum;
            return;
        }
        default: return;
    }
}

void Executor::gather(const Op& op, float* out) {
    if (op.in.size() == 1) {
        const float* a = vector(op.in[0]);
        for (size_t i = 0; i < op.ints.size(); ++i) out[i] = a[op.ints[i]];
        return;
    }
    for (size_t i = 0; i < op.ints.size(); ++i) {
        int64_t index = op.ints[i];
        for (int64_t id : op.in) {
            const int64_t length = at(id).shape.c;
            if (index < length) {
                out[i] = vector(id)[index];
                break;
            }
            index -= length;
        }
    }
}

}  // namespace sidestep
