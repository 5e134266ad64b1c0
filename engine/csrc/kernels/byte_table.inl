// Kernels over maps of bytes for the instruction set that the including file is compiled for. It defines, in
// namespace sidestep::NAME, ISA, LANES, WIDE_BLOCK, what byte_epilogue.inl asks for, and the Weights and
// Tiles that kernel_table.inl explains; it includes byte_epilogue.inl before its Weights. Included once per
// file.

#include "byte_maps.inl"
#include "convolution.inl"
#include "depthwise.inl"

// After byte_maps.inl, which it uses.
#include "byte_convolution.inl"

constexpr ByteKernels TABLE{ISA,
                            WIDE_BLOCK,
                            sizeof(Weights::Entry),
                            conv_rows,
                            depthwise_of_bytes,
                            affine,
                            add,
                            sum,
                            scale_sums,
                            window,
                            from_floats,
                            to_floats,
                            linear,
                            LINEAR_SHARE,
                            linear_bytes,
                            linear_scratch,
                            pack_linear,
                            pack_run};
