// AVX2 and FMA: 16 registers of eight floats.
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {
namespace avx2 {

constexpr const char* ISA = "avx2";

#include "avx2_tiles.inl"
#include "float.inl"
#include "kernel_table.inl"

}  // namespace avx2

const Kernels* kernels_avx2() {
    return &avx2::TABLE;
}

}  // namespace sidestep
