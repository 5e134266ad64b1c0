// The convolutions of every set of kernels that this processor has, against a literal sum, without an engine
// around them: maps have not one entry more than a convolution may read or write (build it with the address
// sanitizer), and what lies between rows and beside blocks of channels must stay as it was.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/processor.h"

using namespace sidestep;

namespace {

using Doubles = std::vector<double>;

struct Case {
    int64_t rows, pixels, kernel, stride, inputs, outputs;  // channels, padded
    int64_t first_block, last_block;                        // of CHANNEL_BLOCK channels
    int64_t in_gap, out_gap;                                // pixels between rows
    bool residual, in_place;
    Activation activation;

    int64_t in_row() const { return ((pixels - 1) * stride + kernel + in_gap) * inputs; }
    int64_t out_row() const { return (pixels + out_gap) * outputs; }
    int64_t in_size() const {
        return ((rows - 1) * stride + kernel - 1) * in_row() + ((pixels - 1) * stride + kernel) * inputs;
    }
    int64_t out_size() const { return (rows - 1) * out_row() + pixels * outputs; }
    int64_t work() const { return rows * pixels * outputs * kernel * kernel * inputs; }
};

// A map as kernels hold it, in as much memory as it needs.
class Map {
  public:
    Map(const Kernels& kernels, int64_t size, double spread, std::mt19937& random)
        : kernels_(kernels), bytes_(size * kernels.entry_size), size_(size) {
        std::normal_distribution<float> normal(0, static_cast<float>(spread));
        std::vector<float> values(size);
        for (float& value : values) value = normal(random);
        kernels.from_floats(values.data(), size, bytes_.data());
    }
    std::byte* at(int64_t entry) { return bytes_.data() + entry * kernels_.entry_size; }
    Doubles read() const {
        std::vector<float> values(size_);
        kernels_.to_floats(bytes_.data(), size_, values.data());
        return {values.begin(), values.end()};
    }

