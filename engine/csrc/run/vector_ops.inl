// Operations that make vectors out of vectors. Included by executor.cpp.

// NaN stays.
static float rectified(float x, float slope) {
    return !(x < 0) ? x : slope != 0 ? slope * x : 0;
}

void Executor::run_all(const ops::Linear& linear, const Node& node, const Items& items) {
    const Packed& packed = this->packed(node);
    const LinearLayer layer{packed.weight.data(),  packed.bias.data(),   worker_.scratch,
                            at(linear.in).shape.c, at(node.out).shape.c, ending_of(linear)};
    const float* inputs[MAX_ITEMS];
    float* outputs[MAX_ITEMS];
    for (size_t i = 0; i < items.size(); ++i) {
        inputs[i] = vector(linear.in, *items[i]);
        outputs[i] = vector(node.out, *items[i]);
    }
    const auto [begin, end] = linear_share(node);
    if (packed.of_bytes)
        linear_bytes(linear, node, inputs, outputs, static_cast<int64_t>(items.size()));
    else if (begin < end)
        kernels_.linear(layer, inputs, outputs, static_cast<int64_t>(items.size()), begin, end);
    if (at(node.out).shared) sync();
}

// The outputs of a linear layer that this thread makes: those of a shared vector are shared out, since
// reading the weights is what takes time.
Executor::Range Executor::linear_share(const Node& node) const {
    const int64_t outputs = at(node.out).shape.c,
                  each = packed(node).of_bytes ? bytes_.linear_share : kernels_.linear_share;
    if (!at(node.out).shared) return {0, outputs};
    const auto [first, last] = share((outputs + each - 1) / each);
    return {first * each, std::min(last * each, outputs)};
}

// Two vectors entry by entry; one may have a single entry.
template <class Op, class F>
void Executor::join(const Op& op, const Node& node, const WorkItem& item, const F& f) {
    const float *a = vector(op.a, item), *b = vector(op.b, item);
    const int64_t n = at(node.out).shape.c;
    const int64_t step_a = at(op.a).shape.c == n, step_b = at(op.b).shape.c == n;
    float* out = vector(node.out, item);
    if (step_a && step_b) {
        for (int64_t i = 0; i < n; ++i) out[i] = f(a[i], b[i]);
        return;
    }
    for (int64_t i = 0; i < n; ++i) out[i] = f(a[i * step_a], b[i * step_b]);
}

// One vector entry by entry.
template <class Op, class F>
void Executor::each(const Op& op, const Node& node, const WorkItem& item, const F& f) {
    const float* in = vector(op.in, item);
    float* out = vector(node.out, item);
    for (int64_t i = 0; i < at(node.out).shape.c; ++i) out[i] = f(in[i]);
}

template <>
void Executor::run(const ops::VConst&, const Node& node, const WorkItem& item) {
    std::copy_n(packed(node).factors.data(), at(node.out).shape.c, vector(node.out, item));
}

template <>
void Executor::run(const ops::VGather& gather, const Node& node, const WorkItem& item) {
    float* out = vector(node.out, item);
    for (int64_t index : gather.indices) {
        size_t i = 0;
        for (; index >= at(gather.in[i]).shape.c; ++i) index -= at(gather.in[i]).shape.c;
        *out++ = vector(gather.in[i], item)[index];
    }
}

template <>
void Executor::run(const ops::VAdd& add, const Node& node, const WorkItem& item) {
    if (!add.relu) return join(add, node, item, [&](float a, float b) { return a + add.alpha * b; });
    join(add, node, item, [&](float a, float b) { return rectified(a + add.alpha * b, add.slope); });
}

template <>
void Executor::run(const ops::VMul& mul, const Node& node, const WorkItem& item) {
    join(mul, node, item, [](float a, float b) { return a * b; });
}

template <>
void Executor::run(const ops::VDiv& div, const Node& node, const WorkItem& item) {
    join(div, node, item, [](float a, float b) { return a / b; });
}

template <>
void Executor::run(const ops::VAffine& affine, const Node& node, const WorkItem& item) {
    each(affine, node, item, [&](float x) { return x * affine.mul + affine.add; });
}

template <>
void Executor::run(const ops::VMap& map, const Node& node, const WorkItem& item) {
    auto by_kernel = [&](Activation activation) {
        kernels_.activate(vector(map.in, item), at(node.out).shape.c, vector(node.out, item), activation);
    };
    switch (map.function) {
        case ops::Function::relu: return by_kernel({Curve::relu, map.slope});
        case ops::Function::relu6: return by_kernel({Curve::relu6});
        case ops::Function::silu: return by_kernel({Curve::silu});
        case ops::Function::hard_swish: return by_kernel({Curve::hard_swish});
        case ops::Function::hard_sigmoid: return by_kernel({Curve::hard_sigmoid});
        case ops::Function::sigmoid: return by_kernel({Curve::sigmoid});
        case ops::Function::gelu: return by_kernel({Curve::gelu});
        case ops::Function::gelu_tanh: return by_kernel({Curve::gelu_tanh});
        case ops::Function::tanh: return each(map, node, item, [](float x) { return std::tanh(x); });
        case ops::Function::sqrt: return each(map, node, item, [](float x) { return std::sqrt(x); });
        case ops::Function::exp: return each(map, node, item, [](float x) { return std::exp(x); });
        case ops::Function::log: return each(map, node, item, [](float x) { return std::log(x); });
    }
}

template <>
void Executor::run(const ops::VClampMin& clamp, const Node& node, const WorkItem& item) {
    each(clamp, node, item, [&](float x) { return std::max(x, clamp.min); });
}

template <>
void Executor::run(const ops::VSum& op, const Node& node, const WorkItem& item) {
    const float* in = vector(op.in, item);
    float sum = 0;
    for (int64_t i = 0; i < at(op.in).shape.c; ++i) sum += in[i];
    *vector(node.out, item) = sum;
}

// x - log of the sum of all e^x, as PyTorch: the largest is taken out first. NaN makes all none.
template <>
void Executor::run(const ops::VLogSoftmax& op, const Node& node, const WorkItem& item) {
    const float* in = vector(op.in, item);
    const int64_t n = at(node.out).shape.c;
    const float top = in[largest(in, n)];
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(in[i] - top);
    const auto rest = static_cast<float>(std::log(sum));
    each(op, node, item, [&](float x) { return x - top - rest; });
}

template <>
void Executor::run(const ops::VLogAddExp& op, const Node& node, const WorkItem& item) {
    join(op, node, item, [](float a, float b) {
        if (a == b && std::isinf(a)) return a;
        return (a > b ? a : b) + std::log1p(std::exp(-std::abs(a - b)));
    });
}
