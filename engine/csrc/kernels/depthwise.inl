// Depthwise convolutions: every channel by itself. Included by kernel_table.inl.

// P pixels of one vector of channels. Every entry of the input that a kernel row needs is loaded once for all
// pixels, every weight once; what belongs together follows from numbers that the compiler knows.
template <int K, int STRIDE, int P>
inline void depthwise_sums(const Depthwise& d, const Entry* in, const float* weight, Vector (&sums)[P]) {
    for (int ky = 0; ky < K; ++ky) {
        Vector weights[K];
#pragma GCC unroll 64
        for (int kx = 0; kx < K; ++kx) weights[kx] = load(weight + (ky * K + kx) * CHANNEL_BLOCK);
#pragma GCC unroll 64
        for (int i = 0; i < (P - 1) * STRIDE + K; ++i) {
            const Vector value = load_entries(in + i * d.channels);
#pragma GCC unroll 64
            for (int kx = 0; kx < K; ++kx)
                if (i >= kx && (i - kx) % STRIDE == 0 && (i - kx) / STRIDE < P)
                    sums[(i - kx) / STRIDE] += weights[kx] * value;
        }
        in += d.row_step;
    }
}

// One pixel, for kernels and strides that have no tiles.
inline Vector depthwise_sum(const Depthwise& d, const Entry* in, const float* weight, Vector sum) {
    for (int64_t ky = 0; ky < d.kernel; ++ky)
        for (int64_t kx = 0; kx < d.kernel; ++kx)
            sum += load(weight + (ky * d.kernel + kx) * CHANNEL_BLOCK) *
                   load_entries(in + ky * d.row_step + kx * d.channels);
    return sum;
}

// What belongs to one vector of channels of one row.
struct DepthwiseRow {
    const Entry* in;
    const float* weight;
    Vector bias;
    int64_t at;  // of the first output
    int64_t channel;
};

template <int K, int STRIDE, int P>
inline void depthwise_tile(const Depthwise& d, const DepthwiseRow& row, int64_t x) {
    Vector sums[P];
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p) sums[p] = row.bias;
    depthwise_sums<K, STRIDE>(d, row.in + x * STRIDE * d.channels, row.weight, sums);
    const int64_t at = row.at + x * d.channels;
    if (d.activation.is_cheap()) {
#pragma GCC unroll 64
        for (int p = 0; p < P; ++p) apply_epilogue(d, at + p * d.channels, row.channel, sums[p]);
        return;
    }
    float kept[P * LANES];
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p) store(kept + p * LANES, sums[p]);
#pragma GCC unroll 1
    for (int p = 0; p < P; ++p)
        apply_any_epilogue(d, at + p * d.channels, row.channel, load(kept + p * LANES));
}

template <int K, int STRIDE, int P, int... REST>
inline void depthwise_tiles(const Depthwise& d, const DepthwiseRow& row, int64_t x, Tiles<P, REST...>) {
    for (; x + P <= d.pixels; x += P) depthwise_tile<K, STRIDE, P>(d, row, x);
    if constexpr (sizeof...(REST) > 0)
        if (x < d.pixels) depthwise_tiles<K, STRIDE>(d, row, x, Tiles<REST...>{});
}

// K of 0 stands for any kernel and stride.
template <int K, int STRIDE>
[[gnu::noinline]] void depthwise_rows(const Depthwise& d) {
    const bool sevens = d.pixels % 7 == 0 && d.pixels % 8 != 0;
    for (int64_t y = 0; y < d.rows; ++y)
        for (int64_t c = 0; c < d.channels; c += LANES) {
            const int64_t lane = c % CHANNEL_BLOCK;
            const DepthwiseRow row{static_cast<const Entry*>(d.in) + y * d.stride * d.row_step + c,
                                   d.weight + (c - lane) * d.kernel * d.kernel + lane, load(d.bias + c),
                                   y * d.out_row_step + c, c};
            if constexpr (K == 0) {
                for (int64_t x = 0; x < d.pixels; ++x)
                    apply_any_epilogue(
                        d, row.at + x * d.channels, c,
                        depthwise_sum(d, row.in + x * d.stride * d.channels, row.weight, row.bias));
            } else if (sevens) {
                depthwise_tiles<K, STRIDE>(d, row, 0, DepthwiseSevens{});
            } else {
                depthwise_tiles<K, STRIDE>(d, row, 0, DepthwiseTiles{});
            }
        }
}

template <int K>
inline void depthwise_of(const Depthwise& d) {
    if (d.stride == 1) return depthwise_rows<K, 1>(d);
    if (d.stride == 2) return depthwise_rows<K, 2>(d);
    depthwise_rows<0, 0>(d);
}

void depthwise(const Depthwise& d) {
    if (d.kernel == 3) return depthwise_of<3>(d);
    if (d.kernel == 5) return depthwise_of<5>(d);
    if (d.kernel == 7) return depthwise_of<7>(d);
    depthwise_rows<0, 0>(d);
}
