#include "memory/packing.h"

#include <algorithm>

#include "memory/layout.h"
#include "memory/requantization.h"
#include "memory/uses.h"

namespace sidestep {

namespace {

// Channels in times channels out up to which Winograd's algorithm pays: its weights are 16/9 of the plain
// ones and come from memory. Chosen by benchmarks/bench_engine.py --resnet50.
constexpr int64_t WINOGRAD_MOST = 1 << 16;

std::vector<float> padded(const std::vector<float>& values, size_t size) {
    std::vector<float> out(std::max(size, values.size()), 0.0f);
    std::copy(values.begin(), values.end(), out.begin());
    return out;
}

size_t rounded(size_t count) {
    return (count + 15) / 16 * 16;
}

// Zeros where there is none.
std::vector<float> padded_bias(int64_t bias, const Program& program, size_t size) {
    return padded(bias == NONE ? std::vector<float>{} : program.tensors[bias].data, size);
}

std::vector<Block> blocks_of(int64_t channels, int64_t widest) {
    std::vector<Block> blocks;
    for (int64_t first = 0; first < channels;) {
        int64_t width = widest;
        while (first + width > channels) width -= CHANNEL_BLOCK;
        blocks.push_back({first, width, 0});
        first += width;
    }
    return blocks;
}

// The weights of a convolution.
template <class Number>
const Number* numbers_of(const Tensor& tensor) {
    if constexpr (std::is_same_v<Number, float>)
        return tensor.data.data();
    else
        return reinterpret_cast<const Number*>(tensor.bytes.data());
}

// Writes the weights that one kernel row multiplies with the run that it reads: (run, width) numbers. Groups
// are written out as a dense convolution with zeros.
template <class Number>
void run_of(const ops::Conv& conv, const Tensor& weight, int64_t row, const Block& block,
            int64_t padded_inputs, std::vector<Number>& out) {
    const Number* numbers = numbers_of<Number>(weight);
    const int64_t outputs = weight.shape[0], group_inputs = weight.shape[1], kernel = weight.shape[2];
    const int64_t group_outputs = outputs / conv.groups;
    std::fill(out.begin(), out.end(), Number{});
    for (int64_t o = block.first; o < std::min(block.first + block.width, outputs); ++o)
        for (int64_t i = 0; i < group_inputs; ++i)
            for (int64_t tap = 0; tap < kernel; ++tap) {
                const int64_t input = o / group_outputs * group_inputs + i;
                const int64_t from = ((o * group_inputs + i) * kernel + row) * kernel + tap;
                out[(tap * padded_inputs + input) * block.width + (o - block.first)] = numbers[from];
            }
}

// Whether every channel is convolved by itself. Sums of products of bytes are floats there, which hold those
// of this many taps.
bool is_depthwise(const ops::Conv& conv, const Program& program, bool compact) {
    constexpr int64_t MOST_TAPS = (1 << 24) / (255 * 128);
    const auto& shape = program.tensors[conv.weight].shape;
    const bool is_exact = conv.weight_scale == NONE || shape[2] * shape[3] <= MOST_TAPS;
    return shape[1] == 1 && shape[0] == conv.groups && !compact && is_exact;
}

template <class Number>
Packed pack_depthwise(const ops::Conv& conv, const Program& program) {
    const Tensor& weight = program.tensors[conv.weight];
    const int64_t channels = padded_channels(weight.shape[0], false),
                  taps = weight.shape[2] * weight.shape[3];
    Packed packed;
    packed.factors.resize(channels * taps);
    for (int64_t c = 0; c < weight.shape[0]; ++c)
        for (int64_t tap = 0; tap < taps; ++tap)
            packed.factors[(c / CHANNEL_BLOCK * taps + tap) * CHANNEL_BLOCK + c % CHANNEL_BLOCK] =
                static_cast<float>(numbers_of<Number>(weight)[c * taps + tap]);
    return packed;
}

bool by_winograd(const ops::Conv& conv, const Program& program, const Kernels& kernels, bool compact) {
    if (!kernels.winograd || compact) return false;
    const auto& shape = program.tensors[conv.weight].shape;
    const bool plain = shape[2] == 3 && conv.stride == 1 && conv.halo(3) == 1 && conv.groups == 1;
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

Packed pack_winograd(const ops::Conv& conv, const Program& program, const Kernels& kernels,
                     MemoryPool& pool) {
    const Tensor& weight = program.tensors[conv.weight];
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
    packed.winograd = true;
    packed.scratch = kernels.winograd_bytes(inputs, outputs);
    packed.blocks = blocks_of(outputs, kernels.wide_block);
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
    packed.bias = padded_bias(conv.bias, program, outputs);
    return packed;
}

// Weights of `Number` in the order in which a convolution as sums over taps reads them. `weight_size` is the
// size of one where it is packed.
template <class Number, class KernelsOfNumber>
Packed pack_taps(const ops::Conv& conv, const Program& program, const KernelsOfNumber& kernels,
                 int64_t weight_size, MemoryPool& pool, bool compact) {
    const Tensor& weight = program.tensors[conv.weight];
    const int64_t kernel = weight.shape[2];
    const int64_t inputs = padded_channels(weight.shape[1] * conv.groups, compact);
    const int64_t outputs = padded_channels(weight.shape[0], false);
    Packed packed;
    packed.run = kernel * inputs;
    packed.blocks = blocks_of(outputs, kernels.wide_block);
    packed.weight = pool.take(kernel * packed.run * outputs * weight_size);
    size_t offset = 0;
    for (Block& block : packed.blocks) {
        block.offset = offset;
        std::vector<Number> rows(packed.run * block.width);
        for (int64_t row = 0; row < kernel; ++row) {
            run_of(conv, weight, row, block, inputs, rows);
            kernels.pack_run(rows.data(), packed.run, block.width, packed.weight.data() + offset);
            offset += rows.size() * weight_size;
        }
    }
    return packed;
}

Packed pack_conv(const ops::Conv& conv, const Program& program, const Kernels& kernels, MemoryPool& pool,
                 bool compact) {
    const int64_t outputs = padded_channels(program.tensors[conv.weight].shape[0], false);
    if (by_winograd(conv, program, kernels, compact)) return pack_winograd(conv, program, kernels, pool);
    Packed packed = is_depthwise(conv, program, compact)
                        ? pack_depthwise<float>(conv, program)
                        : pack_taps<float>(conv, program, kernels, kernels.entry_size, pool, compact);
    packed.bias = padded_bias(conv.bias, program, outputs);
    return packed;
}

Packed pack_conv_of_bytes(const ops::Conv& conv, const Program& program, const ByteKernels& kernels,
                          const Coding& out, MemoryPool& pool, bool compact) {
    const int64_t outputs = padded_channels(program.tensors[conv.weight].shape[0], false);
    Packed packed = is_depthwise(conv, program, compact)
                        ? pack_depthwise<int8_t>(conv, program)
                        : pack_taps<int8_t>(conv, program, kernels, kernels.weight_size, pool, compact);
    packed.of_bytes = true;
    requantize(conv, program, out, outputs, packed);
    if (!packed.run) packed.start_sums.assign(packed.start.begin(), packed.start.end());
    return packed;
}

Packed pack_weights(const ops::Linear& linear, const Program& program, const Kernels& kernels,
                    MemoryPool& pool) {
    const Tensor& weight = program.tensors[linear.weight];
    const int64_t outputs = weight.shape[0], inputs = weight.shape[1];
    Packed packed;
    packed.weight = pool.take(kernels.linear_bytes(inputs, outputs));
    packed.scratch = kernels.linear_scratch(inputs);
    kernels.pack_linear(weight.data.data(), inputs, outputs, packed.weight.data());
    packed.bias = padded_bias(linear.bias, program, rounded(outputs));
    return packed;
}

// Other operations read their numbers one by one.
template <class Op>
Packed pack_weights(const Op& op, const Program& program) {
    Packed packed;
    if constexpr (requires { op.weight; }) {
        const auto& weight = program.tensors[op.weight].data;
        packed.factors = padded(weight, rounded(weight.size()));
        if constexpr (requires { op.bias; })
            packed.bias = padded_bias(op.bias, program, rounded(weight.size()));
    }
    return packed;
}

// What one operation needs that makes what is held as `out`.
template <class Op>
Packed pack_op(const Op& op, const Program& program, const KernelSet& kernels, const Coding& out,
               MemoryPool& pool, const std::vector<bool>& compact) {
    if constexpr (std::is_same_v<Op, ops::Conv>) {
        if (out.is_bytes()) return pack_conv_of_bytes(op, program, kernels.bytes, out, pool, compact[op.in]);
        return pack_conv(op, program, kernels.real, pool, compact[op.in]);
    } else if constexpr (std::is_same_v<Op, ops::Linear>) {
        if (op.in_scale != 0) return pack_bytes(op, program, kernels.bytes, pool);
        return pack_weights(op, program, kernels.real, pool);
    } else {
        if constexpr (requires { pack_bytes(op, program, out); })
            if (out.is_bytes()) return pack_bytes(op, program, out);
        return pack_weights(op, program);
    }
}

}  // namespace

size_t scratch_bytes(const std::vector<Packed>& all) {
    size_t most = 0;
    for (const Packed& packed : all) most = std::max(most, packed.scratch);
    return most;
}

size_t attention_bytes(const Program& program, const std::vector<Shape>& shapes, const Kernels& kernels) {
    size_t most = 0;
    each_node(program, [&](const Node& node) {
        const auto* attention = std::get_if<ops::Attention>(&node.op);
        if (!attention) return;
        const auto [c, h, w] = shapes[node.out];
        most = std::max(most, kernels.attention_bytes(h * w, c / attention->heads));
    });
    return most;
}

std::vector<Packed> pack(const Program& program, const KernelSet& kernels, MemoryPool& pool) {
    std::vector<Packed> all(program.num_nodes);
    const std::vector<bool> compact = compact_values(program);
    each_node(program, [&](const Node& node) {
        with_name(node.op, node.out, [&] {
            all[node.index] = std::visit(
                [&](const auto& op) {
                    return pack_op(op, program, kernels, program.codings[node.out], pool, compact);
                },
                node.op);
        });
    });
    return all;
}

}  // namespace sidestep
