// Operations that make maps of bytes, or linear layers with weights of int8. Included by executor.cpp.

// Bytes as the numbers that they are, and real entries; and back.
void Executor::to_numbers(const Place& from, const WorkItem& item, int64_t y, int64_t x, int64_t count,
                          float* to) {
    if (from.coding.is_bytes())
        bytes_.to_floats(byte(from, item, y, x), count, 0, 1, to);
    else
        kernels_.to_floats(pixel(from, item, y, x), count, to);
}

void Executor::from_numbers(const float* from, const Place& to, const WorkItem& item, int64_t y, int64_t x,
                            int64_t count) {
    if (to.coding.is_bytes())
        bytes_.from_floats(from, count, 1, 0, byte(to, item, y, x));
    else
        kernels_.from_floats(from, count, pixel(to, item, y, x));
}

namespace {

// Calls f(x, count) for parts of a row that lie together in two maps: the row, or its pixels where they have
// more channels in one.
template <class F>
void each_part(const Place& in, const Place& out, const F& f) {
    if (in.channels == out.channels) return f(int64_t{0}, in.shape.w * in.channels);
    for (int64_t x = 0; x < in.shape.w; ++x) f(x, std::min(in.channels, out.channels));
}

}  // namespace

template <>
void Executor::run(const ops::Quantize& op, const Node& node, const WorkItem& item) {
    if (node.out == network_.layout.image) return;  // as it was loaded
    const Place &in = at(op.in), &out = at(node.out);
    if (in.coding.is_bytes()) return look_up(op.in, node, item);
    const auto inverse = static_cast<float>(1.0 / op.scale), zero = static_cast<float>(op.zero);
    numbers_.resize(std::max<size_t>(numbers_.size(), in.row_step));
    const auto [begin, end] = rows_of(out);
    for (int64_t y = begin; y < end; ++y)
        each_part(in, out, [&](int64_t x, int64_t count) {
            kernels_.to_floats(pixel(in, item, y, x), count, numbers_.data());
            bytes_.from_floats(numbers_.data(), count, inverse, zero, byte(out, item, y, x));
        });
}

template <>
void Executor::run(const ops::Dequantize& op, const Node& node, const WorkItem& item) {
    const Place &in = at(op.in), &out = at(node.out);
    numbers_.resize(std::max<size_t>(numbers_.size(), in.row_step));
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        each_part(in, out, [&](int64_t x, int64_t count) {
            bytes_.to_floats(byte(in, item, y, x), count, static_cast<float>(in.coding.zero), in.coding.scale,
                             numbers_.data());
            kernels_.from_floats(numbers_.data(), count, pixel(out, item, y, x));
        });
}

namespace {

// Rows of bytes, one of every channel, side by side in pixels of `channels` bytes.
void interleave(const uint8_t* rows, int64_t count, int64_t pixels, int64_t channels, uint8_t rest,
                uint8_t* to) {
    if (count == 3 && channels == 4) {  // all bytes are written, so that a compiler makes vectors of them
        const uint8_t *a = rows, *b = rows + pixels, *c = rows + 2 * pixels;
        for (int64_t x = 0; x < pixels; ++x)
            to[4 * x] = a[x], to[4 * x + 1] = b[x], to[4 * x + 2] = c[x], to[4 * x + 3] = rest;
        return;
    }
    for (int64_t channel = 0; channel < count; ++channel)
        for (int64_t x = 0; x < pixels; ++x) to[x * channels + channel] = rows[channel * pixels + x];
}

}  // namespace

