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
    using Sums = Vector;
    static const float* start(const ConvRows& rows) { return rows.bias; }
    template <int SUMS, int A, int B>
    static void multiply() {
        tiles::multiply<SUMS, A, B>();
    }
};

#include "amx_convolution.inl"

void conv_rows(const ConvRows& rows) {
    Conv(rows).run();
}

Kernels table() {
    Kernels table = *kernels_avx512bf16();
    table.name = "amx";
    table.wide_block = CHANNEL_BLOCK;  // a tile of weights lies in one piece
    table.conv_rows = conv_rows;
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
