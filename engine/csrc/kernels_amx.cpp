// Convolutions with AMX, everything else as with AVX-512 and bfloat16.
//
// A tile of the input holds up to 16 pixels times up to 32 entries of what a kernel row reads, a tile of the
// weights these entries times 16 channels: that is how they are packed. Up to four tiles of sums are made at
// a time, since a product that needs the one before it waits 52 cycles and one that does not 16. They go to
// memory and are closed there while the next ones are made: sums of 16 channels take as long to close as to
// make, and tiles and vectors are different parts of a core.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "tiles.h"

namespace sidestep {
namespace amx {

constexpr int64_t LANES = CHANNEL_BLOCK;

#include "kernels_bf16.inl"

constexpr int64_t TILE_PIXELS = 16;
constexpr int64_t TILE_ENTRIES = 32;
constexpr int64_t TILE_SUMS = TILE_PIXELS * LANES;
constexpr int64_t SUMS_STEP = LANES * sizeof(float);
constexpr int64_t WEIGHTS_STEP = 2 * LANES * sizeof(Entry);
// Tiles of sums at a time, and the first tiles that hold pixels and weights.
constexpr int GROUP = 4, PIXELS = 4, WEIGHTS = 6;
// Cache lines asked for with every product. A product takes 16 cycles, in which a core receives two or three
// lines from the cache that it shares with others; more would stand in the way of what is needed now.
constexpr int LINES = 2;

inline int64_t parts(int64_t whole, int64_t part) {
    return (whole + part - 1) / part;
}

// How a rectangle of output pixels is cut into tiles. Where rows do not fill them, all rows are one line of
// pixels: its tiles go on over what lies between two rows, whose sums nobody keeps. The last tile of a line
// begins early enough to end with it, so that nothing behind a map is read.
struct Cut {
    int64_t lines;
    int64_t length;  // pixels of a line
    int64_t height;  // pixels of a tile
    int64_t across;  // tiles of a line
    int64_t period;  // pixels from one row to the next on a line
};

inline Cut cut(const ConvRows& c) {
    const int64_t period = c.in_row_step / c.pixel_step, whole = (c.rows - 1) * period + c.pixels;
    const bool flat = parts(whole, TILE_PIXELS) < c.rows * parts(c.pixels, TILE_PIXELS);
    const int64_t length = flat ? whole : c.pixels;
    const int64_t height = parts(length, parts(length, TILE_PIXELS));
    return {flat ? 1 : c.rows, length, height, parts(length, height), period};
}

// Entries of a kernel row that a tile takes: equal parts of the row, so that all tiles have one shape. Three
// taps of 16 channels are two parts of 24 entries; 32 and 16 would be as many products.
inline int64_t entries_of_tile(int64_t run) {
    int64_t count = parts(run, TILE_ENTRIES);
    while (run % count || run / count % 2) ++count;
    return run / count;
}

// A tile of pixels: where it reads, and the first pixel that is its own and not the tile's before it, in the
// map and in the tile.
struct Spot {
    const Entry* in;
    int64_t out;    // entries from the first output pixel
    int64_t x;      // from its row's first pixel
    int64_t begin;  // pixels of the tile before it
};

inline Spot spot(const ConvRows& c, const Cut& cut, int64_t index) {
    const int64_t line = index / cut.across, at = index % cut.across * cut.height;
    const int64_t begin = std::min(at, cut.length - cut.height);
    const int64_t y = line + at / cut.period, x = at % cut.period;
    return {static_cast<const Entry*>(c.in) + line * c.in_row_step + begin * c.pixel_step,
            y * c.out_row_step + x * c.out_step, x, at - begin};
}

// Closes tiles of sums pixel by pixel, some now and some then.
class Closer {
  public:
    Closer(const ConvRows& c, const Cut& cut) : conv_(c), cut_(cut) {}

