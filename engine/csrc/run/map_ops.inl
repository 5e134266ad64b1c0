// Operations that make maps, or vectors out of maps. Included by executor.cpp.

// How many times the maps' memory weights must have for threads to share them out: with less, reading the
// rows that others have made costs more than reading all weights. Chosen by benchmarks/bench_engine.py.
constexpr size_t WEIGHTS_OVER_MAPS = 8;

// Threads share out the rows of a map, or blocks of channels where the weights outweigh the maps: then each
// reads its own weights and all of the input, of which the others have made a part.
Executor::ConvShare Executor::conv_share(const Packed& packed, const Place& in, const Place& out) const {
    const auto blocks = static_cast<int64_t>(packed.blocks.size());
    const size_t maps =
        in.shape.h * in.row_step * in.entry_size + out.shape.h * out.row_step * out.entry_size;
    const bool heavy = !strip_ && packed.weight.size() > WEIGHTS_OVER_MAPS * maps;
    if (heavy && blocks % worker_.group_size == 0) return {{0, out.shape.h}, share(blocks), false};
    return {rows_of(out), {0, blocks}, true};
}

template <>
void Executor::run(const ops::Conv& conv, const Node& node, const WorkItem& item) {
    const Packed& packed = this->packed(node);
    if (packed.winograd) return winograd(conv, node, item);
    if (!packed.run) return depthwise(conv, node, item);
    const Place &in = at(conv.in), &out = at(node.out);
    const auto [lines, blocks, by_rows] = conv_share(packed, in, out);
    writing_ = by_rows;
    if (lines.first == lines.second || blocks.first == blocks.second) return;
    ConvRows rows{};
    const int64_t kernel = network_.program.tensors[conv.weight].shape[2];
    rows.in = pixel(in, item, lines.first * conv.stride - conv.before(in.shape.h, kernel),
                    -conv.before(in.shape.w, kernel));
    rows.weight = packed.weight.data();
    rows.blocks = &packed.blocks[blocks.first];
    rows.num_blocks = blocks.second - blocks.first;
    rows.bias = packed.bias.data();
    rows.residual = conv.residual == NONE ? nullptr : pixel(at(conv.residual), item, lines.first);
    rows.out = pixel(out, item, lines.first);
    rows.rows = lines.second - lines.first;
    rows.pixels = out.shape.w;
    rows.kernel_rows = kernel;
    rows.run = packed.run;
    rows.row_step = in.row_step;
    rows.in_row_step = conv.stride * in.row_step;
    rows.out_row_step = out.row_step;
    rows.pixel_step = conv.stride * in.channels;
    rows.out_step = out.channels;
    rows.activation = ending_of(conv);
    rows.prefetch = &prefetch_;
    // Rows that lie together, as those of tokens do, are one row for a kernel of one pixel.
    if (kernel == 1 && conv.stride == 1 && in.halo == 0 && out.halo == 0) {
        rows.pixels *= rows.rows;
        rows.rows = 1;
        rows.in_row_step = rows.pixels * rows.pixel_step;
    }
    rows.requantize = packed.of_bytes ? &packed.requantize : nullptr;
    packed.of_bytes ? bytes_.conv_rows(rows) : kernels_.conv_rows(rows);
}

void Executor::depthwise(const ops::Conv& conv, const Node& node, const WorkItem& item) {
    const Place &in = at(conv.in), &out = at(node.out);
    const auto [begin, end] = rows_of(out);
    writing_ = true;
    if (begin == end) return;
    const int64_t kernel = network_.program.tensors[conv.weight].shape[2];
    Depthwise rows{};
    rows.in = pixel(in, item, begin * conv.stride - conv.before(in.shape.h, kernel),
                    -conv.before(in.shape.w, kernel));
    const Packed& packed = this->packed(node);
    rows.weight = packed.factors.data();
    rows.bias = packed.of_bytes ? packed.start_sums.data() : packed.bias.data();
    rows.residual = conv.residual == NONE ? nullptr : pixel(at(conv.residual), item, begin);
    rows.out = pixel(out, item, begin);
    rows.rows = end - begin;
    rows.pixels = out.shape.w;
    rows.channels = out.channels;
    rows.kernel = kernel;
    rows.stride = conv.stride;
    rows.row_step = in.row_step;
    rows.out_row_step = out.row_step;
    rows.activation = packed.of_bytes ? Activation{} : ending_of(conv);
    rows.requantize = packed.of_bytes ? &packed.requantize : nullptr;
    packed.of_bytes ? bytes_.depthwise(rows) : kernels_.depthwise(rows);
}

