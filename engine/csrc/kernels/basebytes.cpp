// Any processor, for maps of bytes: vectors of four numbers.
#include <cstring>
#include <vector>

#include "kernels/bytes.h"

namespace sidestep {
namespace basebytes {

constexpr const char* ISA = "base";
constexpr int64_t LANES = 4;
constexpr int64_t WIDE_BLOCK = CHANNEL_BLOCK;

using Vector = float __attribute__((vector_size(16), aligned(4)));
using Ints = int32_t __attribute__((vector_size(16), aligned(4)));
using Shorts = int16_t __attribute__((vector_size(16), aligned(2)));

// The processor's own where it has one, and else the C library's.
inline Vector fused(const Vector& a, const Vector& b, const Vector& c) {
    Vector out;
    for (int i = 0; i < LANES; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
}

inline Vector between(const Vector& v, float least, float most) {
    const Vector more = v > least ? v : Vector{} + least;
    return more < most ? more : Vector{} + most;
}

inline Ints widen(const uint8_t* from) {
    return Ints{from[0], from[1], from[2], from[3]};
}

// Floats of the size of ROUND are whole numbers, whose lowest bits are the number itself.
inline void store_bytes(uint8_t* to, const Vector& v) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23
    const Ints whole = reinterpret_cast<Ints>(v + ROUND);
    for (int i = 0; i < LANES; ++i) to[i] = static_cast<uint8_t>(whole[i]);
}

#include "byte_epilogue.inl"

template <int P>
inline void end_pixels(const Ending& ending, int64_t at, int64_t step, const Ints (&sums)[P]) {
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p) ending(at + p * step, real(sums[p]));
}

// Products of pairs, summed in 32 bits.
struct Weights {
    using Entry = int16_t;
    using Part = Shorts;
    using Sum = int32_t;
    using Sums = Ints;
    static constexpr int64_t entries = 2;
    static Sums start(const void* from, int64_t lane) {
        return basebytes::load(static_cast<const int32_t*>(from) + lane);
    }
    static Part load(const Entry* from) { return *reinterpret_cast<const Part*>(from); }
    static Part broadcast(const uint8_t* from) {
        const int16_t a = from[0], b = from[1];
        return Part{a, b, a, b, a, b, a, b};
    }
    static Sums multiply_add(const Sums& sum, const Part& weight, const Part& value) {
#if defined(__SSE2__)
        return sum + reinterpret_cast<Sums>(__builtin_ia32_pmaddwd128(weight, value));
#else
        // Pairs lie in the halves of integers.
        const Ints w = reinterpret_cast<Ints>(weight), v = reinterpret_cast<Ints>(value);
        return sum + (w >> 16) * (v >> 16) + (w << 16 >> 16) * (v << 16 >> 16);
#endif
    }
};

// 4 x 3 sums in 16 registers.
using NarrowTiles = Tiles<3, 1>;
using WideTiles = Tiles<1>;
using SevenTiles = Tiles<1>;
using DepthwiseTiles = Tiles<4, 2, 1>;
using DepthwiseSevens = Tiles<4, 2, 1>;
using LinearTiles = Tiles<1>;

#include "byte_table.inl"

}  // namespace basebytes

const ByteKernels* byte_kernels_base() {
    return &basebytes::TABLE;
}

}  // namespace sidestep
