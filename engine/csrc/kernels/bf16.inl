// What kernels need for maps of bfloat16 on processors that convert it. The including file defines LANES as
// 16 and has included bit, immintrin.h and kernels.h.

using Entry = uint16_t;
constexpr const char* PRECISION = "bfloat16";

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

// One instruction, which the compiler does not find for numbers that may be NaN. Of two operands of which one
// is NaN it returns the second.
inline Floats positive(const Floats& v) {
    return reinterpret_cast<Floats>(_mm512_max_ps(_mm512_setzero_ps(), reinterpret_cast<__m512>(v)));
}

#include "epilogue.inl"
