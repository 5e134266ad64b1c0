// How accumulators become entries of a map. Included where LANES, Entry, load_entries, store_entries and
// positive (a vector with 0 for negative numbers) are defined. What is no number stays none, as in PyTorch:
// comparisons with NaN are false, so that they ask for what is to be replaced and not for what stays.

using Vector = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline Vector load(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
}
// A slope of 0 must not multiply, or infinity would become no number.
inline float apply_relu(float value, Relu relu) {
    if (!relu.on || !(value < 0)) return value;
    return relu.slope != 0 ? value * relu.slope : 0.0f;
}

inline void store(float* to, const Vector& v) {
    *reinterpret_cast<Vector*>(to) = v;
}

inline Vector apply_relu(const Vector& v, Relu relu) {
    if (!relu.on) return v;
    if (relu.slope == 0) return positive(v);
    return v < 0 ? v * relu.slope : v;
}

// Adds what lies in the residual to accumulators of a convolution, applies ReLU, stores entries.
template <class Row>
inline void apply_epilogue(const Row& row, int64_t at, const Vector& total) {
    Vector sum = total;
    if (row.residual) sum += load_entries(static_cast<const Entry*>(row.residual) + at);
    store_entries(static_cast<Entry*>(row.out) + at, apply_relu(sum, row.relu));
}
