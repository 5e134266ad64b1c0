// AMX's tile instructions in software, after their definition in Intel's manual (volume 1, chapter 18, and
// volume 2): what the processor answers with an exception ends the process here. Needs AVX-512.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace sidestep::tiles {

constexpr int TILES = 8, MOST_ROWS = 16, MOST_BYTES = 64;

struct Tile {
    int rows = 0, row_bytes = 0;
    alignas(64) std::byte data[MOST_ROWS][MOST_BYTES] = {};

    int pairs() const { return row_bytes / 4; }
};

struct State {
    bool configured = false;
    Tile tiles[TILES];
};

inline State& state() {
    thread_local State of_thread;
    return of_thread;
}

inline void demand(bool condition, const char* rule) {
    if (condition) return;
    std::fprintf(stderr, "emulated AMX: %s\n", rule);
    std::abort();
}

inline Tile& tile(int index) {
    demand(state().configured, "a tile is used before tiles are configured or after they are released");
    Tile& found = state().tiles[index];
    demand(found.rows > 0, "a tile is used that has no shape");
    return found;
}

inline void release() {
    state() = State{};
}

inline void configure(const Config& config) {
    release();
    demand(config.palette == 1, "the palette must be 1");
    demand(config.start_row == 0, "rows start at 0");
    for (uint8_t byte : config.reserved) demand(!byte, "reserved bytes must be 0");
    for (int i = 0; i < MOST_ROWS; ++i) {
        const int rows = config.rows[i], bytes = config.row_bytes[i];
        demand(i < TILES || (!rows && !bytes), "there are eight tiles");
        demand(rows <= MOST_ROWS && bytes <= MOST_BYTES, "a tile has at most 16 rows of 64 bytes");
        demand(!rows == !bytes, "a tile has rows and bytes, or neither");
        if (i < TILES) state().tiles[i].rows = rows, state().tiles[i].row_bytes = bytes;
    }
    state().configured = true;
}

template <int TILE>
inline void zero() {
    std::memset(tile(TILE).data, 0, sizeof(Tile::data));
}

template <int TILE>
inline void load(const void* from, int64_t step) {
    zero<TILE>();
    Tile& to = tile(TILE);
    for (int row = 0; row < to.rows; ++row)
        std::memcpy(to.data[row], static_cast<const std::byte*>(from) + row * step, to.row_bytes);
}

template <int TILE>
inline void store(void* to, int64_t step) {
    const Tile& from = tile(TILE);
    for (int row = 0; row < from.rows; ++row)
        std::memcpy(static_cast<std::byte*>(to) + row * step, from.data[row], from.row_bytes);
}

// The sums of one row: entries with even and with odd numbers are summed apart, one after the other, and both
// are added to each other before they are added to what is there.
[[gnu::noinline]] inline void multiply_row(Tile& sums, const Tile& a, const Tile& b, int row) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    for (int k = 0; k < a.pairs(); ++k) {
        int pair;
        std::memcpy(&pair, a.data[row] + 4 * k, sizeof pair);
        const __m512i x = _mm512_set1_epi32(pair), w = _mm512_load_si512(b.data[k]);
        even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                               _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), even);
        odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, upper)),
                              _mm512_castsi512_ps(_mm512_and_si512(w, upper)), odd);
    }
    const auto columns = static_cast<__mmask16>((1u << sums.pairs()) - 1);
    const __m512 before = _mm512_load_ps(sums.data[row]);
    const __m512 after = _mm512_maskz_add_ps(columns, before, _mm512_add_ps(even, odd));
    _mm512_store_ps(sums.data[row], after);
}

// What the processor demands of three tiles that it multiplies.
template <int SUMS, int A, int B>
inline void demand_shapes() {
    static_assert(SUMS != A && SUMS != B && A != B, "three tiles that differ");
    Tile &sums = tile(SUMS), &a = tile(A), &b = tile(B);
    demand(sums.row_bytes % 4 == 0 && a.row_bytes % 4 == 0 && b.row_bytes % 4 == 0, "rows hold whole groups");
    demand(sums.rows == a.rows, "sums have the rows of the first factor");
    demand(sums.row_bytes == b.row_bytes, "sums have the columns of the second factor");
    demand(a.pairs() == b.rows, "the first factor has as many groups as the second has rows");
}

template <int SUMS, int A, int B>
inline void multiply() {
    demand_shapes<SUMS, A, B>();
    // To the nearest, no exceptions, denormal numbers count as zeros and so do denormal results.
    constexpr unsigned MODE = 0x1f80 | 0x8040;
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(MODE);
    for (int row = 0; row < tile(SUMS).rows; ++row) multiply_row(tile(SUMS), tile(A), tile(B), row);
    _mm_setcsr(mode);
}

// Integers of 32 bits, which lose what is beyond them.
template <int SUMS, int A, int B>
inline void multiply_bytes() {
    demand_shapes<SUMS, A, B>();
    Tile &sums = tile(SUMS), &a = tile(A), &b = tile(B);
    for (int row = 0; row < sums.rows; ++row)
        for (int column = 0; column < sums.pairs(); ++column) {
            uint32_t sum;
            std::memcpy(&sum, sums.data[row] + 4 * column, sizeof sum);
            for (int k = 0; k < a.row_bytes; ++k) {
                const auto x = std::to_integer<int>(a.data[row][k]);
                const auto w = static_cast<int8_t>(b.data[k / 4][4 * column + k % 4]);
                sum += static_cast<uint32_t>(x * w);
            }
            std::memcpy(sums.data[row] + 4 * column, &sum, sizeof sum);
        }
}

}  // namespace sidestep::tiles
