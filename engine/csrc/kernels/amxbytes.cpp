// Convolutions and linear layers of bytes with AMX, everything else as with AVX-512 and VNNI.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/amx_tiles.h"
#include "kernels/bytes.h"

namespace sidestep {
namespace amxbytes {

#include "avx512_tiles.inl"
#include "byte_avx512.inl"

struct Products {
    using Sum = int32_t;
    template <int SUMS, int A, int B>
    static void multiply() {
        tiles::multiply_bytes<SUMS, A, B>();
    }
    static void end(const ConvRows& rows, int64_t at, int64_t channel, const int32_t* sums, int64_t pixels) {
        rows.requantize->plain ? end<true>(rows, at, channel, sums, pixels)
                               : end<false>(rows, at, channel, sums, pixels);
    }
    // A tile begins with zeros, since loading one takes longer than adding to its sums in the end.
    template <bool PLAIN>
    static void end(const ConvRows& rows, int64_t at, int64_t channel, const int32_t* sums, int64_t pixels) {
        const Ending ending(rows, channel);
        const int64_t step = rows.out_step;
        const Ints start = load(rows.requantize->start + channel);
        auto sum = [&](int pixel) {
            return PLAIN ? load(sums + pixel * LANES) : load(sums + pixel * LANES) + start;
        };
        for (; pixels >= 4; pixels -= 4, sums += 4 * LANES, at += 4 * step) {
            const Ints four[4]{sum(0), sum(1), sum(2), sum(3)};
            end_four<PLAIN>(ending, at, step, four);
        }
        for (; pixels > 0; --pixels, sums += LANES, at += step) ending(at, real(sum(0)));
    }
};

#include "amx_convolution.inl"

void conv_rows(const ConvRows& rows) {
    Conv(rows).run();
    if (!rows.requantize->table) return;
    for (const Block* block = rows.blocks; block < rows.blocks + rows.num_blocks; ++block)
        for (int64_t y = 0; y < rows.rows; ++y)
            look_up(static_cast<Entry*>(rows.out) + y * rows.out_row_step + block->first, rows.pixels,
                    block->width, rows.out_step, rows.requantize->table);
}

#include "amx_linear.inl"

ByteKernels table() {
    ByteKernels table = *byte_kernels_avx512vnni();
    table.name = "amx";
    table.wide_block = CHANNEL_BLOCK;  // a tile of weights lies in one piece
    table.conv_rows = conv_rows;
    table.linear = linear;
    table.linear_scratch = linear_scratch;
    return table;
}

}  // namespace amxbytes

const ByteKernels* byte_kernels_amx() {
    static const ByteKernels table = amxbytes::table();
    return &table;
}

}  // namespace sidestep