void Executor::winograd(const ops::Conv& conv, const Node& node, const WorkItem& item) {
    const Packed& packed = this->packed(node);
    const Place &in = at(conv.in), &out = at(node.out);
    const auto [lines, blocks, by_rows] = conv_share(packed, in, out);
    writing_ = by_rows;
    if (lines.first == lines.second || blocks.first == blocks.second) return;
    Winograd rows{};
    rows.in = pixel(in, item, lines.first - 1, -1);
    rows.weight = packed.weight.data();
    rows.bias = packed.bias.data();
    rows.residual = conv.residual == NONE ? nullptr : pixel(at(conv.residual), item, lines.first);
    rows.out = pixel(out, item, lines.first);
    rows.scratch = worker_.scratch;
    rows.rows = lines.second - lines.first;
    rows.pixels = out.shape.w;
    rows.inputs = in.channels;
    rows.outputs = out.channels;
    rows.begin = packed.blocks[blocks.first].first;
    rows.end = packed.blocks[blocks.second - 1].first + packed.blocks[blocks.second - 1].width;
    rows.row_step = in.row_step;
    rows.out_row_step = out.row_step;
    rows.activation = ending_of(conv);
    rows.prefetch = &prefetch_;
    kernels_.winograd(rows);
}

template <class Op>
void Executor::pool(const Op& op, const Node& node, const WorkItem& item, int64_t padding, bool mean) {
    const Place &in = at(op.in), &out = at(node.out);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y) {
        const int64_t top = std::max<int64_t>(y * op.stride - padding, 0);
        const int64_t bottom = std::min(y * op.stride - padding + op.kernel, in.shape.h);
        for (int64_t x = 0; x < out.shape.w; ++x) {
            const int64_t left = std::max<int64_t>(x * op.stride - padding, 0);
            const int64_t right = std::min(x * op.stride - padding + op.kernel, in.shape.w);
            const Rows window{bottom - top, right - left, std::min(in.channels, out.channels), in.row_step};
            if (in.coding.is_bytes())
                bytes_.window(byte(in, item, top, left), window, byte(out, item, y, x), in.channels, mean);
            else
                kernels_.window(pixel(in, item, top, left), window, pixel(out, item, y, x), in.channels,
                                mean);
        }
    }
}

template <>
void Executor::run(const ops::MaxPool& op, const Node& node, const WorkItem& item) {
    pool(op, node, item, op.padding, false);
}

template <>
void Executor::run(const ops::AvgPool& op, const Node& node, const WorkItem& item) {
    pool(op, node, item, 0, true);
}

template <>
void Executor::run(const ops::Pad& pad, const Node& node, const WorkItem& item) {
    const Place &in = at(pad.in), &out = at(node.out);
    const auto size = static_cast<int64_t>(out.entry_size);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < out.shape.w; ++x) {
            std::byte* to = pixel(out, item, y, x);
            std::memset(to, static_cast<int>(out.coding.zero), out.channels * size);
            std::memcpy(to + pad.before * size, pixel(in, item, y * pad.stride, x * pad.stride),
                        in.shape.c * size);
        }
}

void Executor::affine(int64_t from, const Node& node, const WorkItem& item, const float* weight,
                      const float* bias, Activation activation) {
    const Place &in = at(from), &out = at(node.out);
    const auto [begin, end] = share(out.shape.h);
    Rows in_rows = rows(in, end - begin);
    in_rows.channels = std::min(in.channels, out.channels);
    kernels_.affine(pixel(in, item, begin), pixel(out, item, begin), in_rows, in.channels,
                    rows(out, end - begin), weight, bias, activation);
}

template <>
void Executor::run(const ops::Affine& op, const Node& node, const WorkItem& item) {
    const Packed& packed = this->packed(node);
    if (!packed.of_bytes)
        return affine(op.in, node, item, packed.factors.data(), packed.bias.data(), ending_of(op));
    affine_bytes(
        op.in, node, item,
        {packed.multiplier.data(), packed.bias.data(), packed.requantize.least, packed.requantize.most});
}

template <>
void Executor::run(const ops::Scale& scale, const Node& node, const WorkItem& item) {
    if (scale.scale != 0) return scale_bytes(scale, node, item);
    affine(scale.in, node, item, vector(scale.factors, item), nullptr, {});
}

