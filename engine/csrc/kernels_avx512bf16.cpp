// AVX-512 with bfloat16: maps and weights in bfloat16, products of pairs summed in floats.
#include <immintrin.h>

#include <bit>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace sidestep {
namespace avx512bf16 {

constexpr const char* ISA = "avx512";
constexpr const char* PRECISION = "bfloat16";
constexpr int64_t LANES = 16;
constexpr int64_t WIDE_BLOCK = 2 * CHANNEL_BLOCK;

using Entry = uint16_t;

inline float to_float(Entry entry) {
    return std::bit_cast<float>(static_cast<uint32_t>(entry) << 16);
}

// To the nearest, ties to even, as the processor's own conversion.
inline Entry to_entry(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<Entry>((bits >> 16) | 0x40);
    return static_cast<Entry>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

using Floats = float __attribute__((vector_size(64), aligned(4)));

inline Floats load_entries(const Entry* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void store_entries(Entry* to, const Floats& v) {
    const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(half));
}

struct Weights {
    using Part = __m512i;
    static constexpr int64_t entries = 2;
    static Part load(const Entry* from) { return _mm512_loadu_si512(from); }
    static Part spread(const Entry* from) {
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

// 16 sums in 32 registers; rows of 32, 16 and 8 pixels divide evenly.
using NarrowTiles = Tiles<16, 8, 4, 2, 1>;
using WideTiles = Tiles<8, 4, 2, 1>;
using SevenTiles = Tiles<14, 7>;
using LinearTiles = Tiles<2, 1>;

#include "kernels.inl"

}  // namespace avx512bf16

const Kernels* kernels_avx512bf16() {
    return &avx512bf16::TABLE;
}

}  // namespace sidestep
