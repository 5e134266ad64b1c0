// What this processor can do.
#pragma once

namespace sidestep {

bool has_avx2();
bool has_avxvnni();
bool has_avx512();
bool has_avx512vnni();
bool has_avx512bf16();
// Tiles of bfloat16 and of bytes beside AVX-512 with bfloat16. Asks the system for them the first time.
bool has_amx();

}  // namespace sidestep
