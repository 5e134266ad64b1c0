#include "compile.h"

#include <algorithm>

namespace sidestep {

namespace {

// Channels in times channels out up to which Winograd's algorithm pays: its weights are 16/9 of the plain
// ones and come from memory. Measured on ResNet-50: 256 x 256 pays, 512 x 512 makes no difference.
constexpr int64_t WINOGRAD_MOST = 1 << 16;

std::vector<float> padded(const std::vector<float>& values, size_t size) {
    std::vector<float> out(std::max(size, values.size()), 0.0f);
    std::copy(values.begin(), values.end(), out.begin());
    return out;
}

size_t rounded(size_t count) {
    return (count + 15) / 16 * 16;
}

// Zeros where an op has none.
std::vector<float> bias_of(const Op& op, const Program& program, size_t size) {
    return padded(op.bias < 0 ? std::vector<float>{} : program.tensors[op.bias].data, size);
}

std::vector<Block> blocks_of(int64_t channels, const Kernels& kernels) {
    std::vector<Block> blocks;
    for (int64_t first = 0; first < channels;) {
        int64_t width = kernels.wide_block;
        while (first + width > channels) width -= CHANNEL_BLOCK;
        blocks.push_back({first, width, 0});
        first += width;
    }
    return blocks;
}

// Writes the weights that one kernel row multiplies with the run that it reads: (run, width) floats. Groups
// are written out as a dense convolution with zeros.
void run_of(const Op& op, const Tensor& weight, int64_t row, const Block& block, int64_t padded_inputs,
            std::vector<float>& out) {
    const int64_t outputs = weight.shape[0], group_inputs = weight.shape[1], kernel = weight.shape[2];
    const int64_t group_outputs = outputs / op.ints[2];
    std::fill(out.begin(), out.end(), 0.0f);
    for (int64_t o = block.first; o < std::min(block.first + block.width, outputs); ++o)
        for (int64_t i = 0; i < group_inputs; ++i)
            for (int64_t tap = 0; tap < kernel; ++tap) {
                const int64_t input = o / group_outputs * group_inputs + i;
                const int64_t from = ((o * group_inputs + i) * kernel + row) * kernel + tap;
                out[(tap * padded_inputs + input) * block.width + (o - block.first)] = weight.data[from];
            }
}

bool by_winograd(const Op& op, const Program& program, const Kernels& kernels) {
    if (!kernels.winograd || op.kind != Kind::conv || op.in[0] == 0) return false;
    const auto& shape = program.tensors[op.weight].shape;
    const bool plain = shape[2] == 3 && op.ints[0] == 1 && op.ints[1] == 1 && op.ints[2] == 1;
    return plain && shape[0] >= CHANNEL_BLOCK && shape[1] >= CHANNEL_BLOCK &&
           shape[0] * shape[1] <= WINOGRAD_MOST;
}

// G g G^T of one kernel, in double since it is done once.
void transform_kernel(const float* g, double (&out)[WINOGRAD_POSITIONS]) {
    auto along = [](double a, double b, double c, double (&to)[WINOGRAD_SIZE]) {
        to[0] = a, to[1] = (a + b + c) / 2, to[2] = (a - b + c) / 2, to[3] = c;
    };
    double rows[3][WINOGRAD_SIZE], column[WINOGRAD_SIZE];
    for (int y = 0; y < 3; ++y) along(g[3 * y], g[3 * y + 1], g[3 * y + 2], rows[y]);
    for (int x = 0; x < WINOGRAD_SIZE; ++x) {
        along(rows[0][x], rows[1][x], rows[2][x], column);
        for (int y = 0; y < WINOGRAD_SIZE; ++y) out[y * WINOGRAD_SIZE + x] = column[y];
    }
}

Packed pack_winograd(const Op& op, const Program& program, const Kernels& kernels, Pool& pool) {
    const Tensor& weight = program.tensors[op.weight];
    const int64_t inputs = padded_channels(weight.shape[1], false);
    const int64_t outputs = padded_channels(weight.shape[0], false);
    std::vector<float> transformed(WINOGRAD_POSITIONS * inputs * outputs, 0.0f);  // [position][input][output]
    for (int64_t o = 0; o < weight.shape[0]; ++o)
        for (int64_t i = 0; i < weight.shape[1]; ++i) {
            double kernel[WINOGRAD_POSITIONS];
            transform_kernel(&weight.data[(o * weight.shape[1] + i) * 9], kernel);
            for (int64_t p = 0; p < WINOGRAD_POSITIONS; ++p)
                transformed[(p * inputs + i) * outputs + o] = static_cast<float>(kernel[p]);
        }
    Packed packed;
    packed.scratch = kernels.winograd_bytes(inputs, outputs);
    packed.blocks = blocks_of(outputs, kernels);
    packed.weight = pool.take(transformed.size() * kernels.entry_size);
    std::byte* to = packed.weight.data();
    for (const Block& block : packed.blocks) {
        std::vector<float> rows(inputs * block.width);
        for (int64_t p = 0; p < WINOGRAD_POSITIONS; ++p, to += rows.size() * kernels.entry_size) {
            for (int64_t i = 0; i < inputs; ++i)
                std::copy_n(&transformed[(p * inputs + i) * outputs + block.first], block.width,
                            &rows[i * block.width]);
            kernels.pack_run(rows.data(), inputs, block.width, to);
        }
    }
    packed.bias = bias_of(op, program, outputs);
    return packed;
}

Packed pack_conv(const Op& op, const Program& program, const Kernels& kernels, Pool& pool) {
    if (by_winograd(op, program, kernels)) return pack_winograd(op, program, kernels, pool);
    const Tensor& weight = program.tensors[op.weight];
    const int64_t kernel = weight.shape[2];
    const int64_t inputs =
        padded_channels(weight.shape[1] * op.ints[2], op.in[0] == 0 && image_lies_apart(program));
    const int64_t outputs = padded_channels(weight.shape[0], false);
    Packed packed;
    packed.run = kernel * inputs;
    packed.blocks = blocks_of(outputs, kernels);
    packed.weight = pool.take(kernel * packed.run * outputs * kernels.entry_size);
    size_t offset = 0;
    for (Block& block : packed.blocks) {
        block.offset = offset;
        std::vector<float> rows(packed.run * block.width);
        for (int64_t row = 0; row < kernel; ++row) {
            run_of(op, weight, row, block, inputs, rows);
            kernels.pack_run(rows.data(), packed.run, block.width, packed.weight.data() + offset);
            offset += rows.size() * kernels.entry_size;
        }
    }
    packed.bias = bias_of(op, program, outputs);
    return packed;
}

Packed pack_linear(const Op& op, const Program& program, const Kernels& kernels, Pool& pool) {
    const Tensor& weight = program.tensors[op.weight];
    const int64_t outputs = weight.shape[0], inputs = weight.shape[1];
    Packed packed;
    packed.weight = pool.take(kernels.linear_bytes(inputs, outputs));
    packed.scratch = kernels.linear_scratch(inputs);
    kernels.pack_linear(weight.data.data(), inputs, outputs, packed.weight.data());
    packed.bias = bias_of(op, program, rounded(outputs));
    return packed;
}

Packed pack_op(const Op& op, const Program& program, const Kernels& kernels, Pool& pool) {
    if (op.kind == Kind::conv) return pack_conv(op, program, kernels, pool);
    if (op.kind == Kind::linear) return pack_linear(op, program, kernels, pool);
    Packed packed;
    if (op.weight >= 0) {
        const Tensor& weight = program.tensors[op.weight];
        packed.factors = padded(weight.data, rounded(weight.data.size()));
        if (op.bias >= 0) packed.bias = padded(program.tensors[op.bias].data, rounded(weight.data.size()));
    }
    return packed;
}

}  // namespace

size_t scratch_bytes(const std::vector<Packed>& all) {
    size_t most = 0;
    for (const Packed& packed : all) most = std::max(most, packed.scratch);
    return most;
}

std::vector<Packed> pack(const Program& program, int64_t num_ops, const Kernels& kernels, Pool& pool) {
    std::vector<Packed> all(num_ops);
    auto pack_all = [&](const std::vector<Op>& ops) {
        for (const Op& op : ops) all[op.index] = pack_op(op, program, kernels, pool);
    };
    for (const Step& step : program.steps) {
        pack_all(step.ops);
        for (const Option& option : step.options) pack_all(option.ops);
    }
    return all;
}

}  // namespace sidestep
