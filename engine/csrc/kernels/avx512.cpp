// AVX-512: 32 registers of sixteen floats.
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {
namespace avx512 {

constexpr const char* ISA = "avx512";

#include "avx512_tiles.inl"
#include "float.inl"
#include "kernel_table.inl"

}  // namespace avx512

const Kernels* kernels_avx512() {
    return &avx512::TABLE;
}

}  // namespace sidestep
