// Any processor: vectors of four floats, which every compiler knows how to make.
#include "kernels.h"

namespace sidestep {
namespace base {

constexpr const char* ISA = "base";
constexpr int64_t LANES = 4;
constexpr int64_t WIDE_BLOCK = CHANNEL_BLOCK;

#include "kernels_float.inl"

template <int STEP>
void narrow_tiles(ConvRow& row);
template <int STEP>
void wide_tiles(ConvRow& row);

#include "kernels.inl"

// 4 x 3 sums in 16 registers.
template <int STEP>
void narrow_tiles(ConvRow& row) {
    tiles<4, STEP, 3, 1>(row, 0);
}

}  // namespace base

const Kernels* kernels_base() {
    return &base::TABLE;
}

}  // namespace sidestep
