// Loops over maps that are no convolutions. Included by kernel_table.inl.

constexpr int64_t SUM_PARTS = 8;

void affine(const void* in, void* out, const Rows& in_rows, int64_t pixel_step, const Rows& out_rows,
            const float* weight, const float* bias, Relu relu) {
    for (int64_t y = 0; y < in_rows.rows; ++y)
        for (int64_t x = 0; x < in_rows.pixels; ++x) {
            const Entry* a = static_cast<const Entry*>(in) + y * in_rows.row_step + x * pixel_step;
            Entry* b = static_cast<Entry*>(out) + y * out_rows.row_step + x * out_rows.channels;
            for (int64_t c = 0; c < in_rows.channels; ++c) {
                float value = to_float(a[c]);
                if (weight) value *= weight[c];
                if (bias) value += bias[c];
                b[c] = to_entry(apply_relu(value, relu));
            }
        }
}

void add(const void* a, const void* b, void* out, int64_t count, Relu relu) {
    const auto *x = static_cast<const Entry*>(a), *y = static_cast<const Entry*>(b);
    auto* z = static_cast<Entry*>(out);
    for (int64_t i = 0; i < count; ++i) {
        z[i] = to_entry(apply_relu(to_float(x[i]) + to_float(y[i]), relu));
    }
}

// Several sums at once, since each addition waits for the one before it.
void sum_block(const Entry* in, const Rows& rows, float* sums) {
    Vector parts[SUM_PARTS] = {};
    for (int64_t y = 0; y < rows.rows; ++y) {
        const Entry* pixel = in + y * rows.row_step;
        int64_t x = 0;
        for (; x + SUM_PARTS <= rows.pixels; x += SUM_PARTS)
            for (int64_t p = 0; p < SUM_PARTS; ++p) parts[p] += load_entries(pixel + (x + p) * rows.channels);
        for (; x < rows.pixels; ++x) parts[0] += load_entries(pixel + x * rows.channels);
    }
    Vector total = parts[0];
    for (int64_t p = 1; p < SUM_PARTS; ++p) total += parts[p];
    store(sums, total);
}

void sum(const void* in, const Rows& rows, float* sums) {
    const auto* first = static_cast<const Entry*>(in);
    int64_t c = 0;
    for (; c + LANES <= rows.channels; c += LANES) sum_block(first + c, rows, sums + c);
    for (; c < rows.channels; ++c) {
        sums[c] = 0;
        for (int64_t y = 0; y < rows.rows; ++y)
            for (int64_t x = 0; x < rows.pixels; ++x)
                sums[c] += to_float(first[y * rows.row_step + x * rows.channels + c]);
    }
}

// The larger of two, or the first NaN.
inline float larger(float largest, float value) {
    return value > largest || value != value ? value : largest;
}

void window(const void* in, const Rows& rows, void* out, int64_t pixel_step, bool mean) {
    const auto* first = static_cast<const Entry*>(in);
    auto* to = static_cast<Entry*>(out);
    const float scale = 1.0f / static_cast<float>(rows.rows * rows.pixels);
    for (int64_t c = 0; c < rows.channels; c += 4) {
        float values[4];
        for (int64_t i = 0; i < 4; ++i) values[i] = mean ? 0.0f : to_float(first[c + i]);
        for (int64_t y = 0; y < rows.rows; ++y)
            for (int64_t x = 0; x < rows.pixels; ++x)
                for (int64_t i = 0; i < 4; ++i) {
                    const float value = to_float(first[y * rows.row_step + x * pixel_step + c + i]);
                    values[i] = mean ? values[i] + value : larger(values[i], value);
                }
        for (int64_t i = 0; i < 4; ++i) to[c + i] = to_entry(mean ? values[i] * scale : values[i]);
    }
}

void from_planes(const float* planes, int64_t plane_step, int64_t channels, int64_t pixels, void* out,
                 int64_t out_step) {
    auto* to = static_cast<Entry*>(out);
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t x = 0; x < pixels; ++x) to[x * out_step + c] = to_entry(planes[c * plane_step + x]);
}

void from_bytes(const uint8_t* bytes, int64_t channels, int64_t pixels, const float* scale,
                const float* shift, void* out, int64_t out_step) {
    auto* to = static_cast<Entry*>(out);
    for (int64_t x = 0; x < pixels; ++x)
        for (int64_t c = 0; c < channels; ++c)
            to[x * out_step + c] =
                to_entry(static_cast<float>(bytes[x * channels + c]) * scale[c] + shift[c]);
}

void from_floats(const float* in, int64_t count, void* out) {
    auto* to = static_cast<Entry*>(out);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store_entries(to + i, load(in + i));
    for (; i < count; ++i) to[i] = to_entry(in[i]);
}

void to_floats(const void* in, int64_t count, float* out) {
    const auto* from = static_cast<const Entry*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(from[i]);
}
