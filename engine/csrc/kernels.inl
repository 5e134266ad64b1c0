// Kernels for the instruction set that the including file is compiled for. It defines, in namespace
// sidestep::NAME:
//   ISA, PRECISION       strings
//   LANES                floats in a vector
//   Entry                what maps hold
//   to_float, to_entry   one entry to a float and back
//   close.inl's          how sums become entries
//   Weights              what conv_rows multiplies with (struct with `Part`, `entries`, `load`, `spread`,
//                        `multiply_add`)
//   NarrowTiles, WideTiles  for blocks of CHANNEL_BLOCK and of WIDE_BLOCK channels
//   SevenTiles              for blocks of WIDE_BLOCK channels in rows of 7, 14 or 28 pixels
//   LinearTiles             images, for blocks of LINEAR_VECTORS vectors
// Included once per file, so that the compiler may use the instruction set in it and nowhere else.

constexpr int64_t SUM_PARTS = 8;

// One row of output pixels for one block of output channels. Steps are in entries.
struct ConvRow {
    const void* in;        // what the first pixel's first tap reads
    const void* weight;    // of the block
    const float* bias;     // of the block
    const void* residual;  // of the first pixel's block, or null
    void* out;             // of the first pixel's block
    int64_t pixels;
    int64_t kernel_rows, run, row_step;  // as in ConvRows
    int64_t pixel_step, out_step;
    Relu relu;
    const char* ahead;   // asked for while computing, one line for every weight that is loaded; moved on
    int64_t ahead_step;  // bytes from one to the next
};

// Sums that are not closed yet stay floats.
inline void keep_sums(const ConvRow& row, int64_t at, const Vector& sum) {
    store(static_cast<float*>(row.out) + at, sum);
}

using Close = void (*)(const ConvRow&, int64_t, const Vector&);

// P pixels of Q vectors of channels: every weight is loaded once for all pixels, every entry of the input
// once for all vectors.
template <int P, int Q, int STEP, Close CLOSE>
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
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 64
        for (int q = 0; q < Q; ++q) CLOSE(row, (x + p) * row.out_step + q * LANES, sums[p][q]);
}

template <int Q, int STEP, Close CLOSE, int P, int... REST>
inline void tiles(ConvRow& row, int64_t x) {
    for (; x + P <= row.pixels; x += P) tile<P, Q, STEP, CLOSE>(row, x);
    if constexpr (sizeof...(REST) > 0)
        if (x < row.pixels) tiles<Q, STEP, CLOSE, REST...>(row, x);
}

template <int Q, int STEP, Close CLOSE, int... PIXELS>
inline void row_of(ConvRow& row, Tiles<PIXELS...>) {
    tiles<Q, STEP, CLOSE, PIXELS...>(row, 0);
}

template <int STEP, Close CLOSE>
inline void conv_row_of(ConvRow& row, int64_t block) {
    if constexpr (WIDE_BLOCK > CHANNEL_BLOCK)
        if (block == WIDE_BLOCK) {
            if (row.pixels % 7 == 0 && row.pixels % 8 != 0)
                return row_of<WIDE_BLOCK / LANES, STEP, CLOSE>(row, SevenTiles{});
            return row_of<WIDE_BLOCK / LANES, STEP, CLOSE>(row, WideTiles{});
        }
    row_of<CHANNEL_BLOCK / LANES, STEP, CLOSE>(row, NarrowTiles{});
}

// Steps that are known when the code is made need no registers.
template <Close CLOSE>
inline void conv_row_closed(ConvRow& row, int64_t block) {
    switch (row.pixel_step) {
        case 4: return conv_row_of<4, CLOSE>(row, block);
        case 16: return conv_row_of<16, CLOSE>(row, block);
        case 32: return conv_row_of<32, CLOSE>(row, block);
        case 64: return conv_row_of<64, CLOSE>(row, block);
        case 128: return conv_row_of<128, CLOSE>(row, block);
        default: return conv_row_of<0, CLOSE>(row, block);
    }
}

// Not part of conv_rows, where the compiler would give registers to what a row does not need.
[[gnu::noinline]] void conv_row(ConvRow& row, int64_t block) {
    conv_row_closed<close_row>(row, block);
}

// Entry `offset` of what lies at `from`, which may be nothing.
inline const void* entry(const void* from, int64_t offset) {
    return from ? static_cast<const Entry*>(from) + offset : nullptr;
}

void conv_rows(const ConvRows& all) {
    ConvRow row{};
    row.pixels = all.pixels;
    row.kernel_rows = all.kernel_rows;
    row.run = all.run;
    row.row_step = all.row_step;
    row.pixel_step = all.pixel_step;
    row.out_step = all.out_step;
    row.relu = all.relu;
    for (const Block* block = all.blocks; block < all.blocks + all.num_blocks; ++block) {
        row.weight = static_cast<const std::byte*>(all.weight) + block->offset;
        row.bias = all.bias + block->first;
        for (int64_t y = 0; y < all.rows; ++y) {
            row.in = entry(all.in, y * all.in_row_step);
            row.residual = entry(all.residual, y * all.out_row_step + block->first);
            row.out = static_cast<Entry*>(all.out) + y * all.out_row_step + block->first;
            row.ahead = all.ahead->next();
            row.ahead_step = all.ahead->step();
            conv_row(row, block->width);
            all.ahead->asked(row.ahead);
        }
    }
}

void pack_run(const float* rows, int64_t run, int64_t block, void* packed) {
    auto* to = static_cast<Entry*>(packed);
    for (int64_t j = 0; j < run; j += Weights::entries)
        for (int64_t c = 0; c < block; ++c)
            for (int64_t e = 0; e < Weights::entries; ++e) *to++ = to_entry(rows[(j + e) * block + c]);
}

#include "winograd.inl"

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
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store_entries(to + i, load(in + i));
    for (; i < count; ++i) to[i] = to_entry(in[i]);
}

void to_floats(const void* in, int64_t count, float* out) {
    const auto* from = static_cast<const Entry*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(from[i]);
}

#include "linear.inl"

constexpr Kernels TABLE{
    ISA,       PRECISION, sizeof(Entry), WIDE_BLOCK,   conv_rows,      winograd,    winograd_bytes,
    affine,    add,       sum,           window,       from_planes,    from_bytes,  from_floats,
    to_floats, linear,    LINEAR_SHARE,  linear_bytes, linear_scratch, pack_linear, pack_run};
