// AVX2 and FMA: 16 registers of eight floats.
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {
namespace avx2 {

constexpr const char* ISA = "avx2";
constexpr int64_t LANES = 8;
constexpr int64_t WIDE_BLOCK = CHANNEL_BLOCK;

#include "float.inl"

// 2 x 6 sums in 16 registers, beside two weights and an entry of the input.
using NarrowTiles = Tiles<6, 4, 2, 1>;
using WideTiles = Tiles<1>;
using SevenTiles = Tiles<1>;
using DepthwiseTiles = Tiles<4, 2, 1>;
using DepthwiseSevens = Tiles<4, 2, 1>;
using LinearTiles = Tiles<1>;

#include "kernel_table.inl"

}  // namespace avx2

const Kernels* kernels_avx2() {
    return &avx2::TABLE;
}

}  // namespace sidestep
