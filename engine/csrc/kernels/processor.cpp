#include "kernels/processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sidestep {

#if defined(__x86_64__)

namespace {

// Whether the processor multiplies tiles, of bfloat16 and of bytes as all have that have some, and the system
// keeps them when it switches threads.
bool knows_tiles() {
    constexpr unsigned BFLOAT16 = 1u << 22, TILES = 1u << 24, BYTES = 1u << 25, SYSTEM_SAVES = 1u << 27,
                       TILE_STATE = 3u << 17;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & SYSTEM_SAVES)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & BFLOAT16) || !(d & TILES) || !(d & BYTES))
        return false;
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & TILE_STATE) == TILE_STATE;
}

// Linux makes room for tiles where a process asks, for all of its threads.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long ASK = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avxvnni() {
    return has_avx2() && __builtin_cpu_supports("avxvnni");
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512vnni() {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

bool has_avx512bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

bool has_amx() {
    static const bool has = has_avx512bf16() && knows_tiles() && may_use_tiles();
    return has;
}

#else

bool has_avx2() {
    return false;
}

bool has_avxvnni() {
    return false;
}

bool has_avx512() {
    return false;
}

bool has_avx512vnni() {
    return false;
}

bool has_avx512bf16() {
    return false;
}

bool has_amx() {
    return false;
}

#endif

}  // namespace sidestep
