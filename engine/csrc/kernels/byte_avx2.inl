// What byte_epilogue.inl asks for, of AVX2 and FMA.

using Vector = float __attribute__((vector_size(32), aligned(4)));
using Ints = int32_t __attribute__((vector_size(32), aligned(4)));

inline Vector fused(const Vector& a, const Vector& b, const Vector& c) {
    return reinterpret_cast<Vector>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                    reinterpret_cast<__m256>(c)));
}

// Of two operands of which one is no number the processor returns the second.
inline Vector between(const Vector& v, float least, float most) {
    const __m256 more = _mm256_max_ps(reinterpret_cast<__m256>(v), _mm256_set1_ps(least));
    return reinterpret_cast<Vector>(_mm256_min_ps(more, _mm256_set1_ps(most)));
}

inline Ints widen(const uint8_t* from) {
    return reinterpret_cast<Ints>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

inline void store_bytes(uint8_t* to, const Vector& v) {
    const __m256i whole = _mm256_cvtps_epi32(reinterpret_cast<__m256>(v));
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(pairs, pairs));
}

#include "byte_epilogue.inl"

template <int P>
inline void end_pixels(const Ending& ending, int64_t at, int64_t step, const Ints (&sums)[P]) {
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p) ending(at + p * step, real(sums[p]));
}
