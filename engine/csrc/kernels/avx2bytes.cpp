// AVX2 and FMA for maps of bytes. Its multiply-add of bytes adds two products in 16 bits, which 255 x 127
// twice exceeds; so weights and bytes are 16 bits wide here, and pairs of products are summed in 32.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "kernels/bytes.h"

namespace sidestep {
namespace avx2bytes {

constexpr const char* ISA = "avx2";

#include "avx2_tiles.inl"
#include "byte_avx2.inl"

struct Weights {
    using Entry = int16_t;
    using Part = __m256i;
    using Sum = int32_t;
    using Sums = Ints;
    static constexpr int64_t entries = 2;
    static Sums start(const void* from, int64_t lane) {
        return avx2bytes::load(static_cast<const int32_t*>(from) + lane);
    }
    static Part load(const Entry* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static Part broadcast(const uint8_t* from) {
        int16_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return _mm256_cvtepu8_epi16(_mm_set1_epi16(pair));
    }
    static Sums multiply_add(const Sums& sum, const Part& weight, const Part& value) {
        return sum + reinterpret_cast<Sums>(_mm256_madd_epi16(weight, value));
    }
};

#include "byte_table.inl"

}  // namespace avx2bytes

const ByteKernels* byte_kernels_avx2() {
    return &avx2bytes::TABLE;
}

}  // namespace sidestep
