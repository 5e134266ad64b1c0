// The convolutions of bytes of every set of kernels that this processor has, against a literal sum of whole
// numbers.
#include <cmath>

#include "conv_cases.h"
#include "kernels/bytes.h"
#include "kernels/processor.h"

using namespace sidestep;

namespace {

using Bytes = std::vector<uint8_t>;

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

Numbers numbers_of(const Case& c, std::mt19937& random) {
    Numbers all;
    std::uniform_real_distribution<float> spread(0.5f, 1.5f), shift(0, 255);
    const float scale = 60 / (150 * 74 * std::sqrt(static_cast<float>(c.kernel * c.run())));
    const bool plain = random() % 2;
    for (int64_t o = 0; o < c.outputs; ++o) {
        all.start.push_back(plain ? 0 : static_cast<int32_t>(random() % 4001) - 2000);
        all.multiplier.push_back(spread(random) * scale);
        all.offset.push_back(shift(random));
    }
    all.table = random_bytes(256, random);
    const float least = static_cast<float>(random() % 2 * 40), most = random() % 2 ? 255.0f : 200.0f;
    const bool looks_up = random() % 4 == 0;
    all.requantize = {all.start.data(),
                      all.multiplier.data(),
                      all.offset.data(),
                      0.37f,
                      least,
                      most,
                      looks_up ? all.table.data() : nullptr,
                      plain};
    return all;
}

Bytes literal(const Case& c, const Bytes& in, const std::vector<int8_t>& weight, const Numbers& numbers,
              const Bytes& residual, Bytes out) {
    const Requantize& r = numbers.requantize;
    each_sum(c, in, weight, numbers.start, [&](int64_t at, int64_t o, int32_t sum) {
        float v = std::fma(static_cast<float>(sum), r.multiplier[o], r.offset[o]);
        if (c.residual) v = std::fma(static_cast<float>(residual[at]), r.residual_multiplier, v);
        const auto byte = static_cast<uint8_t>(std::nearbyint(std::clamp(v, r.least, r.most)));
        out[at] = r.table ? r.table[byte] : byte;
    });
    return out;
}

bool agrees(const Case& any, const ByteKernels& kernels, std::mt19937& random) {
    const Case c = any.in_blocks_of(kernels.wide_block);
    const Bytes in = random_bytes(c.in_size(), random), other = random_bytes(c.out_size(), random);
    Bytes out = random_bytes(c.out_size(), random);
    const Bytes noise = random_bytes(c.weights(), random);
    const std::vector<int8_t> weight(noise.begin(), noise.end());
    const Numbers numbers = numbers_of(c, random);
    std::vector<std::byte> packed;
    const std::vector<Block> blocks = pack(c, kernels, kernels.weight_size, weight, packed);
    const Bytes& residual = c.in_place ? out : other;
    const Bytes wanted = literal(c, in, weight, numbers, residual, out);
    PrefetchQueue prefetch;
    ConvRows rows = rows_of(c, packed, blocks, prefetch);
    rows.in = in.data();
    rows.residual = c.residual ? residual.data() : nullptr;
    rows.out = out.data();
    rows.requantize = &numbers.requantize;
    kernels.conv_rows(rows);
    return out == wanted;
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
    int wrong = 0;
    for (const ByteKernels* kernels : available())
        wrong +=
            count_wrong(count, arguments, std::string(kernels->name) + ", bytes",
                        [&](const Case& c, std::mt19937& random) { return agrees(c, *kernels, random); });
    return wrong != 0;
}
