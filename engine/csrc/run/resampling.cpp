#include "run/resampling.h"

#include <algorithm>
#include <cmath>

namespace sidestep {

namespace {

double triangle(double x) {
    return std::max(1 - std::abs(x), 0.0);
}

// Keys' kernel with a = -1/2.
double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

}  // namespace

Resampling::Resampling(ops::Interpolation interpolation, int64_t from, int64_t to) {
    const bool is_cubic = interpolation == ops::Interpolation::bicubic;
    const double scale = static_cast<double>(from) / static_cast<double>(to), wide = std::max(scale, 1.0);
    const double support = (is_cubic ? 2 : 1) * wide;
    taps = std::min(from, 2 * static_cast<int64_t>(std::ceil(support)) + 1);
    first.reserve(to);
    weight.assign(to * taps, 0.0f);
    std::vector<double> exact(taps);
    for (int64_t i = 0; i < to; ++i) {
        const double centre = scale * (static_cast<double>(i) + 0.5);
        const auto begin = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
        const auto end = std::min(static_cast<int64_t>(centre + support + 0.5), from);
        double sum = 0;
        for (int64_t j = begin; j < end; ++j) {
            const double x = (static_cast<double>(j) - centre + 0.5) / wide;
            sum += exact[j - begin] = is_cubic ? cubic(x) : triangle(x);
        }
        for (int64_t j = begin; j < end; ++j)
            weight[i * taps + j - begin] = static_cast<float>(exact[j - begin] / sum);
        first.push_back(begin);
    }
}

}  // namespace sidestep
