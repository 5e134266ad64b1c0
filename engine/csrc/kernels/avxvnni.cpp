// AVX with VNNI: sums of four products of bytes in one instruction, on processors without AVX-512.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "kernels/bytes.h"

namespace sidestep {
namespace avxvnni {

constexpr const char* ISA = "avxvnni";

#include "avx2_tiles.inl"
#include "byte_avx2.inl"

struct Weights {
    using Entry = int8_t;
    using Part = __m256i;
    using Sum = int32_t;
    using Sums = Ints;
    static constexpr int64_t entries = 4;
    static Sums start(const void* from, int64_t lane) {
        return avxvnni::load(static_cast<const int32_t*>(from) + lane);
    }
    static Part load(const Entry* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static Part broadcast(const uint8_t* from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        return _mm256_set1_epi32(four);
    }
    static Sums multiply_add(const Sums& sum, const Part& weight, const Part& value) {
        return reinterpret_cast<Sums>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), value, weight));
    }
};

#include "byte_table.inl"

}  // namespace avxvnni

const ByteKernels* byte_kernels_avxvnni() {
    return &avxvnni::TABLE;
}

}  // namespace sidestep
