// Loops over maps of bytes that are no convolutions. Included by byte_table.inl.

inline void affine_pixel(const Entry* from, Entry* to, int64_t count, const Recode& r) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
        const Vector v = fused(load_entries(from + c), load(r.multiplier + c), load(r.offset + c));
        store_bytes(to + c, between(v, r.least, r.most));
    }
    for (; c < count; ++c)
        to[c] = byte_of(__builtin_fmaf(from[c], r.multiplier[c], r.offset[c]), r.least, r.most);
}

void affine(const uint8_t* in, uint8_t* out, const Rows& in_rows, int64_t pixel_step, const Rows& out_rows,
            const Recode& recode) {
    for (int64_t y = 0; y < in_rows.rows; ++y)
        for (int64_t x = 0; x < in_rows.pixels; ++x)
            affine_pixel(in + y * in_rows.row_step + x * pixel_step,
                         out + y * out_rows.row_step + x * out_rows.channels, in_rows.channels, recode);
}

void add(const uint8_t* a, const uint8_t* b, uint8_t* out, int64_t count, const AddedBytes& sum) {
    const auto [multiplier_a, multiplier_b, offset, least, most] = sum;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Vector first = fused(load_entries(a + i), Vector{} + multiplier_a, Vector{} + offset);
        store_bytes(out + i,
                    between(fused(load_entries(b + i), Vector{} + multiplier_b, first), least, most));
    }
    for (; i < count; ++i)
        out[i] = byte_of(__builtin_fmaf(b[i], multiplier_b, __builtin_fmaf(a[i], multiplier_a, offset)),
                         least, most);
}

// Several sums at once, since each addition waits for the one before it.
void sum(const uint8_t* in, const Rows& rows, int32_t* sums) {
    constexpr int64_t PARTS = 4;
    int64_t c = 0;
    for (; c + LANES <= rows.channels; c += LANES) {
        Ints parts[PARTS] = {};
        for (int64_t y = 0; y < rows.rows; ++y) {
            const Entry* pixel = in + y * rows.row_step + c;
            int64_t x = 0;
            for (; x + PARTS <= rows.pixels; x += PARTS)
                for (int64_t p = 0; p < PARTS; ++p) parts[p] += widen(pixel + (x + p) * rows.channels);
            for (; x < rows.pixels; ++x) parts[0] += widen(pixel + x * rows.channels);
        }
        store(sums + c, (parts[0] + parts[1]) + (parts[2] + parts[3]));
    }
    for (; c < rows.channels; ++c) {
        sums[c] = 0;
        for (int64_t y = 0; y < rows.rows; ++y)
            for (int64_t x = 0; x < rows.pixels; ++x)
                sums[c] += in[y * rows.row_step + x * rows.channels + c];
    }
}

void scale_sums(const int32_t* sums, int64_t count, float multiplier, float offset, float* out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store(out + i, fused(real(load(sums + i)), Vector{} + multiplier, Vector{} + offset));
    for (; i < count; ++i) out[i] = __builtin_fmaf(static_cast<float>(sums[i]), multiplier, offset);
}

template <int64_t C>
inline void mean_of(const uint8_t* in, const Rows& rows, uint8_t* out, int64_t pixel_step) {
    int32_t sums[C] = {};
    for (int64_t y = 0; y < rows.rows; ++y)
        for (int64_t x = 0; x < rows.pixels; ++x)
            for (int64_t i = 0; i < C; ++i) sums[i] += in[y * rows.row_step + x * pixel_step + i];
    const float share = 1.0f / static_cast<float>(rows.rows * rows.pixels);
    for (int64_t i = 0; i < C; ++i) out[i] = byte_of(static_cast<float>(sums[i]) * share, 0, 255);
}

template <int64_t C>
inline void largest_of(const uint8_t* in, const Rows& rows, uint8_t* out, int64_t pixel_step) {
    // GCC drops the size where `using` names a vector of a template's length.
    typedef uint8_t Bytes __attribute__((vector_size(C), aligned(1)));
    Bytes largest{};
    for (int64_t y = 0; y < rows.rows; ++y)
        for (int64_t x = 0; x < rows.pixels; ++x) {
            const Bytes bytes = *reinterpret_cast<const Bytes*>(in + y * rows.row_step + x * pixel_step);
            largest = largest > bytes ? largest : bytes;
        }
    *reinterpret_cast<Bytes*>(out) = largest;
}

template <int64_t C>
inline void window_of(const uint8_t* in, const Rows& rows, uint8_t* out, int64_t pixel_step, bool mean) {
    mean ? mean_of<C>(in, rows, out, pixel_step) : largest_of<C>(in, rows, out, pixel_step);
}

void window(const uint8_t* in, const Rows& rows, uint8_t* out, int64_t pixel_step, bool mean) {
    constexpr int64_t WIDE = 4 * LANES;
    int64_t c = 0;
    for (; c + WIDE <= rows.channels; c += WIDE) window_of<WIDE>(in + c, rows, out + c, pixel_step, mean);
    for (; c + CHANNEL_BLOCK <= rows.channels; c += CHANNEL_BLOCK)
        window_of<CHANNEL_BLOCK>(in + c, rows, out + c, pixel_step, mean);
    for (; c < rows.channels; c += 4) window_of<4>(in + c, rows, out + c, pixel_step, mean);
}

void from_floats(const float* in, int64_t count, float inverse, float zero, uint8_t* out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store_bytes(out + i, between(fused(load(in + i), Vector{} + inverse, Vector{} + zero), 0, 255));
    for (; i < count; ++i) out[i] = byte_of(__builtin_fmaf(in[i], inverse, zero), 0, 255);
}

void to_floats(const uint8_t* in, int64_t count, float zero, float scale, float* out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, (load_entries(in + i) - zero) * scale);
    for (; i < count; ++i) out[i] = (static_cast<float>(in[i]) - zero) * scale;
}
