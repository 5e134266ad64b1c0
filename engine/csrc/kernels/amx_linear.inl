// Linear layers of int8 with AMX, where several images are the rows of a tile. Weights lie as for VNNI, which
// takes few images. Included by amxbytes.cpp behind amx_convolution.inl.

constexpr int64_t LINEAR_IMAGES = TILE_PIXELS, FEWEST_IMAGES = 3;

inline int64_t linear_run(int64_t inputs) {
    return ceil_div(inputs, PER_SUM) * PER_SUM;
}

size_t linear_scratch(int64_t inputs) {
    return LINEAR_IMAGES * linear_run(inputs);
}

// Q times 16 outputs from `first` on. `weight` is theirs, and each four inputs of it lie `step` bytes apart.
template <int Q>
void linear_outputs(const ByteLinear& l, const uint8_t* x, float* const* y, int64_t images, int64_t first,
                    const std::byte* weight, int64_t step) {
    alignas(64) int32_t sums[Q * TILE_SUMS];
    const int64_t run = linear_run(l.inputs), entries = entries_of_tile(run);
    each<Q>([&](auto q) INLINED { tiles::load<q>(l.start + first + q * LANES, 0); });
    for (int64_t k = 0; k < run; k += entries, weight += entries / PER_SUM * step) {
        tiles::load<PIXELS>(x + k, run);
        each<Q>([&](auto q) INLINED {
            constexpr int B = WEIGHTS + q % 2;
            tiles::load<B>(weight + q * WEIGHTS_STEP, step);
            tiles::multiply_bytes<q, PIXELS, B>();
        });
    }
    each<Q>([&](auto q) INLINED { tiles::store<q>(sums + q * TILE_SUMS, SUMS_STEP); });
    for (int64_t q = 0, o = first; q < Q; ++q, o += LANES) {
        const Vector multiplier = load(l.multiplier + o), bias = load(l.bias + o);
        const int64_t kept = std::min(LANES, l.outputs - o);
        for (int64_t i = 0; i < images; ++i) {
            const Vector numbers = fused(real(load(sums + q * TILE_SUMS + i * LANES)), multiplier, bias);
            if (kept == LANES)
                store(y[i] + o, numbers);
            else
                std::memcpy(y[i] + o, &numbers, kept * sizeof(float));
        }
    }
}

// A block of outputs, which are packed together.
void linear_block(const ByteLinear& l, const uint8_t* x, float* const* y, int64_t images, int64_t first,
                  int64_t width) {
    const auto* weight = static_cast<const std::byte*>(l.packed) + first * linear_run(l.inputs);
    const int64_t step = width * PER_SUM;
    int64_t o = 0;
    for (; o + GROUP * LANES <= width; o += GROUP * LANES)
        linear_outputs<GROUP>(l, x, y, images, first + o, weight + o * PER_SUM, step);
    for (; o < width; o += LANES) linear_outputs<1>(l, x, y, images, first + o, weight + o * PER_SUM, step);
}

void linear(const ByteLinear& l, const float* const* x, float* const* y, int64_t images, int64_t begin,
            int64_t end) {
    const ByteKernels& vnni = *byte_kernels_avx512vnni();
    auto* bytes = static_cast<uint8_t*>(l.scratch);
    const int64_t run = linear_run(l.inputs), entries = entries_of_tile(run);
    for (int64_t i = 0, count; i < images; i += count, x += count, y += count) {
        count = std::min(LINEAR_IMAGES, images - i);
        if (count < FEWEST_IMAGES) return vnni.linear(l, x, y, count, begin, end);
        for (int64_t k = 0; k < count; ++k) {
            vnni.from_floats(x[k], l.inputs, l.inverse, l.zero, bytes + k * run);
            std::fill_n(bytes + k * run + l.inputs, run - l.inputs, uint8_t{0});
        }
        tiles::Config config;
        for (int tile = 0; tile < GROUP; ++tile) config.shape(tile, count, SUMS_STEP);
        config.shape(PIXELS, count, entries);
        for (int tile = 0; tile < 2; ++tile) config.shape(WEIGHTS + tile, entries / PER_SUM, WEIGHTS_STEP);
        tiles::configure(config);
        for (int64_t first = begin; first < end; first += vnni.linear_share)
            linear_block(l, bytes, y, count, first,
                         std::min(vnni.linear_share, ceil_div(l.outputs - first, LANES) * LANES));
        tiles::release();
    }
}
