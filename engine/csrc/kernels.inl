// Kernels for the instruction set that the including file is compiled for. It defines, in namespace
// sidestep::NAME:
//   ISA, PRECISION       strings
//   LANES                floats in a vector
//   Entry                what maps hold
//   to_float, to_entry   one entry to a float and back
//   Weights              what conv_row multiplies with (struct with `Part`, `entries`, `load`, `spread`,
//                        `multiply_add`)
//   NarrowTiles, WideTiles  for blocks of CHANNEL_BLOCK and of WIDE_BLOCK channels
// Included once per file, so that the compiler may use the instruction set in it and nowhere else.

constexpr int64_t SUM_PARTS = 8;

using Vector = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline Vector load(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
}
// A slope of 0 must not multiply, or infinity would become no number.
inline float close(float value, Relu relu) {
    if (!relu.on || value > 0) return value;
    return relu.slope != 0 ? value * relu.slope : 0.0f;
}

inline void store(float* to, const Vector& v) {
    *reinterpret_cast<Vector*>(to) = v;
}

// P pixels of Q vectors of channels: every weight is loaded once for all pixels, every entry of the input
// once for all vectors.
template <int P, int Q, int STEP>
inline void tile(ConvRow& row, int64_t x) {
    const int64_t step = STEP ? STEP : row.pixel_step;
    const Entry* in = static_cast<const Entry*>(row.in) + x * step;
    const auto* weight = static_cast<const Entry*>(row.weight);
    // Sums stay in registers if all loops over them are unrolled.
    Vector sums[P][Q];
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 64
        for (int q = 0; q < Q; ++q) sums[p][q] = load(row.bias + q * LANES);
    const char* ahead = row.ahead;
    for (int64_t k = 0; k < row.kernel_rows; ++k) {
        for (int64_t j = 0; j < row.run; j += Weights::entries) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += row.ahead_step;
            Weights::Part parts[Q];
#pragma GCC unroll 64
            for (int q = 0; q < Q; ++q) parts[q] = Weights::load(weight + q * LANES * Weights::entries);
#pragma GCC unroll 64
            for (int p = 0; p < P; ++p) {
                const Weights::Part value = Weights::spread(in + p * step + j);
#pragma GCC unroll 64
                for (int q = 0; q < Q; ++q) sums[p][q] = Weights::multiply_add(sums[p][q], parts[q], value);
            }
            weight += Q * LANES * Weights::entries;
        }
        in += row.row_step;
    }
    row.ahead = ahead;
    Entry* out = static_cast<Entry*>(row.out) + x * row.out_step;
    const Entry* residual = static_cast<const Entry*>(row.residual) + (row.residual ? x * row.out_step : 0);
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 64
        for (int q = 0; q < Q; ++q) {
            Vector sum = sums[p][q];
            const int64_t at = p * row.out_step + q * LANES;
            if (row.residual) sum += load_entries(residual + at);
            if (row.relu.on) sum = sum > 0 ? sum : row.relu.slope != 0 ? sum * row.relu.slope : Vector{};
            store_entries(out + at, sum);
        }
}

template <int Q, int STEP, int P, int... REST>
inline void tiles(ConvRow& row, int64_t x) {
    for (; x + P <= row.pixels; x += P) tile<P, Q, STEP>(row, x);
    if constexpr (sizeof...(REST) > 0)
        if (x < row.pixels) tiles<Q, STEP, REST...>(row, x);
}

template <int Q, int STEP, int... PIXELS>
inline void row_of(ConvRow& row, Tiles<PIXELS...>) {
    tiles<Q, STEP, PIXELS...>(row, 0);
}

template <int STEP>
inline void conv_row_of(ConvRow& row, int64_t block) {
    if constexpr (WIDE_BLOCK > CHANNEL_BLOCK)
        if (block == WIDE_BLOCK) return row_of<WIDE_BLOCK / LANES, STEP>(row, WideTiles{});
    row_of<CHANNEL_BLOCK / LANES, STEP>(row, NarrowTiles{});
}

void conv_row(ConvRow& row, int64_t block) {
    // Steps that are known when the code is made need no registers.
    switch (row.pixel_step) {
        case 4: return conv_row_of<4>(row, block);
        case 16: return conv_row_of<16>(row, block);
        case 32: return conv_row_of<32>(row, block);
        case 64: return conv_row_of<64>(row, block);
        case 128: return conv_row_of<128>(row, block);
        default: return conv_row_of<0>(row, block);
    }
}