// A row of the image as the bytes that are made of it.
void Executor::load_bytes(const Place& to, const WorkItem& item, int64_t y) {
    const auto [c, h, w] = to.shape;
    const auto inverse = static_cast<float>(1.0 / static_cast<double>(to.coding.scale)),
               zero = static_cast<float>(to.coding.zero);
    numbers_.resize(std::max<size_t>(numbers_.size(), w));
    codes_.resize(std::max<size_t>(codes_.size(), c * w));
    for (int64_t channel = 0; channel < c; ++channel) {
        const float* numbers = numbers_.data();
        if (item.image.planes) {
            numbers = item.image.planes + (channel * h + y) * w;
        } else {
            const uint8_t* pixels = item.image.bytes + y * w * c + channel;
            const float scale = network_.scale[channel], shift = network_.shift[channel];
            for (int64_t x = 0; x < w; ++x) numbers_[x] = static_cast<float>(pixels[x * c]) * scale + shift;
        }
        bytes_.from_floats(numbers, w, inverse, zero, codes_.data() + channel * w);
    }
    interleave(codes_.data(), c, w, to.channels, static_cast<uint8_t>(to.coding.zero), byte(to, item, y));
}

void Executor::look_up(int64_t from, const Node& node, const WorkItem& item) {
    const Place &in = at(from), &out = at(node.out);
    const uint8_t* table = packed(node).table.data();
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        each_part(in, out, [&](int64_t x, int64_t count) {
            const uint8_t* a = byte(in, item, y, x);
            uint8_t* b = byte(out, item, y, x);
            for (int64_t i = 0; i < count; ++i) b[i] = table[a[i]];
        });
}

void Executor::affine_bytes(int64_t from, const Node& node, const WorkItem& item, const Recode& recode) {
    const Place &in = at(from), &out = at(node.out);
    const auto [begin, end] = share(out.shape.h);
    Rows in_rows = rows(in, end - begin);
    in_rows.channels = std::min(in.channels, out.channels);
    bytes_.affine(byte(in, item, begin), byte(out, item, begin), in_rows, in.channels, rows(out, end - begin),
                  recode);
}

// Factors that are no number make the byte 0.
void Executor::scale_bytes(const ops::Scale& scale, const Node& node, const WorkItem& item) {
    const Place& in = at(scale.in);
    const float* factors = vector(scale.factors, item);
    const auto ratio = static_cast<float>(static_cast<double>(in.coding.scale) / scale.scale);
    numbers_.resize(std::max<size_t>(numbers_.size(), in.channels));
    offsets_.resize(std::max<size_t>(offsets_.size(), in.channels));
    for (int64_t c = 0; c < in.channels; ++c) {
        numbers_[c] = c < in.shape.c ? factors[c] * ratio : 0;
        offsets_[c] =
            std::fma(-static_cast<float>(in.coding.zero), numbers_[c], static_cast<float>(scale.zero));
    }
    affine_bytes(scale.in, node, item, {numbers_.data(), offsets_.data(), 0, 255});
}

void Executor::add_bytes(const ops::Add& add, const Node& node, const WorkItem& item) {
    const Place &a = at(add.a), &b = at(add.b), &out = at(node.out);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        bytes_.add(byte(a, item, y), byte(b, item, y), byte(out, item, y), out.shape.w * out.channels,
                   packed(node).added);
}

// The activation is that of real numbers.
void Executor::linear_bytes(const ops::Linear& linear, const Node& node, const float* const* inputs,
                            float* const* outputs, int64_t count) {
    const Packed& packed = this->packed(node);
    const ByteLinear layer{packed.weight.data(),
                           packed.start.data(),
                           packed.multiplier.data(),
                           packed.bias.data(),
                           worker_.scratch,
                           at(linear.in).shape.c,
                           at(node.out).shape.c,
                           static_cast<float>(1.0 / linear.in_scale),
                           static_cast<float>(linear.in_zero)};
    const auto [begin, end] = linear_share(node);
    if (begin == end) return;
    bytes_.linear(layer, inputs, outputs, count, begin, end);
    const Activation activation = ending_of(linear);
    if (activation.curve == Curve::none) return;
    for (int64_t i = 0; i < count; ++i)
        kernels_.activate(outputs[i] + begin, end - begin, outputs[i] + begin, activation);
}
