// Convolutions of bytes with AMX, everything else as with AVX-512 and VNNI.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/amx_tiles.h"
#include "kernels/bytes.h"

namespace sidestep {
namespace amxbytes {

#include "byte_avx512.inl"
#include "byte_epilogue.inl"

struct Products {
    using Sum = int32_t;
    using Sums = Ints;
    static const int32_t* start(const ConvRows& rows) { return rows.requantize->start; }
    template <int SUMS, int A, int B>
    static void multiply() {
        tiles::multiply_bytes<SUMS, A, B>();
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

ByteKernels table() {
    ByteKernels table = *byte_kernels_avx512vnni();
    table.name = "amx";
    table.wide_block = CHANNEL_BLOCK;  // a tile of weights lies in one piece
    table.conv_rows = conv_rows;
    return table;
}

}  // namespace amxbytes

const ByteKernels* byte_kernels_amx() {
    static const ByteKernels table = amxbytes::table();
    return &table;
}

}  // namespace sidestep
