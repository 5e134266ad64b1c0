// The convolutions of every set of kernels that this processor has, against a literal sum.
#include <cmath>

#include "conv_cases.h"
#include "kernels/processor.h"

using namespace sidestep;

namespace {

using Doubles = std::vector<double>;

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
        case Curve::gelu: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
        case Curve::gelu_tanh:
            return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    }
    return x;
}

Activation any_activation(std::mt19937& random) {
    return {static_cast<Curve>(random() % 9), random() % 2 ? 0.0f : 0.25f};
}

bool agrees(const Case& any, const Kernels& kernels, std::mt19937& random) {
    const Case c = any.in_blocks_of(kernels.wide_block);
    const Activation activation = any_activation(random);
    Map in(kernels, c.in_size(), 1, random), out(kernels, c.out_size(), 1, random);
    Map other(kernels, c.out_size(), 1, random);
    Map& residual = c.in_place ? out : other;
    Map weights(kernels, c.weights(), 1 / std::sqrt(double(c.kernel * c.run())), random);
    std::vector<float> bias(c.outputs);
    for (float& value : bias) value = static_cast<float>(random() % 1000) / 500 - 1;
    std::vector<std::byte> packed, soon(1 << 20);
    const Doubles weight = weights.read(), added = residual.read();
    const std::vector<float> exact_weight(weight.begin(), weight.end());
    const std::vector<Block> blocks = pack(c, kernels, kernels.entry_size, exact_weight, packed);
    Doubles wanted = out.read();
    each_sum(c, in.read(), weight, bias, [&](int64_t at, int64_t, double sum) {
        wanted[at] = activated(c.residual ? sum + added[at] : sum, activation);
    });
    PrefetchQueue prefetch;
    prefetch.add(soon.data(), soon.size());
    const char* const first_line = prefetch.next();
    ConvRows rows = rows_of(c, packed, blocks, prefetch);
    rows.in = in.at(0);
    rows.bias = bias.data();
    rows.residual = c.residual ? residual.at(0) : nullptr;
    rows.out = out.at(0);
    rows.activation = activation;
    kernels.conv_rows(rows);
    const Doubles got = out.read();
    const double exact = kernels.entry_size == 2 ? 1.0 / 256 : 1e-5;
    // Where it becomes bfloat16 this curve is right to 5e-5 (kernels/epilogue.inl).
    const double least = kernels.entry_size == 2 && activation.curve == Curve::gelu ? 7e-5 : 2e-5;
    bool fine = prefetch.next() != first_line;
    for (size_t i = 0; i < got.size() && fine; ++i)
        fine = std::abs(got[i] - wanted[i]) <= exact * std::abs(wanted[i]) + least;
    return fine;
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
    int wrong = 0;
    for (const Kernels* kernels : available())
        wrong +=
            count_wrong(count, arguments, std::string(kernels->name) + ", " + kernels->precision,
                        [&](const Case& c, std::mt19937& random) { return agrees(c, *kernels, random); });
    return wrong != 0;
}