template <>
void Executor::run(const ops::Relu& relu, const Node& node, const WorkItem& item) {
    if (packed(node).of_bytes) return look_up(relu.in, node, item);
    affine(relu.in, node, item, nullptr, nullptr, {Curve::relu, relu.slope});
}

template <>
void Executor::run(const ops::Activate& op, const Node& node, const WorkItem& item) {
    if (packed(node).of_bytes) return look_up(op.in, node, item);
    affine(op.in, node, item, nullptr, nullptr, activation_of(op.function));
}

template <>
void Executor::run(const ops::Crop& crop, const Node& node, const WorkItem& item) {
    const Place &in = at(crop.in), &out = at(node.out);
    const int64_t top = (in.shape.h - out.shape.h) / 2, left = (in.shape.w - out.shape.w) / 2;
    const int64_t channels = std::min(in.channels, out.channels);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < out.shape.w; ++x)
            std::memcpy(pixel(out, item, y, x), pixel(in, item, top + y, left + x),
                        channels * out.entry_size);
}

template <>
void Executor::run(const ops::Add& add, const Node& node, const WorkItem& item) {
    if (packed(node).of_bytes) return add_bytes(add, node, item);
    const Place &a = at(add.a), &b = at(add.b), &out = at(node.out);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        kernels_.add(pixel(a, item, y), pixel(b, item, y), pixel(out, item, y), out.shape.w * out.channels,
                     ending_of(add));
}

template <>
void Executor::run(const ops::Concat& concat, const Node& node, const WorkItem& item) {
    const Place& out = at(node.out);
    const auto size = static_cast<int64_t>(out.entry_size);
    const auto [begin, end] = share(out.shape.h);
    int64_t first = 0;
    for (int64_t id : concat.in) {
        const Place& in = at(id);
        for (int64_t y = begin; y < end; ++y)
            for (int64_t x = 0; x < out.shape.w; ++x)
                std::memcpy(pixel(out, item, y, x) + first * size, pixel(in, item, y, x), in.shape.c * size);
        first += in.shape.c;
    }
}

namespace {

// A place between two entries along one axis, as PyTorch: of pixel centres, or of corners with align_corners.
struct Between {
    int64_t lower, upper;
    float share;  // of the upper one

    Between(int64_t i, int64_t to, int64_t from, bool corners) {
        const float at = !corners ? std::max((i + 0.5f) * from / to - 0.5f, 0.0f)
                         : to > 1 ? static_cast<float>(i) * (from - 1) / (to - 1)
                                  : 0.0f;
        lower = std::min(static_cast<int64_t>(at), from - 1);
        upper = std::min(static_cast<int64_t>(at) + 1, from - 1);
        share = at - static_cast<int64_t>(at);
    }
};

}  // namespace

// With antialiasing, first along the columns and then along the rows.
void Executor::resample(const ops::Resize& resize, const Node& node, const WorkItem& item) {
    const Place &in = at(resize.in), &out = at(node.out);
    const Resampling rows(resize.interpolation, in.shape.h, out.shape.h);
    const Resampling columns(resize.interpolation, in.shape.w, out.shape.w);
    const int64_t count = in.shape.w * in.channels;
    std::vector<float> sums(count);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y) {
        bool is_first = true;
        for (int64_t tap = 0; tap < rows.taps; ++tap) {
            const float factor = rows.weight[y * rows.taps + tap];
            if (factor == 0) continue;
            kernels_.add_row(pixel(in, item, rows.first[y] + tap), count, factor, is_first, sums.data());
            is_first = false;
        }
        kernels_.filter_row(sums.data(), in.channels, columns.filter(), out.shape.w, pixel(out, item, y),
                            out.channels);
    }
}

// Bilinear.
template <>
void Executor::run(const ops::Resize& resize, const Node& node, const WorkItem& item) {
    if (resize.antialias) return resample(resize, node, item);
    const Place &in = at(resize.in), &out = at(node.out);
    const int64_t channels = std::min(in.channels, out.channels);
    std::vector<float> part(channels), sum(out.channels);
    auto add = [&](int64_t y, int64_t x, float factor) {
        to_numbers(in, item, y, x, channels, part.data());
        for (int64_t c = 0; c < channels; ++c) sum[c] += factor * part[c];
    };
    const auto [begin, end] = share(out.shape.h);
    for (int64_t i = begin; i < end; ++i) {
        const Between y(i, out.shape.h, in.shape.h, resize.align_corners);
        for (int64_t j = 0; j < out.shape.w; ++j) {
            const Between x(j, out.shape.w, in.shape.w, resize.align_corners);
            std::fill(sum.begin(), sum.end(), 0.0f);
            add(y.lower, x.lower, (1 - y.share) * (1 - x.share));
            add(y.lower, x.upper, (1 - y.share) * x.share);
            add(y.upper, x.lower, y.share * (1 - x.share));
            add(y.upper, x.upper, y.share * x.share);
            from_numbers(sum.data(), out, item, i, j, out.channels);
        }
    }
}

