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
// out once for every register.
inline void conv_row_with_activation(ConvRow& row, int64_t block) {
    constexpr int64_t MOST = 64;
    float sums[MOST * WIDE_BLOCK];
    ConvRow part = row;
    part.out = sums;
    part.out_step = block;
    for (int64_t x = 0; x < row.pixels; x += MOST) {
        part.in = static_cast<const Entry*>(row.in) + x * row.pixel_step;
        part.pixels = row.pixels - x < MOST ? row.pixels - x : MOST;
        conv_sums(part, block);
        for (int64_t p = 0; p < part.pixels; ++p)
            for (int64_t c = 0; c < block; c += LANES)
                apply_any_epilogue(row, (x + p) * row.out_step + c, c, load(sums + p * block + c));
    }
    row.prefetch = part.prefetch;
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
