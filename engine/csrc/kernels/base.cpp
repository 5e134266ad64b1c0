// Any processor: vectors of four floats, which every compiler knows how to make.
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {
namespace base {

constexpr const char* ISA = "base";
constexpr int64_t LANES = 4;
constexpr int64_t WIDE_BLOCK = CHANNEL_BLOCK;

#include "float.inl"

// 4 x 3 sums in 16 registers.
using NarrowTiles = Tiles<3, 1>;
using WideTiles = Tiles<1>;
using SevenTiles = Tiles<1>;
using DepthwiseTiles = Tiles<4, 2, 1>;
using DepthwiseSevens = Tiles<4, 2, 1>;
using LinearTiles = Tiles<1>;

#include "kernel_table.inl"

}  // namespace base

const Kernels* kernels_base() {
    return &base::TABLE;
}

}  // namespace sidestep
