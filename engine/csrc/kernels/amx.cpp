// Convolutions with AMX, everything else as with AVX-512 and bfloat16.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels/amx_tiles.h"
#include "kernels/kernels.h"

namespace sidestep {
namespace amx {

constexpr int64_t LANES = CHANNEL_BLOCK;

#include "bf16.inl"

struct Products {
    using Sum = float;
    template <int SUMS, int A, int B>
    static void multiply() {
        tiles::multiply<SUMS, A, B>();
    }
    static void end(const ConvRows& rows, int64_t at, int64_t channel, const float* sums, int64_t pixels) {
        if (!rows.bias) return store_sums(rows, at, sums, pixels);
        if (rows.activation.is_cheap())
            end(rows, at, channel, sums, pixels, [](const auto&... what) { apply_epilogue(what...); });
        else
            end(rows, at, channel, sums, pixels, [](const auto&... what) { apply_any_epilogue(what...); });
    }
    // Sums of products for attention: `out` is floats.
    static void store_sums(const ConvRows& rows, int64_t at, const float* sums, int64_t pixels) {
        for (float* out = static_cast<float*>(rows.out) + at; pixels > 0; --pixels) {
            store(out, load(sums));
            out += rows.out_step, sums += LANES;
        }
    }
    template <class Apply>
    static void end(const ConvRows& rows, int64_t at, int64_t channel, const float* sums, int64_t pixels,
                    const Apply& apply_to_pixel) {
        const ConvRows conv = rows;  // nothing that is written can be part of it
        const Vector bias = load(conv.bias + channel);
        for (; pixels > 0; --pixels, sums += LANES, at += conv.out_step)
            apply_to_pixel(conv, at, channel, Vector(load(sums) + bias));
    }
};

#include "amx_convolution.inl"

void conv_rows(const ConvRows& rows) {
    Conv(rows).run();
}

constexpr int64_t MOST_OUTPUTS = CHANNEL_BLOCK, KEYS = TILE_ENTRIES;
#include "attention.inl"

inline void multiply(const Product& p) {
    PrefetchQueue nothing;
    ConvRows rows{};
    Block blocks[GROUP];
    rows.in = p.in;
    rows.weight = p.weight;
    rows.blocks = blocks;
    rows.out = p.out;
    rows.rows = 1;
    rows.pixels = p.pixels;
    rows.kernel_rows = 1;
    rows.run = p.run;
    rows.in_row_step = p.pixels * p.step;
    rows.pixel_step = p.step;
    rows.out_step = p.out_step;
    rows.prefetch = &nothing;
    for (int64_t first = 0; first < p.outputs; first += GROUP * CHANNEL_BLOCK) {
        rows.num_blocks = std::min<int64_t>(GROUP, (p.outputs - first) / CHANNEL_BLOCK);
        for (int64_t i = 0; i < rows.num_blocks; ++i) {
            const int64_t output = first + i * CHANNEL_BLOCK;
            blocks[i] = {output, CHANNEL_BLOCK, output * p.run * sizeof(Entry)};
        }
        Conv(rows).run();
    }
}

Kernels table() {
    Kernels table = *kernels_avx512bf16();
    table.name = "amx";
    table.wide_block = CHANNEL_BLOCK;  // a tile of weights lies in one piece
    table.conv_rows = conv_rows;
    table.attention = attention;
    table.attention_bytes = attention_bytes;
    // It saves five products of nine, and its transforms take longer than those.
    table.winograd = nullptr;
    return table;
}

}  // namespace amx

const Kernels* kernels_amx() {
    static const Kernels table = amx::table();
    return &table;
}

}  // namespace sidestep
