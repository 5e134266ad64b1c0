// What byte_epilogue.inl asks for, of AVX-512.

constexpr int64_t LANES = 16;

using Vector = float __attribute__((vector_size(64), aligned(4)));
using Ints = int32_t __attribute__((vector_size(64), aligned(4)));

inline Vector fused(const Vector& a, const Vector& b, const Vector& c) {
    return reinterpret_cast<Vector>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                    reinterpret_cast<__m512>(c)));
}

// Of two operands of which one is no number the processor returns the second.
inline Vector between(const Vector& v, float least, float most) {
    const __m512 more = _mm512_max_ps(reinterpret_cast<__m512>(v), _mm512_set1_ps(least));
    return reinterpret_cast<Vector>(_mm512_min_ps(more, _mm512_set1_ps(most)));
}

inline Ints widen(const uint8_t* from) {
    return reinterpret_cast<Ints>(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline void store_bytes(uint8_t* to, const Vector& v) {
    const __m512i whole = _mm512_cvtps_epi32(reinterpret_cast<__m512>(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(whole));
}
