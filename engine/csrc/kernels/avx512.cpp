// AVX-512: 32 registers of sixteen floats.
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {
namespace avx512 {

constexpr const char* ISA = "avx512";
constexpr int64_t LANES = 16;
constexpr int64_t WIDE_BLOCK = 2 * CHANNEL_BLOCK;

#include "float.inl"

// 16 sums in 32 registers; rows of 32, 16 and 8 pixels divide evenly.
using NarrowTiles = Tiles<16, 8, 4, 2, 1>;
using WideTiles = Tiles<8, 4, 2, 1>;
using SevenTiles = Tiles<14, 7>;
using DepthwiseTiles = Tiles<8, 4, 2, 1>;
using DepthwiseSevens = Tiles<7>;
using LinearTiles = Tiles<2, 1>;

#include "kernel_table.inl"

}  // namespace avx512

const Kernels* kernels_avx512() {
    return &avx512::TABLE;
}

}  // namespace sidestep
