#include <vector>

#include "kernels/kernels.h"
#include "kernels/processor.h"
#include "plan/error.h"

namespace sidestep {

namespace {

// What this processor can run, the fastest first.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#if defined(SIDESTEP_AMX) && !defined(SIDESTEP_EMULATE_AMX)
    if (has_amx()) found.push_back(kernels_amx());
#endif
#if defined(__x86_64__)
    if (has_avx512bf16()) found.push_back(kernels_avx512bf16());
    if (has_avx512()) found.push_back(kernels_avx512());
    if (has_avx2()) found.push_back(kernels_avx2());
#endif
    found.push_back(kernels_base());
#if defined(SIDESTEP_EMULATE_AMX)
    // Only by name: what else has bfloat16 comes first.
    if (has_avx512bf16()) found.push_back(kernels_amx());
#endif
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