    void add(const Spot& spot, int64_t channel, const float* sums) {
        waiting_[end_++] = {spot, channel, sums};
        left_ += cut_.height - spot.begin;
    }

    int64_t left() const { return left_; }

    // Not part of products, whose registers it would take.
    [[gnu::noinline]] void close(int64_t count) {
        for (count = std::min(count, left_), left_ -= count; count > 0;) {
            if (!pixels_) begin();
            const int64_t some = std::min(count, pixels_);
            pixels_ -= some, count -= some;
            close_pixels(some);
        }
    }

    void finish() {
        close(left_);
        first_ = end_ = 0;
    }

  private:
    struct Waiting {
        Spot spot;
        int64_t channel;
        const float* sums;
    };

    void begin() {
        const Waiting& next = waiting_[first_++];
        sums_ = next.sums + next.spot.begin * LANES;
        bias_ = conv_.bias + next.channel;
        at_ = next.spot.out + next.channel;
        x_ = next.spot.x;
        pixels_ = cut_.height - next.spot.begin;
    }

    void close_pixels(int64_t count) {
        const ConvRows conv = conv_;  // nothing that is written can be part of it
        const Vector bias = load(bias_);
        const int64_t period = cut_.period, back = conv.out_row_step - period * conv.out_step;
        const float* sums = sums_;
        int64_t at = at_, x = x_;
        for (; count > 0; --count, sums += LANES, at += conv.out_step) {
            if (x < conv.pixels) close_row(conv, at, load(sums) + bias);
            if (++x == period) x = 0, at += back;
        }
        sums_ = sums, at_ = at, x_ = x;
    }

