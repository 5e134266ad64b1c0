// How sums become bytes. Included where these are defined:
//   LANES                  32-bit numbers in a vector
//   Vector, Ints           so many of them, floats and integers, with the alignment of one
//   fused(a, b, c)         a * b + c, rounded once
//   between(v, a, b)       v, or what is next to it from a to b; a where v is no number
//   widen(from)            bytes as integers
//   store_bytes(to, v)     bytes next to floats from 0 to 255, ties to even
// and, behind it, end_pixels(ending, at, step, sums): what Ending does, for sums of some pixels.

using Entry = uint8_t;

inline Vector load(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
}
inline void store(float* to, const Vector& v) {
    *reinterpret_cast<Vector*>(to) = v;
}
inline Ints load(const int32_t* from) {
    return *reinterpret_cast<const Ints*>(from);
}
inline void store(int32_t* to, const Ints& v) {
    *reinterpret_cast<Ints*>(to) = v;
}

inline Vector real(const Ints& v) {
    return __builtin_convertvector(v, Vector);
}

inline Vector load_entries(const Entry* from) {
    return real(widen(from));
}

// One byte at a time, for what is left behind the last vector. Floats of the size of ROUND are whole numbers.
inline Entry byte_of(float value, float least, float most) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23
    value = value > least ? value : least;
    value = value < most ? value : most;
    return static_cast<Entry>(value + ROUND - ROUND);
}

// What ends the sums of one vector of channels, in registers: what is written could be part of anything.
struct Ending {
    Vector multiplier, offset, residual_multiplier;
    float least, most;
    const Entry* residual;
    Entry* out;

    template <class Row>
    Ending(const Row& row, int64_t channel)
        : multiplier(load(row.requantize->multiplier + channel)),
          offset(load(row.requantize->offset + channel)),
          residual_multiplier(Vector{} + row.requantize->residual_multiplier),
          least(row.requantize->least),
          most(row.requantize->most),
          residual(static_cast<const Entry*>(row.residual)),
          out(static_cast<Entry*>(row.out)) {}

    // Sums as they are before they are cut off and rounded.
    Vector scaled(int64_t at, const Vector& sum) const {
        const Vector v = fused(sum, multiplier, offset);
        return residual ? fused(load_entries(residual + at), residual_multiplier, v) : v;
    }
    void operator()(int64_t at, const Vector& sum) const {
        store_bytes(out + at, between(scaled(at, sum), least, most));
    }
};

template <class Row>
inline void apply_epilogue(const Row& row, int64_t at, int64_t channel, const Vector& sum) {
    Ending(row, channel)(at, sum);
}

template <class Row>
inline void apply_epilogue(const Row& row, int64_t at, int64_t channel, const Ints& sum) {
    Ending(row, channel)(at, real(sum));
}

// No activation costs more than another: tables make them.
template <class Row, class Sum>
inline void apply_any_epilogue(const Row& row, int64_t at, int64_t channel, const Sum& sum) {
    apply_epilogue(row, at, channel, sum);
}

// What a table makes of the bytes of some pixels.
inline void look_up(Entry* out, int64_t pixels, int64_t channels, int64_t step, const uint8_t* table) {
    for (int64_t x = 0; x < pixels; ++x)
        for (int64_t c = 0; c < channels; ++c) out[x * step + c] = table[out[x * step + c]];
}
