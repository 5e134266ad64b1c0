// Convolutions with AMX's tiles, of bfloat16 or of bytes. Included where LANES is CHANNEL_BLOCK and Entry,
// load, apply_epilogue and apply_any_epilogue are defined, and Products with `Sum`, `multiply` of two tiles,
// and `end`, which makes entries of sums.
//
// A tile of the input holds up to 16 pixels times up to 64 bytes of what a kernel row reads, a tile of the
// weights these entries times 16 channels: that is how they are packed. Up to four tiles of accumulators are
// made at a time, since a product that needs the one before it waits longer than three others take. They go
// to memory, and their epilogue runs while the next ones are made: of 16 channels it takes as long as the
// products, and tiles and vectors are different parts of a core.

constexpr int64_t TILE_PIXELS = 16;
// Entries that one 32-bit sum takes at a time, and those of a tile's row.
constexpr int64_t PER_SUM = 4 / sizeof(Entry);
constexpr int64_t TILE_ENTRIES = 64 / sizeof(Entry);
constexpr int64_t TILE_SUMS = TILE_PIXELS * LANES;
constexpr int64_t SUMS_STEP = LANES * sizeof(Products::Sum);
constexpr int64_t WEIGHTS_STEP = PER_SUM * LANES * sizeof(Entry);
// Tiles of accumulators at a time, and the first tiles that hold pixels and weights.
constexpr int GROUP = 4, PIXELS = 4, WEIGHTS = 6;
// Steps of a sum from which its epilogue is spread evenly.
constexpr int64_t MANY_STEPS = 24;
// Cache lines prefetched with every product: about as many as a core receives meanwhile from the cache that
// it shares with others. More would stand in the way of what is needed now.
constexpr int LINES = 2;

inline int64_t ceil_div(int64_t whole, int64_t part) {
    return (whole + part - 1) / part;
}

// How a rectangle of output pixels is cut into tiles. Where rows do not fill them, all rows are one line of
// pixels: its tiles go on over what lies between two rows, whose sums are dropped. The last tile of a line
// begins early enough to end with it, so that nothing behind a map is read.
struct Tiling {
    int64_t lines;
    int64_t length;  // pixels of a line
    int64_t height;  // pixels of a tile
    int64_t across;  // tiles of a line
    int64_t period;  // pixels from one row to the next on a line
};

inline Tiling tiling_of(const ConvRows& c) {
    const int64_t period = c.in_row_step / c.pixel_step, whole = (c.rows - 1) * period + c.pixels;
    const bool flat = ceil_div(whole, TILE_PIXELS) < c.rows * ceil_div(c.pixels, TILE_PIXELS);
    const int64_t length = flat ? whole : c.pixels;
    const int64_t height = ceil_div(length, ceil_div(length, TILE_PIXELS));
    return {flat ? 1 : c.rows, length, height, ceil_div(length, height), period};
}

// Entries of a kernel row that a tile takes: equal parts of the row, so that all tiles have one shape. Three
// taps of 16 channels of bfloat16 are two parts of 24 entries; 32 and 16 would be as many products.
inline int64_t entries_of_tile(int64_t run) {
    int64_t count = ceil_div(run, TILE_ENTRIES);
    while (run % count || run / count % PER_SUM) ++count;
    return run / count;
}

// A tile of pixels: where it reads, and the first pixel that is its own and not the tile's before it, in the
// map and in the tile.
struct TilePosition {
    const Entry* in;
    int64_t out;    // entries from the first output pixel
    int64_t x;      // from its row's first pixel
    int64_t begin;  // pixels of the tile before it
};

// Tiles of pixels one after the other. Dividing anew for each of them takes as long as its products.
class TilePositions {
  public:
    TilePositions(const ConvRows& c, const Tiling& tiling) : conv_(c), tiling_(tiling) {}

    TilePosition next() {
        const int64_t begin = std::min(at_, tiling_.length - tiling_.height);
        const TilePosition position{
            static_cast<const Entry*>(conv_.in) + line_ * conv_.in_row_step + begin * conv_.pixel_step,
            y_ * conv_.out_row_step + x_ * conv_.out_step, x_, at_ - begin};
        at_ += tiling_.height, x_ += tiling_.height;
        if (at_ >= tiling_.length) at_ = x_ = 0, y_ = ++line_;
        for (; x_ >= tiling_.period; ++y_) x_ -= tiling_.period;
        return position;
    }

