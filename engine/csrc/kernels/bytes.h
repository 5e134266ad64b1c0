// Inner loops over maps of bytes, once per instruction set. docs/plan.md says what each computes, and all of
// them say the same to the last bit.
#pragma once

#include <type_traits>

#include "kernels/kernels.h"

namespace sidestep {

// What a byte becomes: the whole number next to it times a factor plus an offset, from `least` to `most`.
struct Recode {
    const float* multiplier;  // of every channel
    const float* offset;      // of every channel
    float least, most;
};

// What two bytes become.
struct AddedBytes {
    float multiplier_a, multiplier_b, offset, least, most;
};

// A linear layer of int8, which makes bytes of the numbers that it reads.
struct ByteLinear {
    const void* packed;
    const int32_t* start;     // of all outputs, padded
    const float* multiplier;  // of all outputs, padded
    const float* bias;        // of all outputs, padded
    void* scratch;            // linear_scratch bytes of it
    int64_t inputs, outputs;
    float inverse, zero;  // of what it reads: a number times the first plus the second is the byte
};

struct ByteKernels {
    const char* name;
    int64_t wide_block;   // widest block of output channels that conv_rows takes
    int64_t weight_size;  // bytes of a weight where it is packed
    // With `requantize`; entries are bytes.
    void (*conv_rows)(const ConvRows& rows);
    void (*depthwise)(const Depthwise& rows);
    // out = what recode says, channel by channel; pixels of `in` are pixel_step apart.
    void (*affine)(const uint8_t* in, uint8_t* out, const Rows& in_rows, int64_t pixel_step,
                   const Rows& out_rows, const Recode& recode);
    // out = what the sum says, byte by byte
    void (*add)(const uint8_t* a, const uint8_t* b, uint8_t* out, int64_t count, const AddedBytes& sum);
    // sums[channels] over all pixels; channels are padded
    void (*sum)(const uint8_t* in, const Rows& rows, int32_t* sums);
    // Sums times a factor plus an offset.
    void (*scale_sums)(const int32_t* sums, int64_t count, float multiplier, float offset, float* out);
    // The largest byte or the mean of a window for every channel: one output pixel.
    void (*window)(const uint8_t* in, const Rows& rows, uint8_t* out, int64_t pixel_step, bool mean);
    // Bytes next to numbers times `inverse` plus `zero`; what is no number becomes 0.
    void (*from_floats)(const float* in, int64_t count, float inverse, float zero, uint8_t* out);
    // (byte - zero) * scale
    void (*to_floats)(const uint8_t* in, int64_t count, float zero, float scale, float* out);
    // y = W x + b for `images` pairs of x and y; outputs [begin, end) of all, where `begin` is a multiple of
    // linear_share.
    void (*linear)(const ByteLinear& layer, const float* const* x, float* const* y, int64_t images,
                   int64_t begin, int64_t end);
    int64_t linear_share;
    size_t (*linear_bytes)(int64_t inputs, int64_t outputs);
    size_t (*linear_scratch)(int64_t inputs);
    void (*pack_linear)(const int8_t* weight, int64_t inputs, int64_t outputs, void* packed);
    // Makes what conv_rows reads out of `run` rows of `block` weights.
    void (*pack_run)(const int8_t* rows, int64_t run, int64_t block, void* packed);
};

// Null where this build lacks them. Whether the processor can run them is another question.
const ByteKernels* byte_kernels_base();
const ByteKernels* byte_kernels_avx2();
const ByteKernels* byte_kernels_avxvnni();
const ByteKernels* byte_kernels_avx512vnni();
const ByteKernels* byte_kernels_amx();

// Returns the best kernels of this processor for an instruction set ("auto", "base", "avx2", "avxvnni",
// "avx512", "amx"). Throws PlanError where the processor cannot.
const ByteKernels& select_byte_kernels(const std::string& isa);

}  // namespace sidestep