  private:
    const Kernels& kernels_;
    std::vector<std::byte> bytes_;
    int64_t size_;
};

double activated(double x, Activation a) {
    const double part = std::min(std::max(x + 3, 0.0), 6.0) / 6, sigmoid = 1 / (1 + std::exp(-x));
    switch (a.curve) {
        case Curve::none: return x;
        case Curve::relu: return x <= 0 ? x * a.slope : x;
        case Curve::relu6: return std::min(std::max(x, 0.0), 6.0);
        case Curve::silu: return x * sigmoid;
        case Curve::hard_swish: return x * part;
        case Curve::hard_sigmoid: return part;
        case Curve::sigmoid: return sigmoid;
    }
    return x;
}

// Weights [kernel row][entry of the run][output].
Doubles literal(const Case& c, const Doubles& in, const Doubles& weight, const std::vector<float>& bias,
                const Doubles& residual, Doubles out) {
    const int64_t run = c.kernel * c.inputs;
    for (int64_t y = 0; y < c.rows; ++y)
        for (int64_t x = 0; x < c.pixels; ++x)
            for (int64_t o = c.first_block * CHANNEL_BLOCK; o < c.last_block * CHANNEL_BLOCK; ++o) {
                double sum = bias[o];
                for (int64_t k = 0; k < c.kernel; ++k)
                    for (int64_t j = 0; j < run; ++j)
                        sum += in[(y * c.stride + k) * c.in_row() + x * c.stride * c.inputs + j] *
                               weight[(k * run + j) * c.outputs + o];
                const int64_t at = y * c.out_row() + x * c.outputs + o;
                if (c.residual) sum += residual[at];
                out[at] = activated(sum, c.activation);
            }
    return out;
}

// Packs weights for the blocks of a set of kernels.
std::vector<Block> pack(const Case& c, const Kernels& kernels, const Doubles& weight,
                        std::vector<std::byte>& packed) {
    std::vector<Block> blocks;
    const int64_t run = c.kernel * c.inputs;
    for (int64_t first = 0; first < c.outputs;) {
        const int64_t width = std::min(kernels.wide_block, c.outputs - first);
        blocks.push_back({first, width, packed.size()});
        for (int64_t k = 0; k < c.kernel; ++k) {
            std::vector<float> rows;
            for (int64_t j = 0; j < run; ++j)
                for (int64_t o = first; o < first + width; ++o)
                    rows.push_back(static_cast<float>(weight[(k * run + j) * c.outputs + o]));
            packed.resize(packed.size() + rows.size() * kernels.entry_size);
            kernels.pack_run(rows.data(), run, width,
                             packed.data() + packed.size() - rows.size() * kernels.entry_size);
        }
        first += width;
    }
    // Only the blocks that the case is about.
    std::erase_if(blocks, [&](const Block& block) {
        return block.first < c.first_block * CHANNEL_BLOCK ||
               block.first + block.width > c.last_block * CHANNEL_BLOCK;
    });
    return blocks;
}

bool agrees(Case c, const Kernels& kernels, std::mt19937& random) {
    const int64_t run = c.kernel * c.inputs, wide = kernels.wide_block / CHANNEL_BLOCK;
    c.first_block = c.first_block / wide * wide;
    if (c.last_block % wide) c.last_block = c.outputs / CHANNEL_BLOCK;
    Map in(kernels, c.in_size(), 1, random), out(kernels, c.out_size(), 1, random);
    Map other(kernels, c.out_size(), 1, random);
    Map& residual = c.in_place ? out : other;
    Map weights(kernels, c.kernel * run * c.outputs, 1 / std::sqrt(double(c.kernel * run)), random);
    std::vector<float> bias(c.outputs);
    for (float& value : bias) value = static_cast<float>(random() % 1000) / 500 - 1;
    std::vector<std::byte> packed, soon(1 << 20);
    const std::vector<Block> blocks = pack(c, kernels, weights.read(), packed);
    const Doubles wanted = literal(c, in.read(), weights.read(), bias, residual.read(), out.read());
    PrefetchQueue prefetch;
    prefetch.add(soon.data(), soon.size());
    const char* const first_line = prefetch.next();
    kernels.conv_rows({.in = in.at(0),
                       .weight = packed.data(),
                       .blocks = blocks.data(),
                       .num_blocks = static_cast<int64_t>(blocks.size()),
                       .bias = bias.data(),
                       .residual = c.residual ? residual.at(0) : nullptr,
                       .out = out.at(0),
                       .rows = c.rows,
                       .pixels = c.pixels,
                       .kernel_rows = c.kernel,
                       .run = run,
                       .row_step = c.in_row(),
                       .in_row_step = c.stride * c.in_row(),
                       .out_row_step = c.out_row(),
                       .pixel_step = c.stride * c.inputs,
                       .out_step = c.outputs,
                       .activation = c.activation,
                       .prefetch = &prefetch});
    const Doubles got = out.read();
    const double exact = kernels.entry_size == 2 ? 1.0 / 256 : 1e-5;
    bool fine = prefetch.next() != first_line;
    for (size_t i = 0; i < got.size() && fine; ++i)
        fine = std::abs(got[i] - wanted[i]) <= exact * std::abs(wanted[i]) + 2e-5;
    if (!fine)
        std::printf("%s, %s: %ld x %ld pixels, kernel %ld, stride %ld, %ld to %ld channels, gaps %ld %ld\n",
                    kernels.name, kernels.precision, long(c.rows), long(c.pixels), long(c.kernel),
                    long(c.stride), long(c.inputs), long(c.outputs), long(c.in_gap), long(c.out_gap));
    return fine;
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
    c.activation = {static_cast<Curve>(random() % 7), random() % 2 ? 0.0f : 0.25f};
    return c;
}

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> all{kernels_base()};
#if defined(__x86_64__)
    if (has_avx2()) all.push_back(kernels_avx2());
    if (has_avx512()) all.push_back(kernels_avx512());
    if (has_avx512bf16()) all.push_back(kernels_avx512bf16());
#endif
#if defined(SIDESTEP_EMULATE_AMX)
    if (has_avx512bf16()) all.push_back(kernels_amx());
#elif defined(SIDESTEP_AMX)
    if (has_amx()) all.push_back(kernels_amx());
#endif
    return all;
}

}  // namespace

int main(int count, char** arguments) {
    const int wanted = count > 1 ? std::atoi(arguments[1]) : 300;
    int wrong = 0;
    for (const Kernels* kernels : available()) {
        std::mt19937 random(1);
        for (int done = 0; done < wanted;) {
            const Case c = any(random);
            if (c.work() > 3'000'000) continue;
            wrong += !agrees(c, *kernels, random);
            ++done;
        }
        std::printf("%s, %s: %d convolutions\n", kernels->name, kernels->precision, wanted);
    }
    if (wrong) std::printf("%d differ\n", wrong);
    return wrong != 0;
}
