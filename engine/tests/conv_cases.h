// Random convolutions for tests of kernels without an engine around them, conv_rows.cpp and conv_bytes.cpp.
// Maps have not one entry more than a convolution may read or write (build it with the address sanitizer),
// and what lies between rows and beside blocks of channels must stay as it was.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace sidestep {

struct Case {
    int64_t rows, pixels, kernel, stride, inputs, outputs;  // channels, padded
    int64_t first_block, last_block;                        // of CHANNEL_BLOCK channels
    int64_t in_gap, out_gap;                                // pixels between rows
    bool residual, in_place;

    int64_t run() const { return kernel * inputs; }
    int64_t in_row() const { return ((pixels - 1) * stride + kernel + in_gap) * inputs; }
    int64_t out_row() const { return (pixels + out_gap) * outputs; }
    int64_t in_size() const {
        return ((rows - 1) * stride + kernel - 1) * in_row() + ((pixels - 1) * stride + kernel) * inputs;
    }
    int64_t out_size() const { return (rows - 1) * out_row() + pixels * outputs; }
    int64_t weights() const { return kernel * run() * outputs; }
    int64_t work() const { return rows * pixels * weights(); }

    // The same with blocks that a set of kernels takes whole.
    Case in_blocks_of(int64_t wide_block) const {
        Case c = *this;
        const int64_t wide = wide_block / CHANNEL_BLOCK;
        c.first_block = c.first_block / wide * wide;
        if (c.last_block % wide) c.last_block = c.outputs / CHANNEL_BLOCK;
        return c;
    }
};

inline Case any_case(std::mt19937& random) {
    auto one_of = [&](std::initializer_list<int64_t> values) {
        return values.begin()[random() % values.size()];
    };
    auto upto = [&](int64_t most) { return static_cast<int64_t>(random() % most) + 1; };
    Case c{};
    c.rows = upto(12);
    c.pixels = upto(40);
    c.kernel = one_of({1, 3, 3, 5, 7});
    c.stride = one_of({1, 1, 1, 2, 3});
    c.inputs = one_of({4, 16, 16, 32, 48, 64, 80, 112, 176});
    c.outputs = one_of({16, 32, 48, 64, 80, 96, 112, 128});
    c.last_block = upto(c.outputs / CHANNEL_BLOCK);
    c.first_block = upto(c.last_block) - 1;
    if (random() % 2) c.first_block = 0, c.last_block = c.outputs / CHANNEL_BLOCK;
    c.in_gap = one_of({0, 0, 1, 2, 5});
    c.out_gap = one_of({0, 1, 2, 6});
    c.residual = random() % 2;
    c.in_place = random() % 2;
    return c;
}

// Calls visit(at, o, sum) for every entry of the output: where it lies, its channel, and what `start` of the
// channel and all products add up to. Weights lie as [kernel row][entry of the run][output].
template <class Entry, class Weight, class Start, class Visit>
void each_sum(const Case& c, const std::vector<Entry>& in, const std::vector<Weight>& weight,
              const std::vector<Start>& start, const Visit& visit) {
    for (int64_t y = 0; y < c.rows; ++y)
        for (int64_t x = 0; x < c.pixels; ++x)
            for (int64_t o = c.first_block * CHANNEL_BLOCK; o < c.last_block * CHANNEL_BLOCK; ++o) {
                auto sum = static_cast<decltype(Entry{} * Weight{})>(start[o]);
                for (int64_t k = 0; k < c.kernel; ++k)
                    for (int64_t j = 0; j < c.run(); ++j)
                        sum += in[(y * c.stride + k) * c.in_row() + x * c.stride * c.inputs + j] *
                               weight[(k * c.run() + j) * c.outputs + o];
                visit(y * c.out_row() + x * c.outputs + o, o, sum);
            }
}

// Packs weights for the blocks of a set of kernels, of which one takes `weight_size` bytes; returns those
// blocks that the case is about.
template <class AnyKernels, class Weight>
std::vector<Block> pack(const Case& c, const AnyKernels& kernels, int64_t weight_size,
                        const std::vector<Weight>& weight, std::vector<std::byte>& packed) {
    std::vector<Block> blocks;
    for (int64_t first = 0; first < c.outputs;) {
        const int64_t width = std::min(kernels.wide_block, c.outputs - first);
        blocks.push_back({first, width, packed.size()});
        for (int64_t k = 0; k < c.kernel; ++k) {
            std::vector<Weight> rows;
            for (int64_t j = 0; j < c.run(); ++j)
                for (int64_t o = first; o < first + width; ++o)
                    rows.push_back(weight[(k * c.run() + j) * c.outputs + o]);
            const size_t before = packed.size();
            packed.resize(before + rows.size() * weight_size);
            kernels.pack_run(rows.data(), c.run(), width, packed.data() + before);
        }
        first += width;
    }
    std::erase_if(blocks, [&](const Block& block) {
        return block.first < c.first_block * CHANNEL_BLOCK ||
               block.first + block.width > c.last_block * CHANNEL_BLOCK;
    });
    return blocks;
}

// What kernels are told of a case; where its maps lie is left out.
inline ConvRows rows_of(const Case& c, const std::vector<std::byte>& packed, const std::vector<Block>& blocks,
                        PrefetchQueue& prefetch) {
    ConvRows rows{};
    rows.weight = packed.data();
    rows.blocks = blocks.data();
    rows.num_blocks = static_cast<int64_t>(blocks.size());
    rows.rows = c.rows;
    rows.pixels = c.pixels;
    rows.kernel_rows = c.kernel;
    rows.run = c.run();
    rows.row_step = c.in_row();
    rows.in_row_step = c.stride * c.in_row();
    rows.out_row_step = c.out_row();
    rows.pixel_step = c.stride * c.inputs;
    rows.out_step = c.outputs;
    rows.prefetch = &prefetch;
    return rows;
}

// Calls agrees(case, random) for as many cases as the command line asks for, 300 where it does not. Returns
// how many do not, and names them.
template <class Agrees>
int count_wrong(int count, char** arguments, const std::string& name, const Agrees& agrees) {
    const int wanted = count > 1 ? std::atoi(arguments[1]) : 300;
    int wrong = 0;
    std::mt19937 random(1);
    for (int done = 0; done < wanted;) {
        const Case c = any_case(random);
        if (c.work() > 3'000'000) continue;
        ++done;
        if (agrees(c, random)) continue;
        ++wrong;
        std::printf("%s: %ld x %ld pixels, kernel %ld, stride %ld, %ld to %ld channels, gaps %ld %ld\n",
                    name.c_str(), long(c.rows), long(c.pixels), long(c.kernel), long(c.stride),
                    long(c.inputs), long(c.outputs), long(c.in_gap), long(c.out_gap));
    }
    std::printf("%s: %d convolutions, %d differ\n", name.c_str(), wanted, wrong);
    return wrong;
}

}  // namespace sidestep
