// How accumulators become entries of a map. Included where LANES, Entry, load_entries, store_entries and
// positive (a vector with 0 for negative numbers) are defined. What is no number stays none, as in PyTorch:
// comparisons with NaN are false, so that they ask for what is to be replaced and not for what stays.

using Vector = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline Vector load(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
}
inline void store(float* to, const Vector& v) {
    *reinterpret_cast<Vector*>(to) = v;
}

// The sum of all lanes.
inline float total(const Vector& v) {
    float lanes[LANES];
    store(lanes, v);
    for (int64_t width = LANES / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

inline Vector at_least(const Vector& v, float least) {
    return v < least ? Vector{} + least : v;
}

inline Vector at_most(const Vector& v, float most) {
    return v > most ? Vector{} + most : v;
}

// A slope of 0 must not multiply, or infinity would become no number.
inline Vector activate_cheaply(const Vector& v, Activation a) {
    if (a.curve == Curve::none) return v;
    if (a.curve == Curve::relu6) return at_most(positive(v), 6.0f);
    if (a.slope == 0) return positive(v);
    return v < 0 ? v * a.slope : v;
}

// e^x, to two units in the last place: 2^n e^r with |r| <= ln 2 / 2, whose polynomial is that of Cephes'
// expf. Where e^x is too large for a float it is infinite, where it is too small the smallest normal one or
// less.
inline Vector exponential(const Vector& exponent) {
    using Bits = uint32_t __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: floats of this size are whole numbers
    const Vector x = at_most(at_least(exponent, -87.3f), 88.8f);
    const Vector rounded = x * 1.44269504f + ROUND, n = rounded - ROUND;
    const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector sum = r * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    const Bits power = (reinterpret_cast<Bits>(rounded) << 23) + 0x3f800000u;
    return (sum * r * r + r + 1.0f) * reinterpret_cast<Vector>(power);
}

// x Phi(x) with Phi(x) = 1 / 2 + x P(2 (x / MOST)^2 - 1) up to MOST, from where on it is 1, or 0: fitted to
// be right to 2e-6, and to 5e-5 where what is made of it is bfloat16.
inline Vector gelu(const Vector& v) {
    constexpr bool SHORT = sizeof(Entry) < sizeof(float);
    constexpr float MOST = SHORT ? 4.5f : 5.5f;
    const Vector left = at_least(v, -MOST), x = at_most(left, MOST), s = x * x * (2 / (MOST * MOST)) - 1.0f;
    Vector sum;
    if constexpr (SHORT) {
        sum = s * 0.00345141767f - 0.00951104797f;
        sum = sum * s + 0.0121912202f;
        sum = sum * s - 0.016559545f;
        sum = sum * s + 0.0275732297f;
        sum = sum * s - 0.0406003855f;
        sum = sum * s + 0.0548356511f;
        sum = sum * s - 0.0771701634f;
        sum = sum * s + 0.156901583f;
    } else {
        sum = s * -0.000934976561f + 0.00264096842f;
        sum = sum * s - 0.00249354448f;
        sum = sum * s + 0.0023700723f;
        sum = sum * s - 0.00627588527f;
        sum = sum * s + 0.011505885f;
        sum = sum * s - 0.0154032074f;
        sum = sum * s + 0.0200034063f;
        sum = sum * s - 0.0259296652f;
        sum = sum * s + 0.0321169086f;
        sum = sum * s - 0.0388064086f;
        sum = sum * s + 0.0477354936f;
        sum = sum * s - 0.0641719177f;
        sum = sum * s + 0.128551945f;
    }
    return left * (x * sum + 0.5f);
}

inline Vector activate(const Vector& v, Activation a) {
    switch (a.curve) {
        case Curve::silu: return v / (1.0f + exponential(-v));
        case Curve::sigmoid: return 1.0f / (1.0f + exponential(-v));
        case Curve::hard_swish: return v * at_most(positive(v + 3.0f), 6.0f) * (1.0f / 6);
        case Curve::hard_sigmoid: return at_most(positive(v + 3.0f), 6.0f) * (1.0f / 6);
        case Curve::gelu: return gelu(v);
        // x / 2 (1 + tanh u) = x / (1 + e^-2u)
        case Curve::gelu_tanh:
            return v / (1.0f + exponential(v * (v * v * -0.0713548162726f - 1.5957691216f)));
        default: return activate_cheaply(v, a);
    }
}

inline float activate(float value, Activation a) {
    return activate(Vector{} + value, a)[0];
}

// Adds what lies in the residual to accumulators of a convolution, applies a cheap activation, stores
// entries.
template <class Row>
inline void apply_epilogue(const Row& row, int64_t at, int64_t, const Vector& total) {
    Vector sum = total;
    if (row.residual) sum += load_entries(static_cast<const Entry*>(row.residual) + at);
    store_entries(static_cast<Entry*>(row.out) + at, activate_cheaply(sum, row.activation));
}

// The same with any activation, for loops that are not unrolled.
template <class Row>
inline void apply_any_epilogue(const Row& row, int64_t at, int64_t, const Vector& total) {
    Vector sum = total;
    if (row.residual) sum += load_entries(static_cast<const Entry*>(row.residual) + at);
    store_entries(static_cast<Entry*>(row.out) + at, activate(sum, row.activation));
}
