// What operations demand of their fields, and the shapes that they make.
#include "plan/operations.h"

#include <algorithm>

namespace sidestep::ops {

namespace {

constexpr int64_t MOST_CHANNELS = int64_t{1} << 31;

Shape windows(const Shape& in, int64_t kernel, int64_t stride, int64_t padding) {
    const int64_t h = in.h + 2 * padding - kernel, w = in.w + 2 * padding - kernel;
    if (h < 0 || w < 0) throw PlanError("does not fit into a " + in.text());
    return {in.c, h / stride + 1, w / stride + 1};
}

void must_equal(const Shape& a, const Shape& b) {
    if (!(a == b)) throw PlanError("adds a " + b.text() + " to a " + a.text());
}

void must_fit(int64_t size, const Shape& in, const char* what) {
    if (size != in.c) throw PlanError(std::string("has ") + what + " that does not fit a " + in.text());
}

template <class Op>
void check_ending(const Op& op) {
    if (op.relu && op.activation != Act::none)
        throw PlanError("must end in a relu or in an activation, not both");
}

constexpr float LEAST_SCALE = 1e-30f, MOST_SCALE = 1e30f;

void must_be_scale(float scale, const char* name) {
    if (scale >= LEAST_SCALE && scale <= MOST_SCALE) return;
    throw PlanError("must have a " + std::string(name) + " from 1e-30 to 1e30, got " + std::to_string(scale));
}

// Of what an operation makes, where it makes bytes.
template <class Op>
void check_scale(const Op& op) {
    if (op.scale != 0) must_be_scale(op.scale, "scale");
    if (op.scale == 0 && op.zero) throw PlanError("has a zero point and no scale");
}

// An ending that is a comparison of bytes.
template <class Op>
void must_end_cheaply(const Op& op) {
    if ((!op.relu || op.slope == 0) && (op.activation == Act::none || op.activation == Act::relu6)) return;
    throw PlanError("makes bytes and ends in what needs a table of them");
}

// Numbers that multiply sums of bytes times weights of int8, of which none may overflow 32 bits.
void check_int8(const std::vector<Tensor>& tensors, int64_t weight, int64_t weight_scale, bool makes) {
    constexpr int64_t MOST_PRODUCTS = 65792;
    const Tensor& numbers = tensors[weight];
    const bool is_int8 = numbers.type == TensorType::int8;
    if (is_int8 != makes || is_int8 != (weight_scale != NONE))
        throw PlanError("must have a scale, weights of int8 and their weight_scale, or none of them");
    if (!is_int8) return;
    for (float scale : tensors[weight_scale].data) must_be_scale(scale, "weight_scale");
    int64_t products = 1;
    for (size_t side = 1; side < numbers.shape.size() && products <= MOST_PRODUCTS; ++side)
        products *= numbers.shape[side];
    if (products > MOST_PRODUCTS) throw PlanError("sums more than 65792 products of int8");
}

// Of two vectors entry by entry, where one may have a single entry.
Shape joined(const Shape& a, const Shape& b) {
    if (a.c != b.c && a.c != 1 && b.c != 1) throw PlanError("joins vectors of different lengths");
    return {std::max(a.c, b.c)};
}

}  // namespace

void Conv::check(const std::vector<Tensor>& tensors) const {
    const auto& shape = tensors[weight].shape;
    if (shape[2] != shape[3]) throw PlanError("must have a square kernel");
    if (padding >= shape[2]) throw PlanError("pads by its kernel or more");
    if (same && padding) throw PlanError("must have no padding where it pads to keep the size (same)");
    if (shape[0] % groups) throw PlanError("has groups that do not divide its channels");
    check_ending(*this);
    check_scale(*this);
    check_int8(tensors, weight, weight_scale, scale != 0 || holds_real());
    if ((table != NONE) != (inner_scale != 0) || (inner_scale == 0 && inner_zero))
        throw PlanError("must have a table and an inner_scale, or neither");
    if (inner_scale != 0) must_be_scale(inner_scale, "inner_scale");
    if (table != NONE && scale == 0) throw PlanError("has a table and makes real numbers");
}

void Conv::check_bytes() const {
    if (table == NONE) must_end_cheaply(*this);
}

int64_t Conv::before(int64_t size, int64_t kernel) const {
    if (!same) return padding;
    const int64_t out = (size + stride - 1) / stride;
    return std::max<int64_t>((out - 1) * stride + kernel - size, 0) / 2;
}

Shape Conv::shape(const Known& known) const {
    must_fit(known.weight(weight, 1) * groups, known[in], "a weight");
    const auto [c, h, w] = known[in];
    Shape out{c, (h + stride - 1) / stride, (w + stride - 1) / stride};
    if (!same) out = windows(known[in], known.weight(weight, 2), stride, padding);
    out.c = known.weight(weight, 0);
    if (residual != NONE) must_equal(out, known[residual]);
    return out;
}

void MaxPool::check(const std::vector<Tensor>&) const {
    if (2 * padding > kernel) throw PlanError("pads by more than half its kernel");
}

Shape MaxPool::shape(const Known& known) const {
    return windows(known[in], kernel, stride, padding);
}

Shape AvgPool::shape(const Known& known) const {
    if (!ceil) return windows(known[in], kernel, stride, 0);
    // As PyTorch: a window that would start behind the map is dropped.
    auto size = [&](int64_t n) {
        const int64_t out = (std::max<int64_t>(n - kernel, 0) + stride - 1) / stride + 1;
        return (out - 1) * stride >= n ? out - 1 : out;
    };
    return {known[in].c, size(known[in].h), size(known[in].w)};
}

Shape Pad::shape(const Known& known) const {
    const auto [c, h, w] = known[in];
    return {c + before + after, (h + stride - 1) / stride, (w + stride - 1) / stride};
}

void Crop::check(const std::vector<Tensor>&) const {
    if (height < 1) throw PlanError("must have a size");
}

Shape Crop::shape(const Known& known) const {
    const Shape from = known[in];
    if (height > from.h || width > from.w)
        throw PlanError("takes " + Shape{from.c, height, width}.text() + " out of a " + from.text());
    return {from.c, height, width};
}

void Affine::check(const std::vector<Tensor>&) const {
    check_ending(*this);
    check_scale(*this);
}

void Affine::check_bytes() const {
    must_end_cheaply(*this);
}

Shape Affine::shape(const Known& known) const {
    must_fit(known.weight(weight, 0), known[in], "a weight");
    return known[in];
}

void Add::check(const std::vector<Tensor>&) const {
    check_ending(*this);
    check_scale(*this);
}

void Add::check_bytes() const {
    must_end_cheaply(*this);
}

Shape Add::shape(const Known& known) const {
    must_equal(known[a], known[b]);
    return known[a];
}

void Scale::check(const std::vector<Tensor>&) const {
    check_scale(*this);
}

Shape Scale::shape(const Known& known) const {
    must_fit(known[factors].c, known[in], "a vector of factors");
    return known[in];
}

void Relu::check_bytes() const {
    if (slope != 0) throw PlanError("reads bytes and has a slope, which needs a table of them");
}

void Activate::check(const std::vector<Tensor>&) const {
    check_scale(*this);
    if ((table != NONE) != (scale != 0)) throw PlanError("must have a table and a scale, or neither");
}

void Quantize::check(const std::vector<Tensor>&) const {
    must_be_scale(scale, "scale");
}

Shape Concat::shape(const Known& known) const {
    Shape out = known[in[0]];
    for (size_t i = 1; i < in.size(); ++i) {
        const Shape& other = known[in[i]];
        if (other.h != out.h || other.w != out.w) throw PlanError("joins maps of different sizes");
        out.c += other.c;
        if (out.c > MOST_CHANNELS) throw PlanError("is too large");
    }
    return out;
}

void Resize::check(const std::vector<Tensor>&) const {
    if (like == NONE && height < 1) throw PlanError("must have a size, or a map to be like");
    if (interpolation == Interpolation::bicubic && !antialias)
        throw PlanError("must antialias where its interpolation is bicubic");
    if (antialias && align_corners) throw PlanError("must not align corners where it antialiases");
}

void Resize::check_bytes() const {
    if (antialias) throw PlanError("antialiases, which takes real maps, got bytes");
}

Shape Resize::shape(const Known& known) const {
    if (like != NONE) return {known[in].c, known[like].h, known[like].w};
    return {known[in].c, height, width};
}

void Gap::check_bytes() const {
    if (first || rows) throw PlanError("reads bytes and leaves rows out, which takes real maps");
}

Shape Gap::shape(const Known& known) const {
    const int64_t end = first + std::max<int64_t>(rows, 1);
    if (end > known[in].h)
        throw PlanError("averages up to row " + std::to_string(end) + " of a " + known[in].text());
    return {known[in].c};
}

void LayerNorm::check(const std::vector<Tensor>&) const {
    if (!(eps > 0)) throw PlanError("must have an eps above 0, got " + std::to_string(eps));
}

Shape LayerNorm::shape(const Known& known) const {
    must_fit(known.weight(weight, 0), known[in], "a weight");
    return known[in];
}

Shape Tokens::shape(const Known& known) const {
    must_fit(known.weight(weight, 1), known[in], "a weight");
    const auto [c, h, w] = known[in];
    const int64_t rows = known.weight(weight, 0);
    if (rows < h * w)
        throw PlanError("has " + std::to_string(rows) + " rows of weights for the pixels of a " +
                        known[in].text());
    return {c, rows, 1};
}

Shape Attention::shape(const Known& known) const {
    const auto [c, h, w] = known[in];
    if (c % (3 * heads))
        throw PlanError("must read queries, keys and values of " + std::to_string(heads) + " heads, got a " +
                        known[in].text());
    return {c / 3, h, w};
}

void Linear::check(const std::vector<Tensor>& tensors) const {
    check_ending(*this);
    if (in_scale != 0) must_be_scale(in_scale, "in_scale");
    if (in_scale == 0 && in_zero) throw PlanError("has a zero point and no scale");
    check_int8(tensors, weight, weight_scale, in_scale != 0 || holds_real());
}

Shape Linear::shape(const Known& known) const {
    must_fit(known.weight(weight, 1), known[in], "a weight");
    return {known.weight(weight, 0)};
}

Shape VGather::shape(const Known& known) const {
    int64_t total = 0;
    for (int64_t id : in) total += known[id].c;
    for (int64_t index : indices)
        if (index < 0 || index >= total)
            throw PlanError("reads entry " + std::to_string(index) + " of " + std::to_string(total));
    return {static_cast<int64_t>(indices.size())};
}

Shape VAdd::shape(const Known& known) const {
    return joined(known[a], known[b]);
}

Shape VMul::shape(const Known& known) const {
    return joined(known[a], known[b]);
}

Shape VDiv::shape(const Known& known) const {
    return joined(known[a], known[b]);
}

Shape VLogAddExp::shape(const Known& known) const {
    return joined(known[a], known[b]);
}

}  // namespace sidestep::ops
