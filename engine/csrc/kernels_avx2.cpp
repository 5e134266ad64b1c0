// AVX2 and FMA: 16 registers of eight floats.
#include "kernels.h"

namespace sidestep {
namespace avx2 {

constexpr const char* ISA = "avx2";
constexpr int64_t LANES = 8;
constexpr int64_t WIDE_BLOCK = CHANNEL_BLOCK;

#include "kernels_float.inl"

template <int STEP>
void narrow_tiles(ConvRow& row);
template <int STEP>
void wide_tiles(ConvRow& row);

#include "kernels.inl"

// 2 x 6 sums, two weights and an entry of the input.
template <int STEP>
void narrow_tiles(ConvRow& row) {
    tiles<2, STEP, 6, 4, 2, 1>(row, 0);
}

}  // namespace avx2

const Kernels* kernels_avx2() {
    return &avx2::TABLE;
}

}  // namespace sidestep
