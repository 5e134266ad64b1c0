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

inline Vector activate(const Vector& v, Activation a) {
    switch (a.curve) {
        case Curve::silu: return v / (1.0f + exponential(-v));
        case Curve::sigmoid: return 1.0f / (1.0f + exponential(-v));
        case Curve::hard_swish: return v * at_most(positive(v + 3.0f), 6.0f) * (1.0f / 6);
        case Curve::hard_sigmoid: return at_most(positive(v + 3.0f), 6.0f) * (1.0f / 6);
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
