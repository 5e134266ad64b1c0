// What convolutions of real numbers end in. Included by kernel_table.inl.

template <int P, int Q, Epilogue EPILOGUE>
inline void finish_tile(const ConvRow& row, int64_t x, const Sums (&sums)[P][Q]) {
    finish_each<P, Q, EPILOGUE>(row, x, sums);
}

// Sums as they are: `out` is floats.
[[gnu::noinline]] void conv_sums(ConvRow& row, int64_t block) {
    conv_row_with<store_sums>(row, block);
}

// Sums of some pixels become entries in a loop of their own: an activation that is not cheap is not written
// out once for every register. Fields of the row are changed and not copied: a vector of fields that were
// just written cannot be read before all that is on its way to memory has arrived there.
inline void conv_row_with_activation(ConvRow& row, int64_t block) {
    constexpr int64_t MOST = 64;
    float sums[MOST * WIDE_BLOCK];
    const struct {
        const void* residual;
        void* out;
        Activation activation;
    } end{row.residual, row.out, row.activation};
    const auto* in = static_cast<const Entry*>(row.in);
    const int64_t pixels = row.pixels, step = row.out_step;
    row.out = sums;
    row.out_step = block;
    for (int64_t x = 0; x < pixels; x += MOST) {
        row.in = in + x * row.pixel_step;
        row.pixels = pixels - x < MOST ? pixels - x : MOST;
        conv_sums(row, block);
        for (int64_t p = 0; p < row.pixels; ++p)
            for (int64_t c = 0; c < block; c += LANES)
                apply_any_epilogue(end, (x + p) * step + c, c, load(sums + p * block + c));
    }
    row.pixels = pixels;
    row.out_step = step;
}

[[gnu::noinline]] void conv_row_cheaply(ConvRow& row, int64_t block) {
    conv_row_with<apply_epilogue>(row, block);
}

[[gnu::noinline]] void conv_row(ConvRow& row, int64_t block) {
    if (row.activation.is_cheap()) return conv_row_cheaply(row, block);
    conv_row_with_activation(row, block);
}

void pack_run(const float* rows, int64_t run, int64_t block, void* packed) {
    auto* to = static_cast<Entry*>(packed);
    for (int64_t j = 0; j < run; j += Weights::entries)
        for (int64_t c = 0; c < block; ++c)
            for (int64_t e = 0; e < Weights::entries; ++e) *to++ = to_entry(rows[(j + e) * block + c]);
}
