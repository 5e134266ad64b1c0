// Inner loops, once per instruction set and precision; everything around them is in run/executor.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "kernels/prefetch.h"

namespace sidestep {

// Channels of a map lie together and are padded with zeros to a multiple of this (but see padded_channels).
constexpr int64_t CHANNEL_BLOCK = 16;

// What may end an operation. Those up to relu6 are so cheap that they end every accumulator in its register.
enum class Curve : uint8_t { none, relu, relu6, silu, hard_swish, hard_sigmoid, sigmoid, gelu, gelu_tanh };
struct Activation {
    Curve curve = Curve::none;
    float slope = 0;  // of relu: negative numbers times it, 0 for the plain ReLU
    bool is_cheap() const { return curve <= Curve::relu6; }
};

// How sums of products of bytes become bytes; docs/plan.md says it to the last bit.
struct Requantize {
    const int32_t*
        start;  // of all channels: what sums begin with, minus the input's zero point times all weights
    const float* multiplier;  // of all channels
    const float* offset;      // of all channels
    float residual_multiplier;
    float least, most;     // bytes
    const uint8_t* table;  // what a byte becomes in the end, or null
    bool plain;  // all sums begin with 0, and scaled sums are integers of 32 bits whatever the bytes
};

// A block of output channels of a convolution.
struct Block {
    int64_t first;  // channel
    int64_t width;  // channels
    size_t offset;  // bytes into the packed weights
};

// A rectangle of output pixels of a convolution, for some blocks of output channels. Steps are in entries.
struct ConvRows {
    const void* in;      // what the first pixel's first tap reads
    const void* weight;  // packed: by block, [kernel row][entry of the run][channel of the block], bf16
                         // [..][run / 2][channel][2]
    const Block* blocks;
    int64_t num_blocks;
    const float* bias;     // of all channels
    const void* residual;  // of the first pixel, or null; lies as the output
    void* out;             // of the first pixel
    int64_t rows, pixels;
    int64_t kernel_rows;
    int64_t run;       // entries that one kernel row reads: taps times padded channels, a multiple of 4
    int64_t row_step;  // from one kernel row to the next
    int64_t in_row_step, out_row_step;  // from one row of output pixels to the next
    int64_t pixel_step, out_step;       // from one output pixel to the next; in_row_step is a multiple
    Activation activation;
    PrefetchQueue* prefetch;       // lines to prefetch while computing
    const Requantize* requantize;  // of bytes, which have no bias and no activation
};

// Rows of output pixels of a depthwise convolution, all channels. Steps are in entries; pixels of input and
// output are `channels` apart.
struct Depthwise {
    const void* in;                  // the first pixel's first tap
    const float* weight;             // [block of CHANNEL_BLOCK channels][tap][channel of the block]
    const float* bias;               // of all channels
    const void* residual;            // of the first pixel, or null
    void* out;                       // of the first pixel
    int64_t rows, pixels, channels;  // channels padded, a multiple of CHANNEL_BLOCK
    int64_t kernel, stride;
    int64_t row_step, out_row_step;
    Activation activation;
    const Requantize* requantize;  // of bytes, where `bias` is what sums begin with
};

// A tile of Winograd's convolution reads a square of so many pixels.
constexpr int64_t WINOGRAD_SIZE = 4;
constexpr int64_t WINOGRAD_POSITIONS = WINOGRAD_SIZE * WINOGRAD_SIZE;

// Rows of output pixels of a 3 x 3 convolution with stride 1 and padding 1, all channels. Steps are in
// entries.
struct Winograd {
    const void* in;      // the first pixel's first tap
    const void* weight;  // transformed and packed: by block of output channels, position, then as ConvRows'
    const float* bias;
    const void* residual;  // of the first pixel, or null
    void* out;             // of the first pixel
    void* scratch;         // winograd_bytes of it
    int64_t rows, pixels;
    int64_t inputs, outputs;  // channels, padded
    int64_t begin, end;
    int64_t row_step, out_row_step;
    Activation activation;
    PrefetchQueue* prefetch;
};

// A rectangle of pixels whose channels lie together.
struct Rows {
    int64_t rows, pixels, channels;  // channels padded
    int64_t row_step;                // entries from row to row
};

// What normalises every pixel over its channels. Weight and bias are padded with zeros.
struct Normalisation {
    const float* weight;
    const float* bias;
    float eps;
    int64_t channels;  // that count; those behind them are padding
};

// Attention of pixels of a map to all of its pixels. Steps are in entries.
struct Attention {
    const void* in;        // the first pixel: of every head its query, then all keys, then all values
    void* out;             // the same
    void* scratch;         // attention_bytes of it
    int64_t rows, pixels;  // of both maps
    int64_t heads, size;   // entries of a head
    int64_t in_step, in_row_step;
    int64_t out_step, out_row_step;
    int64_t begin, end;  // pixels whose queries are answered, row by row
};

// Numbers of pixels that a tile of a convolution takes, the most first and 1 last.
template <int... PIXELS>
using Tiles = std::integer_sequence<int, PIXELS...>;

struct LinearLayer {
    const void* packed;
    const float* bias;
    void* scratch;  // linear_scratch bytes of it
    int64_t inputs, outputs;
    Activation activation;
};

// Along one axis every output is a weighted sum of `taps` inputs from `first` on.
struct Filter {
    int64_t taps;
    const int64_t* first;  // of every output
    const float* weight;   // [output][tap], 0 where an output has fewer
};

struct Kernels {
    const char* name;
    const char* precision;
    int64_t entry_size;  // bytes of one entry of a map
    int64_t wide_block;  // widest block of output channels that conv_rows takes, a multiple of CHANNEL_BLOCK
    void (*conv_rows)(const ConvRows& rows);
    void (*depthwise)(const Depthwise& rows);
    void (*winograd)(const Winograd& rows);  // null where conv_rows is faster
    size_t (*winograd_bytes)(int64_t inputs, int64_t outputs);
    // out = activation(in * weight + bias) by channel; weight and bias may be null. Pixels of `in` are
    // pixel_step apart.
    void (*affine)(const void* in, void* out, const Rows& in_rows, int64_t pixel_step, const Rows& out_rows,
                   const float* weight, const float* bias, Activation activation);
    // out = (in - mean) / sqrt(variance + eps) * weight + bias of every pixel
    void (*layer_norm)(const void* in, void* out, const Rows& in_rows, const Rows& out_rows,
                       const Normalisation& norm);
    void (*attention)(const Attention& pixels);
    size_t (*attention_bytes)(int64_t pixels, int64_t size);
    // out = activation(a + b), entry by entry
    void (*add)(const void* a, const void* b, void* out, int64_t count, Activation activation);
    // out = activation(in) of floats, which may be the same ones
    void (*activate)(const float* in, int64_t count, float* out, Activation activation);
    // sums[channels] over all pixels
    void (*sum)(const void* in, const Rows& rows, float* sums);
    // The largest entry or the mean of a window for every channel: one output pixel.
    void (*window)(const void* in, const Rows& rows, void* out, int64_t pixel_step, bool mean);
    // One row of pixels out of floats plane by plane, or out of bytes pixel by pixel times scale plus shift.
    void (*from_planes)(const float* planes, int64_t plane_step, int64_t channels, int64_t pixels, void* out,
                        int64_t out_step);
    void (*from_bytes)(const uint8_t* bytes, int64_t channels, int64_t pixels, const float* scale,
                       const float* shift, void* out, int64_t out_step);
    // sums[count] = a row of entries times a factor, added to what is there unless it is the first.
    void (*add_row)(const void* in, int64_t count, float factor, bool is_first, float* sums);
    // One row of `pixels` pixels out of a row of floats; channels, a multiple of 4, lie together in both.
    void (*filter_row)(const float* in, int64_t channels, const Filter& filter, int64_t pixels, void* out,
                       int64_t out_step);
    void (*from_floats)(const float* in, int64_t count, void* out);
    void (*to_floats)(const void* in, int64_t count, float* out);
    // y = activation(W x + b) for `images` pairs of x and y, with what pack_linear made of W; outputs [begin,
    // end) of all, where `begin` is a multiple of linear_share.
    void (*linear)(const LinearLayer& layer, const float* const* x, float* const* y, int64_t images,
                   int64_t begin, int64_t end);
    int64_t linear_share;
    size_t (*linear_bytes)(int64_t inputs, int64_t outputs);
    size_t (*linear_scratch)(int64_t inputs);
    void (*pack_linear)(const float* weight, int64_t inputs, int64_t outputs, void* packed);
    // Makes what conv_rows reads out of `run` rows of `block` floats.
    void (*pack_run)(const float* rows, int64_t run, int64_t block, void* packed);
};

// Null where this build lacks them. Whether the processor can run them is another question.
const Kernels* kernels_base();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512bf16();
const Kernels* kernels_amx();

// Returns the best kernels of this processor for a precision ("auto", "float32", "bfloat16") and an
// instruction set ("auto", "base", "avx2", "avxvnni", "avx512", "amx"). Throws PlanError where the processor
// cannot.
const Kernels& select_kernels(const std::string& precision, const std::string& isa);

}  // namespace sidestep
