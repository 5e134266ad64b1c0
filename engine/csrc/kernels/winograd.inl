// 3 x 3 convolutions with a stride of 1 by F(2 x 2, 3 x 3) of Winograd (Lavin and Gray, CVPR 2016): a tile of
// 2 x 2 output pixels reads 4 x 4 input pixels, whose transform is multiplied with that of the weights at
// each of its 16 positions: 16 products where the sum over taps needs 36. Included by kernel_table.inl.

// Tiles at once: as many as a product takes pixels.
constexpr int64_t WINOGRAD_TILES = 16;
// Entries after the tiles of one position, so that the 16 positions do not lie on the same sets of a cache.
constexpr int64_t WINOGRAD_GAP = 32;

// Where a tile lies: of an odd number of rows or pixels the last tile has one only. What it reads in the
// place of the missing one does not matter, but it must be there.
struct TileAt {
    int64_t y, x;
    bool lower, right;
};

inline int64_t tiles_across(const Winograd& w) {
    return (w.pixels + 1) / 2;
}

inline TileAt tile_at(const Winograd& w, int64_t index) {
    const int64_t y = index / tiles_across(w) * 2, x = index % tiles_across(w) * 2;
    return {y, x, y + 1 < w.rows, x + 1 < w.pixels};
}

// B^T d for four values along one axis.
inline void transform_line(const Vector& d0, const Vector& d1, const Vector& d2, const Vector& d3,
                           Vector* to) {
    to[0] = d0 - d2;
    to[1] = d1 + d2;
    to[2] = d2 - d1;
    to[3] = d1 - d3;
}

// B^T d B of `count` tiles side by side for one vector of channels: neighbours share two columns.
inline void transform_strip(const Winograd& w, const TileAt& first, int64_t count, int64_t c, Entry* to,
                            int64_t step) {
    const Entry* in = static_cast<const Entry*>(w.in) + first.y * w.row_step + first.x * w.inputs + c;
    const int64_t last_row = (first.lower ? 3 : 2) * w.row_step;
    auto column = [&](int64_t x, Vector* lines) {
        const Entry* top = in + x * w.inputs;
        transform_line(load_entries(top), load_entries(top + w.row_step), load_entries(top + 2 * w.row_step),
                       load_entries(top + last_row), lines);
    };
    Vector columns[WINOGRAD_SIZE][WINOGRAD_SIZE], across[WINOGRAD_SIZE];
    column(0, columns[0]);
    column(1, columns[1]);
    for (int64_t i = 0; i < count; ++i, to += w.inputs) {
        column(2 * i + 2, columns[2]);
        column(first.x + 2 * i + 1 < w.pixels ? 2 * i + 3 : 2 * i + 2, columns[3]);
#pragma GCC unroll 4
        for (int y = 0; y < WINOGRAD_SIZE; ++y) {
            transform_line(columns[0][y], columns[1][y], columns[2][y], columns[3][y], across);
#pragma GCC unroll 4
            for (int x = 0; x < WINOGRAD_SIZE; ++x)
                store_entries(to + (y * WINOGRAD_SIZE + x) * step + c, across[x]);
            columns[0][y] = columns[2][y];
            columns[1][y] = columns[3][y];
        }
    }
}

inline void transform_tiles(const Winograd& w, int64_t first, int64_t count, Entry* to, int64_t step) {
    while (count > 0) {
        const int64_t to_edge = tiles_across(w) - first % tiles_across(w),
                      strip = count < to_edge ? count : to_edge;
        for (int64_t c = 0; c < w.inputs; c += LANES)
            transform_strip(w, tile_at(w, first), strip, c, to, step);
        first += strip, count -= strip, to += strip * w.inputs;
    }
}

// A^T m A for one tile, with the epilogue of any convolution.
inline void untransform_tile(const Winograd& w, const TileAt& tile, const float* from, int64_t step) {
    ConvRow row{};
    row.residual = w.residual;
    row.out = w.out;
    row.activation = w.activation;
    for (int64_t c = w.begin; c < w.end; c += LANES) {
        Vector rows[2][WINOGRAD_SIZE];
#pragma GCC unroll 4
        for (int x = 0; x < WINOGRAD_SIZE; ++x) {
            const Vector m0 = load(from + x * step + c), m1 = load(from + (4 + x) * step + c),
                         m2 = load(from + (8 + x) * step + c), m3 = load(from + (12 + x) * step + c);
            rows[0][x] = m0 + m1 + m2;
            rows[1][x] = m1 - m2 - m3;
        }
#pragma GCC unroll 2
        for (int y = 0; y < 2; ++y) {
            if (y && !tile.lower) break;
            const int64_t at = (tile.y + y) * w.out_row_step + tile.x * w.outputs + c;
            apply_any_epilogue(row, at, c, rows[y][0] + rows[y][1] + rows[y][2]);
            if (tile.right) apply_any_epilogue(row, at + w.outputs, c, rows[y][1] - rows[y][2] - rows[y][3]);
        }
    }
}

// The products of `count` tiles at all positions. The bias belongs to the position whose sum goes to all four
// pixels of a tile.
inline void multiply_tiles(const Winograd& w, const Entry* from, float* to, int64_t count, int64_t in_step,
                           int64_t out_step) {
    static constexpr float nothing[WIDE_BLOCK] = {};
    ConvRow row{};
    row.pixels = count;
    row.kernel_rows = 1;
    row.run = row.pixel_step = w.inputs;
    row.out_step = w.outputs;
    row.prefetch = w.prefetch->next();
    row.prefetch_step = w.prefetch->step();
    const auto* weight = static_cast<const Entry*>(w.weight) + w.begin * w.inputs * WINOGRAD_POSITIONS;
    for (int64_t first = w.begin; first < w.end;) {
        const int64_t block = w.outputs - first < WIDE_BLOCK ? CHANNEL_BLOCK : WIDE_BLOCK;
        for (int i = 0; i < WINOGRAD_POSITIONS; ++i, weight += w.inputs * block) {
            row.in = from + i * in_step;
            row.weight = weight;
            row.start = i == WINOGRAD_SIZE + 1 ? w.bias + first : nothing;
            row.out = to + i * out_step + first;
            conv_row_with<store_sums>(row, block);
        }
        first += block;
    }
    w.prefetch->advance(row.prefetch);
}

// Values from the tiles of one position to those of the next.
inline int64_t winograd_step(int64_t channels) {
    return WINOGRAD_TILES * channels + WINOGRAD_GAP;
}

size_t winograd_bytes(int64_t inputs, int64_t outputs) {
    return WINOGRAD_POSITIONS *
           (winograd_step(inputs) * sizeof(Entry) + winograd_step(outputs) * sizeof(float));
}

void winograd(const Winograd& w) {
    const int64_t in_step = winograd_step(w.inputs), out_step = winograd_step(w.outputs);
    auto* in = static_cast<Entry*>(w.scratch);
    auto* out = reinterpret_cast<float*>(in + WINOGRAD_POSITIONS * in_step);
    const int64_t tiles = (w.rows + 1) / 2 * tiles_across(w);
    for (int64_t first = 0; first < tiles; first += WINOGRAD_TILES) {
        const int64_t count = tiles - first < WINOGRAD_TILES ? tiles - first : WINOGRAD_TILES;
        transform_tiles(w, first, count, in, in_step);
        multiply_tiles(w, in, out, count, in_step, out_step);
        for (int64_t i = 0; i < count; ++i)
            untransform_tile(w, tile_at(w, first + i), out + i * w.outputs, out_step);
    }
}