  private:
    const ConvRows& conv_;
    const Tiling& tiling_;
    int64_t line_ = 0, at_ = 0;  // pixels of the line before the tile
    int64_t y_ = 0, x_ = 0;
};

// The epilogue of tiles of accumulators, pixel by pixel, in portions between the products of the next tiles.
class DelayedEpilogue {
  public:
    using Sum = Products::Sum;

    DelayedEpilogue(const ConvRows& c, const Tiling& tiling) : conv_(c), tiling_(tiling) {}

    void add(const TilePosition& position, int64_t channel, const Sum* sums) {
        waiting_[end_++] = {position, channel, sums};
        left_ += tiling_.height - position.begin;
    }

    int64_t left() const { return left_; }

    // Not part of products, whose registers it would take.
    [[gnu::noinline]] void apply(int64_t count) {
        for (count = std::min(count, left_), left_ -= count; count > 0;) {
            if (!pixels_) begin();
            const int64_t some = std::min(count, pixels_);
            pixels_ -= some, count -= some;
            apply_to_pixels(some);
        }
    }

    void finish() {
        apply(left_);
        first_ = end_ = 0;
    }

  private:
    struct Waiting {
        TilePosition position;
        int64_t channel;
        const Sum* sums;
    };

    void begin() {
        const Waiting& next = waiting_[first_++];
        sums_ = next.sums + next.position.begin * LANES;
        channel_ = next.channel;
        at_ = next.position.out + next.channel;
        x_ = next.position.x;
        pixels_ = tiling_.height - next.position.begin;
    }

    // Pixels that lie together in a row, and are not between two rows.
    void apply_to_pixels(int64_t count) {
        const int64_t period = tiling_.period, back = conv_.out_row_step - period * conv_.out_step;
        while (count > 0) {
            const bool inside = x_ < conv_.pixels;
            const int64_t some = std::min(count, (inside ? conv_.pixels : period) - x_);
            if (inside) Products::end(conv_, at_, channel_, sums_, some);
            count -= some, x_ += some, sums_ += some * LANES, at_ += some * conv_.out_step;
            if (x_ == period) x_ = 0, at_ += back;
        }
    }

    const ConvRows& conv_;
    const Tiling tiling_;
    Waiting waiting_[GROUP];
    int first_ = 0, end_ = 0;
    int64_t left_ = 0;
    const Sum* sums_ = nullptr;  // of the next pixel
    int64_t channel_ = 0;
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
        : c_(c), tiling_(tiling_of(c)), entries_(entries_of_tile(c.run)), epilogue_(c, tiling_) {}

    void run() {
        tiles::configure(config());
        for (int64_t first = 0; first < c_.num_blocks; first += GROUP)
            columns(first, std::min<int64_t>(GROUP, c_.num_blocks - first));
        tiles::release();
        epilogue_.finish();
    }

  private:
    tiles::Config config() const {
        tiles::Config config;
        for (int i = 0; i < GROUP; ++i) config.shape(i, tiling_.height, SUMS_STEP);
        for (int i = 0; i < 2; ++i) {
            config.shape(PIXELS + i, tiling_.height, entries_ * sizeof(Entry));
            config.shape(WEIGHTS + i, entries_ / PER_SUM, WEIGHTS_STEP);
        }
        return config;
    }

    // Up to four blocks of channels, of the same pixels one after the other, so that what they read and write
    // stays in the nearest cache. Two tiles of pixels times two blocks load the least; what that leaves over
    // is four of one.
    void columns(int64_t first, int64_t count) {
        const int64_t all = tiling_.lines * tiling_.across, even = count > 1 ? all - all % 2 : 0;
        TilePositions tiles(c_, tiling_);
        for (int64_t i = 0; i < even; i += 2) {
            const TilePosition positions[]{tiles.next(), tiles.next()};
            for (int64_t block = first; block + 2 <= first + count; block += 2) group<2, 2>(positions, block);
        }
        if (count % 2) column(count > 1 ? even : all, first + count - 1);
        if (count == 1 || all == even) return;
        const TilePosition last = tiles.next();
        if (count == 2) group<1, 2>(&last, first);
        if (count == 3) group<1, 3>(&last, first);
        if (count == 4) group<1, 4>(&last, first);
    }