void affine(const void* in, void* out, const Rows& in_rows, int64_t pixel_step, const Rows& out_rows,
            const float* weight, const float* bias, Relu relu) {
    for (int64_t y = 0; y < in_rows.rows; ++y)
        for (int64_t x = 0; x < in_rows.pixels; ++x) {
            const Entry* a = static_cast<const Entry*>(in) + y * in_rows.row_step + x * pixel_step;
            Entry* b = static_cast<Entry*>(out) + y * out_rows.row_step + x * out_rows.channels;
            for (int64_t c = 0; c < in_rows.channels; ++c) {
                float value = to_float(a[c]);
                if (weight) value *= weight[c];
                if (bias) value += bias[c];
                b[c] = to_entry(close(value, relu));
            }
        }
}

void add(const void* a, const void* b, void* out, int64_t count, Relu relu) {
    const auto *x = static_cast<const Entry*>(a), *y = static_cast<const Entry*>(b);
    auto* z = static_cast<Entry*>(out);
    for (int64_t i = 0; i < count; ++i) {
        z[i] = to_entry(close(to_float(x[i]) + to_float(y[i]), relu));
    }
}

// Several sums at once, since each addition waits for the one before it.
void sum_block(const Entry* in, const Rows& rows, float* sums) {
    Vector parts[SUM_PARTS] = {};
    for (int64_t y = 0; y < rows.rows; ++y) {
        const Entry* pixel = in + y * rows.row_step;
        int64_t x = 0;
        for (; x + SUM_PARTS <= rows.pixels; x += SUM_PARTS)
            for (int64_t p = 0; p < SUM_PARTS; ++p) parts[p] += load_entries(pixel + (x + p) * rows.channels);
        for (; x < rows.pixels; ++x) parts[0] += load_entries(pixel + x * rows.channels);
    }
    Vector total = parts[0];
    for (int64_t p = 1; p < SUM_PARTS; ++p) total += parts[p];
    store(sums, total);
}

void sum(const void* in, const Rows& rows, float* sums) {
    const auto* first = static_cast<const Entry*>(in);
    int64_t c = 0;
    for (; c + LANES <= rows.channels; c += LANES) sum_block(first + c, rows, sums + c);
    for (; c < rows.channels; ++c) {
        sums[c] = 0;
        for (int64_t y = 0; y < rows.rows; ++y)
            for (int64_t x = 0; x < rows.pixels; ++x)
                sums[c] += to_float(first[y * rows.row_step + x * rows.channels + c]);
    }
}

void window(const void* in, const Rows& rows, void* out, int64_t pixel_step, bool mean) {
    const auto* first = static_cast<const Entry*>(in);
    auto* to = static_cast<Entry*>(out);
    const float scale = 1.0f / static_cast<float>(rows.rows * rows.pixels);
    for (int64_t c = 0; c < rows.channels; c += 4) {
        float values[4];
        for (int64_t i = 0; i < 4; ++i) values[i] = mean ? 0.0f : to_float(first[c + i]);
        for (int64_t y = 0; y < rows.rows; ++y)
            for (int64_t x = 0; x < rows.pixels; ++x)
                for (int64_t i = 0; i < 4; ++i) {
                    const float value = to_float(first[y * rows.row_step + x * pixel_step + c + i]);
                    values[i] = mean ? values[i] + value : (value > values[i] ? value : values[i]);
                }
        for (int64_t i = 0; i < 4; ++i) to[c + i] = to_entry(mean ? values[i] * scale : values[i]);
    }
}

void from_planes(const float* planes, int64_t plane_step, int64_t channels, int64_t pixels, void* out,
                 int64_t out_step) {
    auto* to = static_cast<Entry*>(out);
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t x = 0; x < pixels; ++x) to[x * out_step + c] = to_entry(planes[c * plane_step + x]);
}

void from_bytes(const uint8_t* bytes, int64_t channels, int64_t pixels, const float* scale,
                const float* shift, void* out, int64_t out_step) {
    auto* to = static_cast<Entry*>(out);
    for (int64_t x = 0; x < pixels; ++x)
        for (int64_t c = 0; c < channels; ++c)
            to[x * out_step + c] =
                to_entry(static_cast<float>(bytes[x * channels + c]) * scale[c] + shift[c]);
}

void from_floats(const float* in, int64_t count, void* out) {
    auto* to = static_cast<Entry*>(out);
    for (int64_t i = 0; i < count; ++i) to[i] = to_entry(in[i]);
}

void to_floats(const void* in, int64_t count, float* out) {
    const auto* from = static_cast<const Entry*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(from[i]);
}

// A linear layer with many outputs lies in blocks of up to LINEAR_VECTORS vectors of outputs,
// [input][output]: what is read for one input lies together, and the sums of a block are independent. One
// with few outputs lies as it is.
constexpr int64_t LINEAR_VECTORS = 8;

