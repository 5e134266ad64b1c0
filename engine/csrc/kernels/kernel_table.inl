// Kernels for the instruction set that the including file is compiled for. It defines, in namespace
// sidestep::NAME:
//   ISA, PRECISION       strings
//   LANES                floats in a vector
//   Entry                what maps hold
//   to_float, to_entry   one entry to a float and back
//   epilogue.inl's       how accumulators become entries
//   Weights              what conv_rows multiplies with (struct with `Part`, `entries`, `load`, `broadcast`,
//                        `multiply_add`)
//   NarrowTiles, WideTiles  for blocks of CHANNEL_BLOCK and of WIDE_BLOCK channels
//   SevenTiles              for blocks of WIDE_BLOCK channels in rows of 7, 14 or 28 pixels
//   DepthwiseTiles, DepthwiseSevens  pixels of one vector of channels, the latter for rows of 7, 14 or 28
//   pixels LinearTiles             images, for blocks of LINEAR_VECTORS vectors
// Included once per file, so that the compiler may use the instruction set in it and nowhere else.

#include "convolution.inl"
#include "depthwise.inl"
#include "maps.inl"
#include "real_convolution.inl"
#include "winograd.inl"

constexpr int64_t MOST_OUTPUTS = WIDE_BLOCK, KEYS = Weights::entries;
#include "attention.inl"
#include "layer_norm.inl"

// After maps.inl, which it uses.
#include "linear.inl"

// Sums of products for attention.
inline void multiply(const Product& p) {
    ConvRow row{};
    row.in = p.in;
    row.start = NO_BIAS;
    row.pixels = p.pixels;
    row.kernel_rows = 1;
    row.run = p.run;
    row.pixel_step = p.step;
    row.out_step = p.out_step;
    for (int64_t first = 0, width; first < p.outputs; first += width) {
        width = width_of(p.outputs - first);
        row.weight = p.weight + first * p.run;
        row.out = p.out + first;
        row.prefetch = reinterpret_cast<const char*>(p.out);
        conv_sums(row, width);
    }
}

constexpr Kernels TABLE{ISA,          PRECISION,      sizeof(Entry), WIDE_BLOCK, conv_rows,   depthwise,
                        winograd,     winograd_bytes, affine,        layer_norm, attention,   attention_bytes,
                        add,          activate,       sum,           window,     from_planes, from_bytes,
                        add_row,      filter_row,     from_floats,   to_floats,  linear,      LINEAR_SHARE,
                        linear_bytes, linear_scratch, pack_linear,   pack_run};
