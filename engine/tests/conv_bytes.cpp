// The convolutions of bytes of every set of kernels that this processor has, against a literal sum of whole
// numbers, without an engine around them: maps have not one byte more than a convolution may read or write
// (build it with the address sanitizer), and what lies between rows and beside blocks of channels must stay
// as it was.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/bytes.h"
#include "kernels/processor.h"

using namespace sidestep;

namespace {

using Bytes = std::vector<uint8_t>;

struct Case {
    int64_t rows, pixels, kernel, stride, inputs, outputs;  // channels, padded
    int64_t first_block, last_block;                        // of CHANNEL_BLOCK channels
    int64_t in_gap, out_gap;                                // pixels between rows
    bool residual, in_place, table;

    int64_t run() const { return kernel * inputs; }
    int64_t in_row() const { return ((pixels - 1) * stride + kernel + in_gap) * inputs; }
    int64_t out_row() const { return (pixels + out_gap) * outputs; }
    int64_t in_size() const {
        return ((rows - 1) * stride + kernel - 1) * in_row() + ((pixels - 1) * stride + kernel) * inputs;
    }
    int64_t out_size() const { return (rows - 1) * out_row() + pixels * outputs; }
    int64_t work() const { return rows * pixels * outputs * kernel * run(); }
};

Bytes random_bytes(int64_t size, std::mt19937& random) {
    Bytes bytes(size);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

// What requantization is made of.
struct Numbers {
    std::vector<int32_t> start;
    std::vector<float> multiplier, offset;
    Bytes table;
    Requantize requantize{};
};

// Weights [kernel row][entry of the run][output].
Bytes literal(const Case& c, const Bytes& in, const std::vector<int8_t>& weight, const Requantize& r,
              const Bytes& residual, Bytes out) {
    for (int64_t y = 0; y < c.rows; ++y)
        for (int64_t x = 0; x < c.pixels; ++x)
            for (int64_t o = c.first_block * CHANNEL_BLOCK; o < c.last_block * CHANNEL_BLOCK; ++o) {
                int32_t sum = r.start[o];
                for (int64_t k = 0; k < c.kernel; ++k)
                    for (int64_t j = 0; j < c.run(); ++j)
                        sum += in[(y * c.stride + k) * c.in_row() + x * c.stride * c.inputs + j] *
                               weight[(k * c.run() + j) * c.outputs + o];
                const int64_t at = y * c.out_row() + x * c.outputs + o;
                float v = std::fma(static_cast<float>(sum), r.multiplier[o], r.offset[o]);
                if (c.residual) v = std::fma(static_cast<float>(residual[at]), r.residual_multiplier, v);
                const auto byte = static_cast<uint8_t>(std::nearbyint(std::clamp(v, r.least, r.most)));
                out[at] = r.table ? r.table[byte] : byte;
            }
    return out;
}

// Packs weights for the blocks of a set of kernels; returns those that the case is about.
std::vector<Block> pack(const Case& c, const ByteKernels& kernels, const std::vector<int8_t>& weight,
                        std::vector<std::byte>& packed) {
    std::vector<Block> blocks;
    for (int64_t first = 0; first < c.outputs;) {
        const int64_t width = std::min(kernels.wide_block, c.outputs - first);
        blocks.push_back({first, width, packed.size()});
        for (int64_t k = 0; k < c.kernel; ++k) {
            std::vector<int8_t> rows;
            for (int64_t j = 0; j < c.run(); ++j)
                for (int64_t o = first; o < first + width; ++o)
                    rows.push_back(weight[(k * c.run() + j) * c.outputs + o]);
            const size_t before = packed.size();
            packed.resize(before + rows.size() * kernels.weight_size);
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

Numbers numbers_of(const Case& c, std::mt19937& random) {
    Numbers all;
    std::uniform_real_distribution<float> spread(0.5f, 1.5f), shift(0, 255);
    const float scale = 60 / (150 * 74 * std::sqrt(static_cast<float>(c.kernel * c.run())));
    for (int64_t o = 0; o < c.outputs; ++o) {
        all.start.push_back(static_cast<int32_t>(random() % 4001) - 2000);
        all.multiplier.push_back(spread(random) * scale);
        all.offset.push_back(shift(random));
    }
    all.table = random_bytes(256, random);
    const float least = static_cast<float>(random() % 2 * 40), most = random() % 2 ? 255.0f : 200.0f;
    all.requantize = {all.start.data(),
                      all.multiplier.data(),
                      all.offset.data(),
                      0.37f,
                      least,
                      most,
                      c.table ? all.table.data() : nullptr};
    return all;
}

bool agrees(Case c, const ByteKernels& kernels, std::mt19937& random) {
    const int64_t wide = kernels.wide_block / CHANNEL_BLOCK;
    c.first_block = c.first_block / wide * wide;
    if (c.last_block % wide) c.last_block = c.outputs / CHANNEL_BLOCK;
    const Bytes in = random_bytes(c.in_size(), random), other = random_bytes(c.out_size(), random);
    Bytes out = random_bytes(c.out_size(), random);
    const Bytes noise = random_bytes(c.kernel * c.run() * c.outputs, random);
    const std::vector<int8_t> weight(noise.begin(), noise.end());
    const Numbers numbers = numbers_of(c, random);
    std::vector<std::byte> packed;
    const std::vector<Block> blocks = pack(c, kernels, weight, packed);
    const Bytes& residual = c.in_place ? out : other;
    const Bytes wanted = literal(c, in, weight, numbers.requantize, residual, out);
    PrefetchQueue prefetch;
    ConvRows rows{};
    rows.in = in.data();
    rows.weight = packed.data();
    rows.blocks = blocks.data();
    rows.num_blocks = static_cast<int64_t>(blocks.size());
    rows.residual = c.residual ? residual.data() : nullptr;
    rows.out = out.data();
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
    rows.requantize = &numbers.requantize;
    kernels.conv_rows(rows);
    if (out == wanted) return true;
    std::printf("%s: %ld x %ld pixels, kernel %ld, stride %ld, %ld to %ld channels, gaps %ld %ld\n",
                kernels.name, long(c.rows), long(c.pixels), long(c.kernel), long(c.stride), long(c.inputs),
                long(c.outputs), long(c.in_gap), long(c.out_gap));
    return false;
}

Case any(std::mt19937& random) {
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
    c.table = random() % 4 == 0;
    return c;
}

std::vector<const ByteKernels*> available() {
    std::vector<const ByteKernels*> all{byte_kernels_base()};
#if defined(__x86_64__)
    if (has_avx2()) all.push_back(byte_kernels_avx2());
    if (has_avxvnni()) all.push_back(byte_kernels_avxvnni());
    if (has_avx512vnni()) all.push_back(byte_kernels_avx512vnni());
#endif
#if defined(SIDESTEP_EMULATE_AMX)
    if (has_avx512vnni()) all.push_back(byte_kernels_amx());
#elif defined(SIDESTEP_AMX)
    if (has_amx() && has_avx512vnni()) all.push_back(byte_kernels_amx());
#endif
    return all;
}

}  // namespace

int main(int count, char** arguments) {
    const int wanted = count > 1 ? std::atoi(arguments[1]) : 300;
    int wrong = 0;
    for (const ByteKernels* kernels : available()) {
        std::mt19937 random(1);
        for (int done = 0; done < wanted;) {
            const Case c = any(random);
            if (c.work() > 3'000'000) continue;
            wrong += !agrees(c, *kernels, random);
            ++done;
        }
        std::printf("%s, bytes: %d convolutions\n", kernels->name, wanted);
    }
    if (wrong) std::printf("%d differ\n", wrong);
    return wrong != 0;
}