inline bool few(int64_t outputs) {
    return outputs < LANES;
}

inline int64_t rounded(int64_t count, int64_t to) {
    return (count + to - 1) / to * to;
}

size_t linear_bytes(int64_t inputs, int64_t outputs) {
    return inputs * (few(outputs) ? outputs : rounded(outputs, LANES)) * sizeof(Entry) + 64;
}

void pack_linear(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
    auto* to = static_cast<Entry*>(packed);
    if (few(outputs)) return from_floats(weight, inputs * outputs, to);
    const int64_t all = rounded(outputs, LANES);
    for (int64_t first = 0; first < all; first += LINEAR_VECTORS * LANES) {
        const int64_t width = all - first < LINEAR_VECTORS * LANES ? all - first : LINEAR_VECTORS * LANES;
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t o = first; o < first + width; ++o)
                *to++ = to_entry(o < outputs ? weight[o * inputs + i] : 0.0f);
    }
}

// N vectors of outputs for I images: weights are read once for all of them.
template <int N, int I>
inline void linear_block(const Entry* weight, const float* bias, const float* const* x, float* const* y,
                         int64_t inputs) {
    Vector parts[I][N];
#pragma GCC unroll 64
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 64
        for (int n = 0; n < N; ++n) parts[i][n] = load(bias + n * LANES);
    for (int64_t j = 0; j < inputs; ++j, weight += N * LANES) {
#pragma GCC unroll 64
        for (int n = 0; n < N; ++n) {
            const Vector part = load_entries(weight + n * LANES);
#pragma GCC unroll 64
            for (int i = 0; i < I; ++i) parts[i][n] += part * x[i][j];
        }
    }
#pragma GCC unroll 64
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 64
        for (int n = 0; n < N; ++n) store(y[i] + n * LANES, parts[i][n]);
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

template <int N, int I>
inline void linear_blocks(int64_t vectors, const Entry* weight, const float* bias, const float* const* x,
                          float* const* y, int64_t inputs) {
    if (vectors == N) return linear_block<N, I>(weight, bias, x, y, inputs);
    if constexpr (N > 1) linear_blocks<N - 1, I>(vectors, weight, bias, x, y, inputs);
}

// One block of outputs for one or two images.
inline void linear_part(const Linear& l, int64_t first, const float* const* x, float* const* y,
                        int64_t images) {
    constexpr int64_t widest = LINEAR_VECTORS * LANES;
    const int64_t left = rounded(l.outputs, LANES) - first, width = left < widest ? left : widest;
    const Entry* weight = static_cast<const Entry*>(l.packed) + first * l.inputs;
    float sums[2][widest];
    float* const to[2] = {sums[0], sums[1]};
    if (images == 2)
        linear_blocks<LINEAR_VECTORS, 2>(width / LANES, weight, l.bias + first, x, to, l.inputs);
    else
        linear_blocks<LINEAR_VECTORS, 1>(width / LANES, weight, l.bias + first, x, to, l.inputs);
    const int64_t kept = l.outputs - first < width ? l.outputs - first : width;
    for (int64_t i = 0; i < images; ++i)
        for (int64_t o = 0; o < kept; ++o) y[i][first + o] = close(sums[i][o], l.relu);
}

void linear(const Linear& l, const float* const* x, float* const* y, int64_t images, int64_t begin,
            int64_t end) {
    if (few(l.outputs)) {
        const auto* weight = static_cast<const Entry*>(l.packed);
        for (int64_t i = 0; i < images; ++i)
            for (int64_t o = begin; o < end; ++o)
                y[i][o] = close(l.bias[o] + dot(weight + o * l.inputs, x[i], l.inputs), l.relu);
        return;
    }
    for (int64_t first = begin; first < end; first += LINEAR_VECTORS * LANES)
        for (int64_t i = 0; i < images; i += 2) linear_part(l, first, x + i, y + i, images - i < 2 ? 1 : 2);
}

void pack_run(const float* rows, int64_t run, int64_t block, void* packed) {
    auto* to = static_cast<Entry*>(packed);
    for (int64_t j = 0; j < run; j += Weights::entries)
        for (int64_t c = 0; c < block; ++c)
            for (int64_t e = 0; e < Weights::entries; ++e) *to++ = to_entry(rows[(j + e) * block + c]);
}

constexpr Kernels TABLE{ISA,          PRECISION,   sizeof(Entry), WIDE_BLOCK, conv_row,
                        affine,       add,         sum,           window,     from_planes,
                        from_bytes,   from_floats, to_floats,     linear,     LINEAR_VECTORS * LANES,
                        linear_bytes, pack_linear, pack_run};
