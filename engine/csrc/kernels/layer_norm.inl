// Pixels that are normalised over their channels. Included by kernel_table.inl.

// One pixel whose channels are padded to whole vectors; `mask` is 1 where a channel of the last one counts.
inline void normalise(const Entry* from, Entry* to, int64_t padded, const Vector& mask,
                      const Normalisation& norm) {
    const int64_t last = (norm.channels - 1) / LANES * LANES;
    const float share = 1.0f / static_cast<float>(norm.channels);
    Vector sums = load_entries(from + last) * mask;
    for (int64_t c = 0; c < last; c += LANES) sums += load_entries(from + c);
    const float mean = total(sums) * share;
    const Vector rest = (load_entries(from + last) - mean) * mask;
    Vector squares = rest * rest;
    for (int64_t c = 0; c < last; c += LANES) {
        const Vector difference = load_entries(from + c) - mean;
        squares += difference * difference;
    }
    const float scale = 1.0f / __builtin_sqrtf(total(squares) * share + norm.eps);
    for (int64_t c = 0; c < padded; c += LANES)
        store_entries(to + c,
                      (load_entries(from + c) - mean) * scale * load(norm.weight + c) + load(norm.bias + c));
}

// One pixel of few channels, which are not padded.
inline void normalise_each(const Entry* from, Entry* to, int64_t padded, const Normalisation& norm) {
    float mean = 0, squares = 0;
    const auto count = static_cast<float>(norm.channels);
    for (int64_t c = 0; c < norm.channels; ++c) mean += to_float(from[c]) / count;
    for (int64_t c = 0; c < norm.channels; ++c)
        squares += (to_float(from[c]) - mean) * (to_float(from[c]) - mean) / count;
    const float scale = 1.0f / __builtin_sqrtf(squares + norm.eps);
    for (int64_t c = 0; c < padded; ++c)
        to[c] = to_entry(
            c < norm.channels ? (to_float(from[c]) - mean) * scale * norm.weight[c] + norm.bias[c] : 0.0f);
}

void layer_norm(const void* in, void* out, const Rows& in_rows, const Rows& out_rows,
                const Normalisation& norm) {
    float counts[LANES];
    for (int64_t i = 0; i < LANES; ++i) counts[i] = i <= (norm.channels - 1) % LANES ? 1.0f : 0.0f;
    const Vector mask = load(counts);
    const bool whole = in_rows.channels % LANES == 0 && out_rows.channels == in_rows.channels;
    for (int64_t y = 0; y < in_rows.rows; ++y)
        for (int64_t x = 0; x < in_rows.pixels; ++x) {
            const Entry* from = static_cast<const Entry*>(in) + y * in_rows.row_step + x * in_rows.channels;
            Entry* to = static_cast<Entry*>(out) + y * out_rows.row_step + x * out_rows.channels;
            if (whole)
                normalise(from, to, out_rows.channels, mask, norm);
            else
                normalise_each(from, to, out_rows.channels, norm);
        }
}