template <class Sum>
void Executor::sum_rows(const Place& in, const WorkItem& item, int64_t begin, int64_t end, Sum* sums) {
    Rows summed = rows(in, end - begin);
    if (in.halo == 0) summed = {1, summed.rows * summed.pixels, summed.channels, summed.rows * in.row_step};
    if constexpr (std::is_same_v<Sum, float>)
        kernels_.sum(pixel(in, item, begin), summed, sums);
    else
        bytes_.sum(byte(in, item, begin), summed, sums);
}

// Sums of rows of a map. Every thread sums the rows that it has written itself, since what others wrote is
// far from this core, and then adds up all sums in the same order. Room for two rounds: no thread is two
// barriers before another.
template <class Sum>
void Executor::sum_map(const Place& in, const WorkItem& item, Range rows, Sum* sums) {
    if (worker_.group_size == 1) return sum_rows(in, item, rows.first, rows.second, sums);
    const int64_t step = worker_.partial_sums_step;
    auto* parts = reinterpret_cast<Sum*>(worker_.partial_sums + (rounds_++ % 2) * worker_.group_size * step);
    const auto [begin, end] = share(in.shape.h);
    const int64_t first = std::max(begin, rows.first), last = std::max(first, std::min(end, rows.second));
    sum_rows(in, item, first, last, parts + worker_.rank * step);
    sync();
    std::copy_n(parts, in.channels, sums);
    for (int rank = 1; rank < worker_.group_size; ++rank)
        for (int64_t c = 0; c < in.channels; ++c) sums[c] += parts[rank * step + c];
}

template <>
void Executor::run(const ops::Gap& gap, const Node& node, const WorkItem& item) {
    const Place& in = at(gap.in);
    float* out = vector(node.out, item);
    if (gap.first || gap.rows)
        return average(in, item, {gap.first, gap.rows ? gap.first + gap.rows : in.shape.h}, out);
    Means& known = means_[&item - first_item_];
    if (known.of == gap.in) {
        std::copy_n(known.values.data(), in.shape.c, out);
        return;
    }
    average(in, item, {0, in.shape.h}, out);
    known.of = gap.in;
    known.values.assign(out, out + in.shape.c);
}

void Executor::average(const Place& in, const WorkItem& item, Range rows, float* out) {
    const int64_t count = (rows.second - rows.first) * in.shape.w;
    const auto pixels = static_cast<double>(count);
    if (in.coding.is_bytes()) {
        sums_.resize(std::max<size_t>(sums_.size(), in.channels));
        sum_map(in, item, rows, sums_.data());
        const double scale = in.coding.scale;
        bytes_.scale_sums(sums_.data(), in.shape.c, static_cast<float>(scale / pixels),
                          static_cast<float>(-static_cast<double>(in.coding.zero) * scale), out);
        return;
    }
    sum_map(in, item, rows, out);
    const float share = 1.0f / static_cast<float>(count);
    for (int64_t c = 0; c < in.shape.c; ++c) out[c] *= share;
}

template <>
void Executor::run(const ops::Flatten& flatten, const Node& node, const WorkItem& item) {
    const Place& in = at(flatten.in);
    reading_ = true;
    float* out = vector(node.out, item);
    std::vector<float> channels(in.channels);
    for (int64_t y = 0; y < in.shape.h; ++y)
        for (int64_t x = 0; x < in.shape.w; ++x) {
            if (in.coding.is_bytes())
                bytes_.to_floats(byte(in, item, y, x), in.channels, static_cast<float>(in.coding.zero),
                                 in.coding.scale, channels.data());
            else
                kernels_.to_floats(pixel(in, item, y, x), in.channels, channels.data());
            for (int64_t c = 0; c < in.shape.c; ++c) out[(c * in.shape.h + y) * in.shape.w + x] = channels[c];
        }
}
