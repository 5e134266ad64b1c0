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

// After maps.inl, which it uses.
#include "linear.inl"

constexpr Kernels TABLE{ISA,          PRECISION,    sizeof(Entry),  WIDE_BLOCK,  conv_rows,
                        depthwise,    winograd,     winograd_bytes, affine,      add,
                        activate,     sum,          window,         from_planes, from_bytes,
                        add_row,      filter_row,   from_floats,    to_floats,   linear,
                        LINEAR_SHARE, linear_bytes, linear_scratch, pack_linear, pack_run};
