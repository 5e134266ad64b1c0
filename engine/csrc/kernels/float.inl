// What kernel_table.inl needs for maps of floats. The including file defines LANES and has included
// kernels.h.

using Entry = float;
constexpr const char* PRECISION = "float32";

inline float to_float(Entry entry) {
    return entry;
}
inline Entry to_entry(float value) {
    return value;
}

using Floats = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline Floats load_entries(const Entry* from) {
    return *reinterpret_cast<const Floats*>(from);
}
inline void store_entries(Entry* to, const Floats& v) {
    *reinterpret_cast<Floats*>(to) = v;
}

inline Floats positive(const Floats& v) {
    return v < 0 ? Floats{} : v;
}

#include "epilogue.inl"

struct Weights {
    using Entry = float;
    using Part = Floats;
    using Sum = float;
    using Sums = Floats;
    static constexpr int64_t entries = 1;  // of the input that one step takes
    static Sums start(const void* from, int64_t lane) { return load(static_cast<const float*>(from) + lane); }
    static Part load(const Entry* from) { return load_entries(from); }
    // Minus and not plus zero: that changes no number, so that the compiler leaves nothing but the load.
    static Part broadcast(const Entry* from) { return *from - Part{}; }
    static Floats multiply_add(const Floats& sum, const Part& weight, const Part& value) {
        return sum + weight * value;
    }
};
