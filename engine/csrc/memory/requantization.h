// The numbers by which operations make bytes of bytes. They are computed with 64 bits and rounded once:
// products of two floats have no more than 53 digits, so that every machine says the same.
#pragma once

#include "kernels/bytes.h"
#include "memory/packing.h"

namespace sidestep {

// What bytes held as `in` become where they are held as `out`: a byte times the first plus the second.
struct Recoding {
    float multiplier, offset;
    Recoding(const Coding& in, const Coding& out);
    uint8_t of(uint8_t byte) const;
};

// Sets what a convolution of bytes needs beside its weights. Throws PlanError where a number is too large.
void requantize(const ops::Conv& conv, const Program& program, const Coding& out, int64_t channels,
                Packed& packed);

// Return what operations on bytes need, of which `out` is what they make.
Packed pack_bytes(const ops::Affine& affine, const Program& program, const Coding& out);
Packed pack_bytes(const ops::Add& add, const Program& program, const Coding& out);
Packed pack_bytes(const ops::Relu& relu, const Program& program, const Coding& out);
Packed pack_bytes(const ops::Activate& activate, const Program& program, const Coding& out);
Packed pack_bytes(const ops::Quantize& quantize, const Program& program, const Coding& out);
Packed pack_bytes(const ops::Linear& linear, const Program& program, const ByteKernels& kernels,
                  MemoryPool& pool);

}  // namespace sidestep
