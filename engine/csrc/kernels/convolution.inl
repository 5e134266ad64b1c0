// Convolutions as sums over taps, of floats or of 32-bit integers. Included where Entry and Weights are
// defined; whoever includes it defines finish_tile and conv_row.

// One row of output pixels for one block of output channels. Steps are in entries.
struct ConvRow {
    const void* in;        // what the first pixel's first tap reads
    const void* weight;    // of the block
    const void* start;     // what sums of the block begin with
    const void* residual;  // of the first pixel's block, or null
    void* out;             // of the first pixel's block
    int64_t pixels;
    int64_t kernel_rows, run, row_step;  // as in ConvRows
    int64_t pixel_step, out_step;
    Activation activation;
    const Requantize* requantize;
    int64_t channel;        // the block's first
    const char* prefetch;   // moved on by one line for every weight that is loaded
    int64_t prefetch_step;  // bytes from one to the next
};

using Sums = Weights::Sums;
using Epilogue = void (*)(const ConvRow&, int64_t, int64_t, const Sums&);

// Sums that an epilogue of its own follows stay as they are.
inline void store_sums(const ConvRow& row, int64_t at, int64_t, const Sums& sums) {
    *reinterpret_cast<Sums*>(static_cast<Weights::Sum*>(row.out) + at) = sums;
}

// Ends the sums of a tile, one after the other.
template <int P, int Q, Epilogue EPILOGUE>
inline void finish_each(const ConvRow& row, int64_t x, const Sums (&sums)[P][Q]) {
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 64
        for (int q = 0; q < Q; ++q)
            EPILOGUE(row, (x + p) * row.out_step + q * LANES, row.channel + q * LANES, sums[p][q]);
}

// Ends the sums of a tile; defined by whoever includes this.
template <int P, int Q, Epilogue EPILOGUE>
inline void finish_tile(const ConvRow& row, int64_t x, const Sums (&sums)[P][Q]);

// P pixels of Q vectors of channels: every weight is loaded once for all pixels, every entry of the input
// once for all vectors.
template <int P, int Q, int STEP, Epilogue EPILOGUE>
inline void tile(ConvRow& row, int64_t x) {
    const int64_t step = STEP ? STEP : row.pixel_step;
    const Entry* in = static_cast<const Entry*>(row.in) + x * step;
    const auto* weight = static_cast<const Weights::Entry*>(row.weight);
    // Sums stay in registers if all loops over them are unrolled.
    Sums accumulators[P][Q];
#pragma GCC unroll 64
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 64
        for (int q = 0; q < Q; ++q) accumulators[p][q] = Weights::start(row.start, q * LANES);
    const char* prefetch = row.prefetch;
    for (int64_t k = 0; k < row.kernel_rows; ++k) {
        for (int64_t j = 0; j < row.run; j += Weights::entries) {
            __builtin_prefetch(prefetch, 0, 2);
            prefetch += row.prefetch_step;
            Weights::Part parts[Q];
#pragma GCC unroll 64
            for (int q = 0; q < Q; ++q) parts[q] = Weights::load(weight + q * LANES * Weights::entries);
#pragma GCC unroll 64
            for (int p = 0; p < P; ++p) {
                const Weights::Part value = Weights::broadcast(in + p * step + j);
#pragma GCC unroll 64
                for (int q = 0; q < Q; ++q)
                    accumulators[p][q] = Weights::multiply_add(accumulators[p][q], parts[q], value);
            }
            weight += Q * LANES * Weights::entries;
        }
        in += row.row_step;
    }
    row.prefetch = prefetch;
    finish_tile<P, Q, EPILOGUE>(row, x, accumulators);
}

template <int Q, int STEP, Epilogue EPILOGUE, int P, int... REST>
inline void tiles(ConvRow& row, int64_t x) {
    for (; x + P <= row.pixels; x += P) tile<P, Q, STEP, EPILOGUE>(row, x);
    if constexpr (sizeof...(REST) > 0)
        if (x < row.pixels) tiles<Q, STEP, EPILOGUE, REST...>(row, x);
}

template <int Q, int STEP, Epilogue EPILOGUE, int... PIXELS>
inline void row_of(ConvRow& row, Tiles<PIXELS...>) {
    tiles<Q, STEP, EPILOGUE, PIXELS...>(row, 0);
}

template <int STEP, Epilogue EPILOGUE>
inline void conv_row_of(ConvRow& row, int64_t block) {
    if constexpr (WIDE_BLOCK > CHANNEL_BLOCK)
        if (block == WIDE_BLOCK) {
            if (row.pixels % 7 == 0 && row.pixels % 8 != 0)
                return row_of<WIDE_BLOCK / LANES, STEP, EPILOGUE>(row, SevenTiles{});
            return row_of<WIDE_BLOCK / LANES, STEP, EPILOGUE>(row, WideTiles{});
        }
    row_of<CHANNEL_BLOCK / LANES, STEP, EPILOGUE>(row, NarrowTiles{});
}

// Steps that are known when the code is made need no registers.
template <Epilogue EPILOGUE>
inline void conv_row_with(ConvRow& row, int64_t block) {
    switch (row.pixel_step) {
        case 4: return conv_row_of<4, EPILOGUE>(row, block);
        case 16: return conv_row_of<16, EPILOGUE>(row, block);
        case 32: return conv_row_of<32, EPILOGUE>(row, block);
        case 64: return conv_row_of<64, EPILOGUE>(row, block);
        case 128: return conv_row_of<128, EPILOGUE>(row, block);
        default: return conv_row_of<0, EPILOGUE>(row, block);
    }
}

// Not part of conv_rows, where the compiler would give registers to what a row does not need.
void conv_row(ConvRow& row, int64_t block);

// Entry `offset` of what lies at `from`, which may be nothing.
inline const void* entry(const void* from, int64_t offset) {
    return from ? static_cast<const Entry*>(from) + offset : nullptr;
}

void conv_rows(const ConvRows& all) {
    ConvRow row{};
    row.pixels = all.pixels;
    row.kernel_rows = all.kernel_rows;
    row.run = all.run;
    row.row_step = all.row_step;
    row.pixel_step = all.pixel_step;
    row.out_step = all.out_step;
    row.activation = all.activation;
    row.requantize = all.requantize;
    for (const Block* block = all.blocks; block < all.blocks + all.num_blocks; ++block) {
        row.weight = static_cast<const std::byte*>(all.weight) + block->offset;
        row.start = all.requantize ? static_cast<const void*>(all.requantize->start + block->first)
                                   : all.bias + block->first;
        row.channel = block->first;
        for (int64_t y = 0; y < all.rows; ++y) {
            row.in = entry(all.in, y * all.in_row_step);
            row.residual = entry(all.residual, y * all.out_row_step + block->first);
            row.out = static_cast<Entry*>(all.out) + y * all.out_row_step + block->first;
            row.prefetch = all.prefetch->next();
            row.prefetch_step = all.prefetch->step();
            conv_row(row, block->width);
            all.prefetch->advance(row.prefetch);
        }
    }
}
