// AVX-512: 32 registers of sixteen floats.
#include "kernels.h"

namespace sidestep {
namespace avx512 {

constexpr const char* ISA = "avx512";
constexpr int64_t LANES = 16;
constexpr int64_t WIDE_BLOCK = 2 * CHANNEL_BLOCK;

#include "kernels_float.inl"

template <int STEP>
void narrow_tiles(ConvRow& row);
template <int STEP>
void wide_tiles(ConvRow& row);

#include "kernels.inl"

template <int STEP>
void narrow_tiles(ConvRow& row) {
    tiles<1, STEP, 16, 8, 4, 2, 1>(row, 0);
}

template <int STEP>
void wide_tiles(ConvRow& row) {
    tiles<2, STEP, 8, 4, 2, 1>(row, 0);
}

}  // namespace avx512

const Kernels* kernels_avx512() {
    return &avx512::TABLE;
}

}  // namespace sidestep
