// Convolutions and linear layers of bytes. Included by byte_table.inl.

// Types and not addresses are compared, which the compiler does not know under a sanitizer.
template <Epilogue EPILOGUE>
struct Tag {};
template <Epilogue EPILOGUE>
constexpr bool STORES_SUMS = std::is_same_v<Tag<EPILOGUE>, Tag<store_sums>>;

template <int P, int Q, Epilogue EPILOGUE>
inline void finish_tile(const ConvRow& row, int64_t x, const Sums (&sums)[P][Q]) {
    if constexpr (STORES_SUMS<EPILOGUE>) {
        finish_each<P, Q, EPILOGUE>(row, x, sums);
    } else {
#pragma GCC unroll 64
        for (int q = 0; q < Q; ++q) {
            const Ending ending(row, row.channel + q * LANES);
            Ints column[P];
#pragma GCC unroll 64
            for (int p = 0; p < P; ++p) column[p] = sums[p][q];
            end_pixels(ending, x * row.out_step + q * LANES, row.out_step, column);
        }
    }
}

[[gnu::noinline]] void conv_row_of_bytes(ConvRow& row, int64_t block) {
    conv_row_with<apply_epilogue>(row, block);
}

[[gnu::noinline]] void conv_row(ConvRow& row, int64_t block) {
    conv_row_of_bytes(row, block);
    if (row.requantize->table)
        look_up(static_cast<Entry*>(row.out), row.pixels, block, row.out_step, row.requantize->table);
}

void depthwise_of_bytes(const Depthwise& d) {
    depthwise(d);
    if (!d.requantize->table) return;
    for (int64_t y = 0; y < d.rows; ++y)
        look_up(static_cast<Entry*>(d.out) + y * d.out_row_step, d.pixels, d.channels, d.channels,
                d.requantize->table);
}

void pack_run(const int8_t* rows, int64_t run, int64_t block, void* packed) {
    auto* to = static_cast<Weights::Entry*>(packed);
    for (int64_t j = 0; j < run; j += Weights::entries)
        for (int64_t c = 0; c < block; ++c)
            for (int64_t e = 0; e < Weights::entries; ++e) *to++ = rows[(j + e) * block + c];
}

// Outputs lie in blocks of up to LINEAR_VECTORS vectors, each packed as a convolution's.
constexpr int64_t LINEAR_VECTORS = 8;
constexpr int64_t LINEAR_SHARE = LINEAR_VECTORS * LANES;
constexpr int64_t LINEAR_IMAGES = 4;

inline int64_t rounded(int64_t count, int64_t to) {
    return (count + to - 1) / to * to;
}

inline int64_t linear_run(int64_t inputs) {
    return rounded(inputs, Weights::entries);
}

size_t linear_bytes(int64_t inputs, int64_t outputs) {
    return linear_run(inputs) * rounded(outputs, LANES) * sizeof(Weights::Entry);
}

size_t linear_scratch(int64_t inputs) {
    return LINEAR_IMAGES * linear_run(inputs);
}

void pack_linear(const int8_t* weight, int64_t inputs, int64_t outputs, void* packed) {
    auto* to = static_cast<Weights::Entry*>(packed);
    const int64_t run = linear_run(inputs), all = rounded(outputs, LANES);
    for (int64_t first = 0; first < all; first += LINEAR_SHARE) {
        const int64_t width = all - first < LINEAR_SHARE ? all - first : LINEAR_SHARE;
        std::vector<int8_t> rows(run * width);
        for (int64_t o = first; o < (first + width < outputs ? first + width : outputs); ++o)
            for (int64_t i = 0; i < inputs; ++i) rows[i * width + o - first] = weight[o * inputs + i];
        pack_run(rows.data(), run, width, to + first * run);
    }
}

template <int Q, int... IMAGES>
inline void linear_of(ConvRow& row, int64_t vectors, Tiles<IMAGES...> images) {
    if (vectors == Q) return tiles<Q, 0, store_sums, IMAGES...>(row, 0);
    if constexpr (Q > 1) linear_of<Q - 1>(row, vectors, images);
}

// One block of outputs for up to LINEAR_IMAGES images, whose inputs lie as bytes one after the other.
inline void linear_block(const ByteLinear& l, int64_t first, const Entry* x, float* const* y,
                         int64_t images) {
    const int64_t left = rounded(l.outputs, LANES) - first, width = left < LINEAR_SHARE ? left : LINEAR_SHARE;
    const int64_t kept = l.outputs - first < width ? l.outputs - first : width;
    int32_t sums[LINEAR_IMAGES * LINEAR_SHARE];
    ConvRow row{};
    row.in = x;
    row.run = row.pixel_step = linear_run(l.inputs);
    row.weight = static_cast<const Weights::Entry*>(l.packed) + first * row.run;
    row.start = l.start + first;
    row.out = sums;
    row.pixels = images;
    row.kernel_rows = 1;
    row.out_step = width;
    row.prefetch = reinterpret_cast<const char*>(sums);
    linear_of<LINEAR_VECTORS>(row, width / LANES, LinearTiles{});
    for (int64_t i = 0; i < images; ++i)
        for (int64_t o = 0; o < kept; ++o)
            y[i][first + o] = __builtin_fmaf(static_cast<float>(sums[i * width + o]), l.multiplier[first + o],
                                             l.bias[first + o]);
}

void linear(const ByteLinear& l, const float* const* x, float* const* y, int64_t images, int64_t begin,
            int64_t end) {
    auto* bytes = static_cast<Entry*>(l.scratch);
    const int64_t run = linear_run(l.inputs);
    for (int64_t i = 0; i < images; i += LINEAR_IMAGES) {
        const int64_t count = images - i < LINEAR_IMAGES ? images - i : LINEAR_IMAGES;
        for (int64_t k = 0; k < count; ++k) {
            from_floats(x[i + k], l.inputs, l.inverse, l.zero, bytes + k * run);
            for (int64_t j = l.inputs; j < run; ++j) bytes[k * run + j] = 0;
        }
        for (int64_t first = begin; first < end; first += LINEAR_SHARE)
            linear_block(l, first, bytes, y + i, count);
    }
}
