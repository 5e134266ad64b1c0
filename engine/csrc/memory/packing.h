// Weights in the order in which one set of kernels reads them.
#pragma once

#include <span>
#include <vector>

#include "kernels/bytes.h"
#include "memory/aligned.h"
#include "plan/program.h"

namespace sidestep {

// What an operation needs beside its inputs, in the order in which its kernel reads it.
struct Packed {
    std::span<std::byte> weight;
    std::vector<Block> blocks;  // conv
    int64_t run = 0;            // conv: entries that one kernel row reads, where it is done by sums over taps
    bool winograd = false;      // conv: how else it is done, or depthwise
    std::vector<float> factors;  // depthwise conv, affine and vconst: weights, padded with zeros
    std::vector<float> bias;     // padded with zeros
    size_t scratch = 0;          // bytes that the kernel needs to work with

    bool of_bytes = false;       // it reads or makes bytes, and needs some of these; bias is then an offset
    std::vector<int32_t> start;  // conv, linear: what sums begin with
    std::vector<float> multiplier;  // conv, linear, affine
    std::vector<float> start_sums;  // depthwise conv: `start` as floats
    std::vector<uint8_t> table;     // what every byte becomes
    Requantize requantize{};        // conv; affine has its ends
    AddedBytes added{};             // add
};

// Both kinds of kernels that an engine takes.
struct KernelSet {
    const Kernels& real;
    const ByteKernels& bytes;
};

// Returns how many bytes of scratch memory the operations need at most.
size_t scratch_bytes(const std::vector<Packed>& all);

// Returns how many bytes of it attention needs for values of some shapes.
size_t attention_bytes(const Program& program, const std::vector<Shape>& shapes, const Kernels& kernels);

// Returns what every node needs, by its index; weights lie in the pool, in the order of the nodes. Throws
// PlanError where scales of bytes do not fit each other.
std::vector<Packed> pack(const Program& program, const KernelSet& kernels, MemoryPool& pool);

}  // namespace sidestep
