// AVX-512 with bfloat16: maps and weights in bfloat16, products of pairs summed in floats.
#include <immintrin.h>

#include <bit>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {
namespace avx512bf16 {

constexpr const char* ISA = "avx512";

#include "avx512_tiles.inl"
#include "bf16.inl"

struct Weights {
    using Entry = uint16_t;
    using Part = __m512i;
    using Sum = float;
    using Sums = Floats;
    static constexpr int64_t entries = 2;
    static Sums start(const void* from, int64_t lane) {
        return avx512bf16::load(static_cast<const float*>(from) + lane);
    }
    static Part load(const Entry* from) { return _mm512_loadu_si512(from); }
    static Part broadcast(const Entry* from) {
        int32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static Floats multiply_add(const Floats& sum, const Part& weight, const Part& value) {
        return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                         reinterpret_cast<__m512bh>(weight),
                                                         reinterpret_cast<__m512bh>(value)));
    }
};

#include "kernel_table.inl"

}  // namespace avx512bf16

const Kernels* kernels_avx512bf16() {
    return &avx512bf16::TABLE;
}

}  // namespace sidestep
