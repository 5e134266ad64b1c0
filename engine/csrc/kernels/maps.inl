// Loops over maps that are no convolutions. Included by kernel_table.inl.

constexpr int64_t SUM_PARTS = 8;

// One pixel, or several that are shorter than a vector and lie together: weights are then repeated.
inline void affine_run(const Entry* from, Entry* to, int64_t count, const float* weight, const float* bias,
                       int64_t weight_step, Activation activation) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Vector v = load_entries(from + i);
        if (weight) v *= load(weight + i * weight_step);
        if (bias) v += load(bias + i * weight_step);
        store_entries(to + i, activate(v, activation));
    }
    for (; i < count; ++i) {
        const int64_t c = weight_step ? i : i % LANES;
        float value = to_float(from[i]);
        if (weight) value *= weight[c];
        if (bias) value += bias[c];
        to[i] = to_entry(activate(value, activation));
    }
}

void affine(const void* in, void* out, const Rows& in_rows, int64_t pixel_step, const Rows& out_rows,
            const float* weight, const float* bias, Activation activation) {
    const int64_t channels = in_rows.channels;
    const bool together = pixel_step == channels && out_rows.channels == channels && LANES % channels == 0;
    float weights[LANES], biases[LANES];
    if (together) {
        for (int64_t i = 0; i < LANES; ++i) {
            if (weight) weights[i] = weight[i % channels];
            if (bias) biases[i] = bias[i % channels];
        }
    }
    for (int64_t y = 0; y < in_rows.rows; ++y) {
        const Entry* a = static_cast<const Entry*>(in) + y * in_rows.row_step;
        Entry* b = static_cast<Entry*>(out) + y * out_rows.row_step;
        if (together) {
            affine_run(a, b, in_rows.pixels * channels, weight ? weights : nullptr, bias ? biases : nullptr,
                       0, activation);
            continue;
        }
        for (int64_t x = 0; x < in_rows.pixels; ++x)
            affine_run(a + x * pixel_step, b + x * out_rows.channels, channels, weight, bias, 1, activation);
    }
}

void add(const void* a, const void* b, void* out, int64_t count, Activation activation) {
    const auto *x = static_cast<const Entry*>(a), *y = static_cast<const Entry*>(b);
    auto* z = static_cast<Entry*>(out);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store_entries(z + i, activate(load_entries(x + i) + load_entries(y + i), activation));
    for (; i < count; ++i) z[i] = to_entry(activate(to_float(x[i]) + to_float(y[i]), activation));
}

void activate(const float* in, int64_t count, float* out, Activation activation) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, activate(load(in + i), activation));
    for (; i < count; ++i) out[i] = activate(in[i], activation);
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

// The largest entries or the means of a window, of one vector of channels.
inline void window_vector(const Entry* in, const Rows& rows, Entry* out, int64_t pixel_step, bool mean,
                          float scale) {
    Vector values = mean ? Vector{} : load_entries(in);
    for (int64_t y = 0; y < rows.rows; ++y)
        for (int64_t x = 0; x < rows.pixels; ++x) {
            const Vector v = load_entries(in + y * rows.row_step + x * pixel_step);
            if (mean)
                values += v;
            else
                values = (v > values) | (v != v) ? v : values;  // as `larger`
        }
    store_entries(out, mean ? values * scale : values);
}

void window(const void* in, const Rows& rows, void* out, int64_t pixel_step, bool mean) {
    const auto* first = static_cast<const Entry*>(in);
    auto* to = static_cast<Entry*>(out);
    const float scale = 1.0f / static_cast<float>(rows.rows * rows.pixels);
    int64_t c = 0;
    for (; c + LANES <= rows.channels; c += LANES)
        window_vector(first + c, rows, to + c, pixel_step, mean, scale);
    for (; c < rows.channels; c += 4) {
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

void add_row(const void* in, int64_t count, float factor, bool is_first, float* sums) {
    const auto* from = static_cast<const Entry*>(in);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Vector part = load_entries(from + i) * factor;
        store(sums + i, is_first ? part : load(sums + i) + part);
    }
    for (; i < count; ++i) sums[i] = (is_first ? 0.0f : sums[i]) + to_float(from[i]) * factor;
}

void filter_row(const float* in, int64_t channels, const Filter& filter, int64_t pixels, void* out,
                int64_t out_step) {
    using Four = float __attribute__((vector_size(16), aligned(4)));
    for (int64_t x = 0; x < pixels; ++x) {
        const float* from = in + filter.first[x] * channels;
        const float* weight = filter.weight + x * filter.taps;
        Entry* to = static_cast<Entry*>(out) + x * out_step;
        for (int64_t c = 0; c < channels; c += 4) {
            Four sum{};
            for (int64_t tap = 0; tap < filter.taps; ++tap)
                if (weight[tap] != 0)
                    sum += weight[tap] * *reinterpret_cast<const Four*>(from + tap * channels + c);
            for (int64_t i = 0; i < 4; ++i) to[c + i] = to_entry(sum[i]);
        }
    }
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
