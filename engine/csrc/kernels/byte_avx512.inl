// What byte_epilogue.inl asks for, of AVX-512.

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

#include "byte_epilogue.inl"

// Four pixels become bytes together. What may be too large for an integer is cut off before, what is too
// small becomes the least integer and then 0.
template <bool FITS = false>
inline void end_four(const Ending& ending, int64_t at, int64_t step, const Ints* sums) {
    __m512i whole[4];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
        const auto v = reinterpret_cast<__m512>(ending.scaled(at + p * step, real(sums[p])));
        whole[p] = _mm512_cvtps_epi32(FITS ? v : _mm512_min_ps(v, _mm512_set1_ps(ending.most)));
    }
    // Four channels of the first pixel, of the second and so on; then the next four.
    const __m512i mixed =
        _mm512_packus_epi16(_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    auto all = [](float byte) { return _mm512_set1_epi8(static_cast<char>(static_cast<int>(byte))); };
    __m512i bytes = _mm512_max_epu8(_mm512_permutexvar_epi32(order, mixed), all(ending.least));
    if (FITS) bytes = _mm512_min_epu8(bytes, all(ending.most));
    auto to = [&](int p) { return reinterpret_cast<__m128i*>(ending.out + at + p * step); };
    if (step == LANES) {
        _mm512_storeu_si512(to(0), bytes);
        return;
    }
    _mm_storeu_si128(to(0), _mm512_castsi512_si128(bytes));
    _mm_storeu_si128(to(1), _mm512_extracti32x4_epi32(bytes, 1));
    _mm_storeu_si128(to(2), _mm512_extracti32x4_epi32(bytes, 2));
    _mm_storeu_si128(to(3), _mm512_extracti32x4_epi32(bytes, 3));
}

template <int P>
inline void end_pixels(const Ending& ending, int64_t at, int64_t step, const Ints (&sums)[P]) {
    constexpr int FOURS = P / 4 * 4;
#pragma GCC unroll 64
    for (int p = 0; p < FOURS; p += 4) end_four(ending, at + p * step, step, sums + p);
#pragma GCC unroll 64
    for (int p = FOURS; p < P; ++p) ending(at + p * step, real(sums[p]));
}