    void column(int64_t left, int64_t block) {
        TilePositions tiles(c_, tiling_);
        for (; left > 0; left -= GROUP) {
            TilePosition positions[GROUP];
            for (int64_t p = 0; p < std::min<int64_t>(left, GROUP); ++p) positions[p] = tiles.next();
            if (left == 1) group<1, 1>(positions, block);
            if (left == 2) group<2, 1>(positions, block);
            if (left == 3) group<3, 1>(positions, block);
            if (left >= 4) group<4, 1>(positions, block);
        }
    }

    // P tiles of pixels times Q blocks of channels.
    template <int P, int Q>
    void group(const TilePosition* positions, int64_t block) {
        static_assert(P * Q <= GROUP && (P == 1 || Q <= 2));
        const Block* blocks = c_.blocks + block;
        const std::byte* weights[Q];
        for (int q = 0; q < Q; ++q) weights[q] = static_cast<const std::byte*>(c_.weight) + blocks[q].offset;
        products<P, Q>(positions, weights);
        epilogue_.finish();
        each<P * Q>([&](auto i) INLINED {
            tiles::store<i>(sums_ + i * TILE_SUMS, SUMS_STEP);
            epilogue_.add(positions[i / Q], blocks[i % Q].first, sums_ + i * TILE_SUMS);
        });
    }

    template <int P, int Q>
    void products(const TilePosition* positions, const std::byte* const* weights) {
        each<P * Q>([&](auto i) INLINED { tiles::zero<i>(); });
        const int64_t entries = entries_, weights_of_tile = entries / PER_SUM * WEIGHTS_STEP;
        const int64_t share = share_of(c_.kernel_rows * (c_.run / entries));
        int64_t weight = 0;
        for (int64_t k = 0; k < c_.kernel_rows; ++k) {
            const char* prefetch = c_.prefetch->next();
            const int64_t prefetch_step = c_.prefetch->step();
            for (int64_t j = 0; j < c_.run; j += entries, weight += weights_of_tile) {
                prefetch =
                    step<P, Q>(positions, k * c_.row_step + j, weights, weight, prefetch, prefetch_step);
                epilogue_.apply(share);
            }
            c_.prefetch->advance(prefetch);
        }
    }

    // Pixels to end with each of so many steps: whole tiles, whose loops a processor foresees, or a few
    // pixels of which weights that are not in the nearest cache hide the time.
    int64_t share_of(int64_t steps) const {
        const int64_t unit = steps > MANY_STEPS ? 4 : tiling_.height;
        return unit * ceil_div(epilogue_.left(), unit * steps);
    }

    // The products of one part of a kernel row. Returns the next line to prefetch.
    template <int P, int Q>
    INLINED const char* step(const TilePosition* positions, int64_t from, const std::byte* const* weights,
                             int64_t at, const char* prefetch, int64_t prefetch_step) const {
        const int64_t pixel_step = c_.pixel_step * sizeof(Entry);
        if constexpr (Q <= 2)
            each<Q>([&](auto q) INLINED { tiles::load<WEIGHTS + q>(weights[q] + at, WEIGHTS_STEP); });
        each<P * Q>([&](auto i) INLINED {
            constexpr int p = i / Q, q = i % Q, A = PIXELS + p % 2, B = WEIGHTS + q % 2;
            if constexpr (q == 0) tiles::load<A>(positions[p].in + from, pixel_step);
            if constexpr (Q > 2) tiles::load<B>(weights[q] + at, WEIGHTS_STEP);
            Products::multiply<i, A, B>();
            for (int line = 0; line < LINES; ++line, prefetch += prefetch_step)
                __builtin_prefetch(prefetch, 0, 2);
        });
        return prefetch;
    }

    const ConvRows& c_;
    const Tiling tiling_;
    const int64_t entries_;
    DelayedEpilogue epilogue_;
    alignas(64) Products::Sum sums_[GROUP * TILE_SUMS];  // made, and waiting for their epilogue
};
