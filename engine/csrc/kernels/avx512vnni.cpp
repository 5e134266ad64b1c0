// AVX-512 with VNNI: sums of four products of bytes in one instruction.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "kernels/bytes.h"

namespace sidestep {
namespace avx512vnni {

constexpr const char* ISA = "avx512";

#include "avx512_tiles.inl"
#include "byte_avx512.inl"

struct Weights {
    using Entry = int8_t;
    using Part = __m512i;
    using Sum = int32_t;
    using Sums = Ints;
    static constexpr int64_t entries = 4;
    static Sums start(const void* from, int64_t lane) {
        return avx512vnni::load(static_cast<const int32_t*>(from) + lane);
    }
    static Part load(const Entry* from) { return _mm512_loadu_si512(from); }
    static Part broadcast(const uint8_t* from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        return _mm512_set1_epi32(four);
    }
    static Sums multiply_add(const Sums& sum, const Part& weight, const Part& value) {
        return reinterpret_cast<Sums>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), value, weight));
    }
};

#include "byte_table.inl"

}  // namespace avx512vnni

const ByteKernels* byte_kernels_avx512vnni() {
    return &avx512vnni::TABLE;
}

}  // namespace sidestep
