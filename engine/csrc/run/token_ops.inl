// Operations that ViTs and ConvNeXts are made of. Included by executor.cpp.

template <>
void Executor::run(const ops::LayerNorm& norm, const Node& node, const WorkItem& item) {
    const Place &in = at(norm.in), &out = at(node.out);
    const Packed& packed = this->packed(node);
    const auto [begin, end] = share(out.shape.h);
    kernels_.layer_norm(pixel(in, item, begin), pixel(out, item, begin), rows(in, end - begin),
                        rows(out, end - begin),
                        {packed.factors.data(), packed.bias.data(), norm.eps, in.shape.c});
}

template <>
void Executor::run(const ops::Tokens& tokens, const Node& node, const WorkItem& item) {
    const Place &in = at(tokens.in), &out = at(node.out);
    const int64_t channels = in.shape.c, in_front = out.shape.h - in.shape.h * in.shape.w;
    numbers_.resize(std::max<size_t>(numbers_.size(), 2 * out.channels));
    float *sums = numbers_.data(), *entries = sums + out.channels;
    std::fill_n(sums, 2 * out.channels, 0.0f);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t n = begin; n < end; ++n) {
        std::copy_n(&packed(node).factors[n * channels], channels, sums);
        if (const int64_t from = n - in_front; from >= 0) {
            kernels_.to_floats(pixel(in, item, from / in.shape.w, from % in.shape.w), channels, entries);
            for (int64_t c = 0; c < channels; ++c) sums[c] += entries[c];
        }
        kernels_.from_floats(sums, out.channels, pixel(out, item, n));
    }
}

template <>
void Executor::run(const ops::Attention& attention, const Node& node, const WorkItem& item) {
    const Place &in = at(attention.in), &out = at(node.out);
    const auto [begin, end] = share(out.shape.h);
    if (begin == end) return;
    Attention pixels{};
    pixels.in = pixel(in, item, 0);
    pixels.out = pixel(out, item, 0);
    pixels.scratch = worker_.scratch;
    pixels.rows = out.shape.h;
    pixels.pixels = out.shape.w;
    pixels.heads = attention.heads;
    pixels.size = out.shape.c / attention.heads;
    pixels.in_step = in.channels;
    pixels.in_row_step = in.row_step;
    pixels.out_step = out.channels;
    pixels.out_row_step = out.row_step;
    pixels.begin = begin * out.shape.w;
    pixels.end = end * out.shape.w;
    // Rows that lie together are one.
    if (in.halo == 0 && out.halo == 0) {
        pixels.pixels *= pixels.rows;
        pixels.rows = 1;
    }
    kernels_.attention(pixels);
}