    const ConvRows& conv_;
    const Cut cut_;
    Waiting waiting_[GROUP];
    int first_ = 0, end_ = 0;
    int64_t left_ = 0;
    const float *sums_ = nullptr, *bias_ = nullptr;  // of the next pixel
    int64_t at_ = 0, x_ = 0;
    int64_t pixels_ = 0;  // of its tile
};

// Calls f with 0, 1 .. N - 1, which it may use as the number of a tile. Only if f is inlined before anything
// else happens to it do variables that it shares stay in registers.
#define INLINED __attribute__((always_inline))
template <class F, int... I>
INLINED inline void each_of(const F& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
INLINED inline void each(const F& f) {
    each_of(f, std::make_integer_sequence<int, N>{});
}

class Conv {
  public:
    explicit Conv(const ConvRows& c)
        : c_(c), cut_(cut(c)), entries_(entries_of_tile(c.run)), closer_(c, cut_) {}

    void run() {
        tiles::configure(config());
        for (int64_t first = 0; first < c_.num_blocks; first += GROUP)
            columns(first, std::min<int64_t>(GROUP, c_.num_blocks - first));
        tiles::release();
        closer_.finish();
    }

  private:
    tiles::Config config() const {
        tiles::Config config;
        for (int i = 0; i < GROUP; ++i) config.shape(i, cut_.height, SUMS_STEP);
        for (int i = 0; i < 2; ++i) {
            config.shape(PIXELS + i, cut_.height, entries_ * sizeof(Entry));
            config.shape(WEIGHTS + i, entries_ / 2, WEIGHTS_STEP);
        }
        return config;
    }

    // Up to four blocks of channels. Two tiles of pixels times two blocks load the least; what that leaves
    // over is four of one.
    void columns(int64_t first, int64_t count) {
        const int64_t all = cut_.lines * cut_.across, even = count > 1 ? all - all % 2 : 0;
        for (int64_t block = first; block + 2 <= first + count; block += 2)
            for (int64_t i = 0; i < even; i += 2) group<2, 2>(i, block);
        if (count % 2) column(count > 1 ? even : all, first + count - 1);
        if (count == 1 || all == even) return;
        if (count == 2) group<1, 2>(even, first);
        if (count == 3) group<1, 3>(even, first);
        if (count == 4) group<1, 4>(even, first);
    }

    void column(int64_t end, int64_t block) {
        int64_t i = 0;
        for (; i + 4 <= end; i += 4) group<4, 1>(i, block);
        if (end - i == 1) group<1, 1>(i, block);
        if (end - i == 2) group<2, 1>(i, block);
        if (end - i == 3) group<3, 1>(i, block);
    }

    // P tiles of pixels times Q blocks of channels.
    template <int P, int Q>
    void group(int64_t first, int64_t block) {
        static_assert(P * Q <= GROUP && (P == 1 || Q <= 2));
        const Block* blocks = c_.blocks + block;
        Spot spots[P];
        for (int p = 0; p < P; ++p) spots[p] = spot(c_, cut_, first + p);
        const std::byte* weights[Q];
        for (int q = 0; q < Q; ++q) weights[q] = static_cast<const std::byte*>(c_.weight) + blocks[q].offset;
        products<P, Q>(spots, weights);
        closer_.finish();
        each<P * Q>([&](auto i) INLINED {
            tiles::store<i>(sums_ + i * TILE_SUMS, SUMS_STEP);
            closer_.add(spots[i / Q], blocks[i % Q].first, sums_ + i * TILE_SUMS);
        });
    }

    template <int P, int Q>
    void products(const Spot* spots, const std::byte* const* weights) {
        each<P * Q>([](auto i) INLINED { tiles::zero<i>(); });
        const int64_t entries = entries_, weights_of_tile = entries / 2 * WEIGHTS_STEP;
        const int64_t share = parts(closer_.left(), c_.kernel_rows * (c_.run / entries));
        int64_t weight = 0;
        for (int64_t k = 0; k < c_.kernel_rows; ++k) {
            const char* ahead = c_.ahead->next();
            const int64_t ahead_step = c_.ahead->step();
            for (int64_t j = 0; j < c_.run; j += entries, weight += weights_of_tile) {
                ahead = step<P, Q>(spots, k * c_.row_step + j, weights, weight, ahead, ahead_step);
                closer_.close(share);
            }
            c_.ahead->asked(ahead);
        }
    }

    // The products of one part of a kernel row. Returns where to ask on.
    template <int P, int Q>
    INLINED const char* step(const Spot* spots, int64_t from, const std::byte* const* weights, int64_t at,
                             const char* ahead, int64_t ahead_step) const {
        const int64_t pixel_step = c_.pixel_step * sizeof(Entry);
        if constexpr (Q <= 2)
            each<Q>([&](auto q) INLINED { tiles::load<WEIGHTS + q>(weights[q] + at, WEIGHTS_STEP); });
        each<P * Q>([&](auto i) INLINED {
            constexpr int p = i / Q, q = i % Q, A = PIXELS + p % 2, B = WEIGHTS + q % 2;
            if constexpr (q == 0) tiles::load<A>(spots[p].in + from, pixel_step);
            if constexpr (Q > 2) tiles::load<B>(weights[q] + at, WEIGHTS_STEP);
            tiles::multiply<i, A, B>();
            for (int line = 0; line < LINES; ++line, ahead += ahead_step) __builtin_prefetch(ahead, 0, 2);
        });
        return ahead;
    }

    const ConvRows& c_;
    const Cut cut_;
    const int64_t entries_;
    Closer closer_;
    alignas(64) float sums_[GROUP * TILE_SUMS];  // made, and not closed yet
};

void conv_rows(const ConvRows& rows) {
    Conv(rows).run();
}

Kernels table() {
    Kernels table = *kernels_avx512bf16();
    table.name = "amx";
    table.wide_block = CHANNEL_BLOCK;  // a tile of weights lies in one piece
    table.conv_rows = conv_rows;
    // It saves five products of nine, and its transforms take longer than those.
    table.winograd = nullptr;
    return table;
}

}  // namespace amx

const Kernels* kernels_amx() {
    static const Kernels table = amx::table();
    return &table;
}

}  // namespace sidestep
