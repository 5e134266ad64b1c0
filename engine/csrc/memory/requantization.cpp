#include "memory/requantization.h"

#include <algorithm>
#include <cmath>

#include "memory/layout.h"

namespace sidestep {

namespace {

constexpr int BYTES = 256;
constexpr float LARGEST_BYTE = 255;
// With these no sum times a multiplier is infinite.
constexpr double MOST_MULTIPLIER = 1e6, MOST_OFFSET = 1e12;

uint8_t code(float value, float least, float most) {
    return static_cast<uint8_t>(std::nearbyint(std::min(std::max(value, least), most)));
}

float checked(double number, double most, const char* what) {
    if (std::abs(number) <= most) return static_cast<float>(number);
    throw PlanError(std::string("has scales that do not fit each other: ") + what + " of " +
                    std::to_string(number));
}

float multiplier_of(double from, double to) {
    return checked(from / to, MOST_MULTIPLIER, "a multiplier");
}

float offset_of(double offset) {
    return checked(offset, MOST_OFFSET, "an offset");
}

// From where to where bytes go that an operation makes, with its ReLU or ReLU6.
template <class Op>
std::pair<float, float> range_of(const Op& op, const Coding& out) {
    const auto zero = static_cast<float>(out.zero);
    if (op.activation == ops::Act::relu6) {
        const double six = std::nearbyint(6.0 / out.scale) + static_cast<double>(out.zero);
        return {zero, static_cast<float>(std::min<double>(six, LARGEST_BYTE))};
    }
    return {op.relu ? zero : 0.0f, LARGEST_BYTE};
}

const int8_t* weights_of(const Tensor& tensor) {
    return reinterpret_cast<const int8_t*>(tensor.bytes.data());
}

// What sums begin with: minus the zero point of the input times the weights of every output.
std::vector<int32_t> starts(const Tensor& weight, int64_t zero, size_t padded) {
    std::vector<int32_t> all(padded, 0);
    const int64_t outputs = weight.shape[0], each = static_cast<int64_t>(weight.bytes.size()) / outputs;
    for (int64_t o = 0; o < outputs; ++o) {
        int64_t sum = 0;
        for (int64_t i = 0; i < each; ++i) sum += weights_of(weight)[o * each + i];
        all[o] = static_cast<int32_t>(-zero * sum);
    }
    return all;
}

// Whether sums are integers of 32 bits when they are scaled, whatever the bytes.
bool stay_integers(const Tensor& weight, const Packed& packed, float residual_multiplier) {
    constexpr double MOST = 1 << 30;
    const int64_t outputs = weight.shape[0], each = static_cast<int64_t>(weight.bytes.size()) / outputs;
    for (int64_t o = 0; o < outputs; ++o) {
        int64_t sum = 0;
        for (int64_t i = 0; i < each; ++i) sum += std::abs(int{weights_of(weight)[o * each + i]});
        const double scaled = static_cast<double>(LARGEST_BYTE) * static_cast<double>(sum) *
                              static_cast<double>(packed.multiplier[o]);
        if (scaled + LARGEST_BYTE * residual_multiplier + std::abs(packed.bias[o]) > MOST) return false;
    }
    return true;
}

template <class Of>
std::vector<uint8_t> table_of(const Of& of) {
    std::vector<uint8_t> table(BYTES);
    for (int byte = 0; byte < BYTES; ++byte) table[byte] = of(static_cast<uint8_t>(byte));
    return table;
}

}  // namespace

Recoding::Recoding(const Coding& in, const Coding& out)
    : multiplier(multiplier_of(in.scale, out.scale)),
      offset(offset_of(static_cast<double>(out.zero) - static_cast<double>(in.zero) * multiplier)) {}

uint8_t Recoding::of(uint8_t byte) const {
    return code(std::fma(static_cast<float>(byte), multiplier, offset), 0, LARGEST_BYTE);
}

void requantize(const ops::Conv& conv, const Program& program, const Coding& out, int64_t channels,
                Packed& packed) {
    const Coding& in = program.codings[conv.in];
    const Coding sums = conv.sums_coding();
    const auto& scales = program.tensors[conv.weight_scale].data;
    const float* bias = conv.bias == NONE ? nullptr : program.tensors[conv.bias].data.data();
    packed.start = starts(program.tensors[conv.weight], in.zero, channels);
    packed.multiplier.assign(channels, 0.0f);
    packed.bias.assign(channels, static_cast<float>(out.zero));
    double rest = static_cast<double>(sums.zero);
    float residual_multiplier = 0;
    if (conv.residual != NONE) {
        const Coding& residual = program.codings[conv.residual];
        residual_multiplier = multiplier_of(residual.scale, sums.scale);
        rest -= static_cast<double>(residual.zero) * residual_multiplier;
    }
    for (size_t c = 0; c < scales.size(); ++c) {
        packed.multiplier[c] = multiplier_of(static_cast<double>(in.scale) * scales[c], sums.scale);
        packed.bias[c] = offset_of((bias ? static_cast<double>(bias[c]) / sums.scale : 0.0) + rest);
    }
    if (conv.table != NONE) packed.table = program.tensors[conv.table].bytes;
    const auto [least, most] = conv.table == NONE ? range_of(conv, out) : std::pair(0.0f, LARGEST_BYTE);
    packed.requantize = {
        packed.start.data(),
        packed.multiplier.data(),
        packed.bias.data(),
        residual_multiplier,
        least,
        most,
        conv.table == NONE ? nullptr : packed.table.data(),
        in.zero == 0 && stay_integers(program.tensors[conv.weight], packed, residual_multiplier)};
}

Packed pack_bytes(const ops::Affine& affine, const Program& program, const Coding& out) {
    const Coding& in = program.codings[affine.in];
    const auto &weight = program.tensors[affine.weight].data, &bias = program.tensors[affine.bias].data;
    Packed packed;
    packed.of_bytes = true;
    packed.multiplier.assign(padded_channels(weight.size(), false), 0.0f);
    packed.bias.assign(packed.multiplier.size(), static_cast<float>(out.zero));
    for (size_t c = 0; c < weight.size(); ++c) {
        const float multiplier = multiplier_of(static_cast<double>(in.scale) * weight[c], out.scale);
        packed.multiplier[c] = multiplier;
        packed.bias[c] = offset_of(static_cast<double>(bias[c]) / out.scale + static_cast<double>(out.zero) -
                                   static_cast<double>(in.zero) * multiplier);
    }
    std::tie(packed.requantize.least, packed.requantize.most) = range_of(affine, out);
    return packed;
}

Packed pack_bytes(const ops::Add& add, const Program& program, const Coding& out) {
    const Coding &a = program.codings[add.a], &b = program.codings[add.b];
    Packed packed;
    packed.of_bytes = true;
    const float first = multiplier_of(a.scale, out.scale), second = multiplier_of(b.scale, out.scale);
    const float offset = offset_of(static_cast<double>(out.zero) - static_cast<double>(a.zero) * first -
                                   static_cast<double>(b.zero) * second);
    const auto [least, most] = range_of(add, out);
    packed.added = {first, second, offset, least, most};
    return packed;
}

Packed pack_bytes(const ops::Relu&, const Program&, const Coding& out) {
    Packed packed;
    packed.of_bytes = true;
    const auto zero = static_cast<uint8_t>(out.zero);
    packed.table = table_of([&](uint8_t byte) { return std::max(byte, zero); });
    return packed;
}

Packed pack_bytes(const ops::Activate& activate, const Program& program, const Coding&) {
    Packed packed;
    packed.of_bytes = true;
    packed.table = program.tensors[activate.table].bytes;
    return packed;
}

Packed pack_bytes(const ops::Quantize& quantize, const Program& program, const Coding& out) {
    Packed packed;
    packed.of_bytes = true;
    if (const Coding& in = program.codings[quantize.in]; in.is_bytes()) {
        const Recoding recoding(in, out);
        packed.table = table_of([&](uint8_t byte) { return recoding.of(byte); });
    }
    return packed;
}

Packed pack_bytes(const ops::Linear& linear, const Program& program, const ByteKernels& kernels,
                  MemoryPool& pool) {
    const Tensor& weight = program.tensors[linear.weight];
    const int64_t outputs = weight.shape[0], inputs = weight.shape[1];
    const auto& scales = program.tensors[linear.weight_scale].data;
    Packed packed;
    packed.of_bytes = true;
    packed.weight = pool.take(kernels.linear_bytes(inputs, outputs));
    packed.scratch = kernels.linear_scratch(inputs);
    kernels.pack_linear(weights_of(weight), inputs, outputs, packed.weight.data());
    const int64_t padded = padded_channels(outputs, false);
    packed.start = starts(weight, linear.in_zero, padded);
    packed.multiplier.assign(padded, 0.0f);
    packed.bias.assign(padded, 0.0f);
    for (int64_t o = 0; o < outputs; ++o) {
        packed.multiplier[o] = multiplier_of(static_cast<double>(linear.in_scale) * scales[o], 1);
        if (linear.bias != NONE) packed.bias[o] = program.tensors[linear.bias].data[o];
    }
    return packed;
}

}  // namespace sidestep
