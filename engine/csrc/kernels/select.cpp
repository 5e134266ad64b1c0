#include <vector>

#include "kernels/bytes.h"
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

// What this processor can run with maps of bytes, the fastest first.
std::vector<const ByteKernels*> available_for_bytes() {
    std::vector<const ByteKernels*> found;
#if defined(SIDESTEP_AMX) && !defined(SIDESTEP_EMULATE_AMX)
    if (has_amx() && has_avx512vnni()) found.push_back(byte_kernels_amx());
#endif
#if defined(__x86_64__)
    if (has_avx512vnni()) found.push_back(byte_kernels_avx512vnni());
    if (has_avxvnni()) found.push_back(byte_kernels_avxvnni());
    if (has_avx2()) found.push_back(byte_kernels_avx2());
#endif
    found.push_back(byte_kernels_base());
#if defined(SIDESTEP_EMULATE_AMX)
    if (has_avx512vnni()) found.push_back(byte_kernels_amx());
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
        // VNNI is about bytes only.
        const std::string wanted = isa == "avxvnni" && has_avxvnni() ? "avx2" : isa;
        if (fits && (isa == "auto" || wanted == kernels->name)) return *kernels;
        known += (known.empty() ? "" : ", ") + std::string(kernels->precision) + " on " + kernels->name;
    }
    throw PlanError("this processor cannot run precision '" + precision + "' on instruction set '" + isa +
                    "'; it has " + known);
}

const ByteKernels& select_byte_kernels(const std::string& isa) {
    // AVX-512 alone has nothing for bytes that AVX2 lacks.
    const std::string wanted = isa == "avx512" && !has_avx512vnni() ? "avx2" : isa;
    std::string known;
    for (const ByteKernels* kernels : available_for_bytes()) {
        if (wanted == "auto" || wanted == kernels->name) return *kernels;
        known += (known.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw PlanError("this processor cannot run bytes on instruction set '" + isa + "'; it has " + known);
}

}  // namespace sidestep
