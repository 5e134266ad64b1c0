// Linear layers. Included by kernel_table.inl.

// A linear layer with many outputs lies in blocks of up to LINEAR_VECTORS vectors of outputs, each packed as
// a convolution's: what is read for one input lies together, and the sums of a block are independent. One
// with few outputs lies as it is.
constexpr int64_t LINEAR_VECTORS = 8;
constexpr int64_t LINEAR_SHARE = LINEAR_VECTORS * LANES;
constexpr int64_t LINEAR_IMAGES = 4;

inline bool few(int64_t outputs) {
    return outputs < LANES;
}

inline int64_t rounded(int64_t count, int64_t to) {
    return (count + to - 1) / to * to;
}

inline int64_t linear_run(int64_t inputs) {
    return rounded(inputs, Weights::entries);
}

size_t linear_bytes(int64_t inputs, int64_t outputs) {
    return (few(outputs) ? inputs * outputs : linear_run(inputs) * rounded(outputs, LANES)) * sizeof(Entry);
}

size_t linear_scratch(int64_t inputs) {
    return LINEAR_IMAGES * linear_run(inputs) * sizeof(Entry);
}

void pack_linear(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
    auto* to = static_cast<Entry*>(packed);
    if (few(outputs)) return from_floats(weight, inputs * outputs, to);
    const int64_t run = linear_run(inputs), all = rounded(outputs, LANES);
    for (int64_t first = 0; first < all; first += LINEAR_SHARE) {
        const int64_t width = all - first < LINEAR_SHARE ? all - first : LINEAR_SHARE;
        std::vector<float> rows(run * width, 0.0f);
        for (int64_t o = first; o < (first + width < outputs ? first + width : outputs); ++o)
            for (int64_t i = 0; i < inputs; ++i) rows[i * width + o - first] = weight[o * inputs + i];
        pack_run(rows.data(), run, width, to + first * run);
    }
}

inline float dot(const Entry* weight, const float* x, int64_t count) {
    Vector parts[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int64_t p = 0; p < 4; ++p)
            parts[p] += load_entries(weight + i + p * LANES) * load(x + i + p * LANES);
    const Vector total = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    float sum = 0;
    for (int64_t lane = 0; lane < LANES; ++lane) sum += total[lane];
    for (; i < count; ++i) sum += to_float(weight[i]) * x[i];
    return sum;
}

template <int Q, int... IMAGES>
inline void linear_of(ConvRow& row, int64_t vectors, Tiles<IMAGES...> images) {
    if (vectors == Q) return tiles<Q, 0, store_sums, IMAGES...>(row, 0);
    if constexpr (Q > 1) linear_of<Q - 1>(row, vectors, images);
}

// One block of outputs for up to LINEAR_IMAGES images, whose inputs lie as entries one after the other.
inline void linear_block(const LinearLayer& l, int64_t first, const Entry* x, float* const* y,
                         int64_t images) {
    const int64_t left = rounded(l.outputs, LANES) - first, width = left < LINEAR_SHARE ? left : LINEAR_SHARE;
    const int64_t kept = l.outputs - first < width ? l.outputs - first : width;
    float sums[LINEAR_IMAGES * LINEAR_SHARE];
    ConvRow row{};
    row.in = x;
    row.run = row.pixel_step = linear_run(l.inputs);
    row.weight = static_cast<const Entry*>(l.packed) + first * row.run;
    row.start = l.bias + first;
    row.out = sums;
    row.pixels = images;
    row.kernel_rows = 1;
    row.out_step = width;
    row.prefetch = reinterpret_cast<const char*>(sums);
    linear_of<LINEAR_VECTORS>(row, width / LANES, LinearTiles{});
    for (int64_t i = 0; i < images; ++i) {
        int64_t o = 0;
        for (; o + LANES <= kept; o += LANES)
            store(y[i] + first + o, activate(load(sums + i * width + o), l.activation));
        for (; o < kept; ++o) y[i][first + o] = activate(sums[i * width + o], l.activation);
    }
}

void linear(const LinearLayer& l, const float* const* x, float* const* y, int64_t images, int64_t begin,
            int64_t end) {
    if (few(l.outputs)) {
        const auto* weight = static_cast<const Entry*>(l.packed);
        for (int64_t i = 0; i < images; ++i)
            for (int64_t o = begin; o < end; ++o)
                y[i][o] = activate(l.bias[o] + dot(weight + o * l.inputs, x[i], l.inputs), l.activation);
        return;
    }
    auto* entries = static_cast<Entry*>(l.scratch);
    const int64_t run = linear_run(l.inputs);
    for (int64_t i = 0; i < images; i += LINEAR_IMAGES) {
        const int64_t count = images - i < LINEAR_IMAGES ? images - i : LINEAR_IMAGES;
        for (int64_t k = 0; k < count; ++k) {
            from_floats(x[i + k], l.inputs, entries + k * run);
            for (int64_t j = l.inputs; j < run; ++j) entries[k * run + j] = 0;
        }
        for (int64_t first = begin; first < end; first += LINEAR_SHARE)
            linear_block(l, first, entries, y + i, count);
    }
}
