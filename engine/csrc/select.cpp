#include <vector>

#include "kernels.h"
#include "program.h"

namespace sidestep {

namespace {

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#else
bool has_avx2() {
    return false;
}
bool has_avx512() {
    return false;
}
bool has_avx512bf16() {
    return false;
}
#endif

// What this processor can run, the fastest first.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    if (has_avx512bf16()) found.push_back(kernels_avx512bf16());
    if (has_avx512()) found.push_back(kernels_avx512());
    if (has_avx2()) found.push_back(kernels_avx2());
#endif
    found.push_back(kernels_base());
    return found;
}

}  // namespace

const Kernels& select_kernels(const std::string& precision, const std::string& isa) {
    if (precision != "auto" && precision != "float32" && precision != "bfloat16")
        throw PlanError("precision must be auto, float32 or bfloat16, got '" + precision + "'");
    std::string known;
    for (const Kernels* kernels : available()) {
        const bool fits = precision == "auto" || precision == kernels->precision;
        if (fits && (isa == "auto" || isa == kernels->name)) return *kernels;
        known += (known.empty() ? "" : ", ") + std::string(kernels->precision) + " on " + kernels->name;
    }
    throw PlanError("this processor cannot run precision '" + precision + "' on instruction set '" + isa +
                    "'; it has " + known);
}

}  // namespace sidestep
