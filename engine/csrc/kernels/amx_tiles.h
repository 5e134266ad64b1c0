// The tile instructions of AMX that convolutions use: the processor's, or software that does the same where
// SIDESTEP_EMULATE_AMX is defined. Nothing else differs between the two.
#pragma once

#include <cstdint>

namespace sidestep::tiles {

// Shapes of the eight tiles, as the processor reads them.
struct alignas(64) Config {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void shape(int tile, int64_t tile_rows, int64_t bytes) {
        rows[tile] = static_cast<uint8_t>(tile_rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(Config) == 64);

}  // namespace sidestep::tiles

#if defined(SIDESTEP_EMULATE_AMX)
#include "kernels/amx_tiles_emulated.h"
#else

namespace sidestep::tiles {

// Assembly and not intrinsics: GCC's take the number of a tile as written, which a template has not, and
// nothing here needs a compiler that knows AMX, only an assembler.
inline void configure(const Config& config) {
    asm volatile("ldtilecfg %0" ::"m"(config));
}

inline void release() {
    asm volatile("tilerelease" ::);
}

template <int TILE>
inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

// Rows lie `step` bytes apart.
template <int TILE>
inline void load(const void* from, int64_t step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(TILE) : "memory");
}

template <int TILE>
inline void store(void* to, int64_t step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(TILE) : "memory");
}

// SUMS += A * B: rows of pairs of bfloat16 times columns of pairs, floats.
template <int SUMS, int A, int B>
inline void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}

// SUMS += A * B: rows of four unsigned bytes times columns of four signed ones, integers of 32 bits.
template <int SUMS, int A, int B>
inline void multiply_bytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}

}  // namespace sidestep::tiles

#endif
