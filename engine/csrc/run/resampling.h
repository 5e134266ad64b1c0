// How a side of a map is resized with antialiasing, as Pillow and PyTorch do it.
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "plan/operations.h"

namespace sidestep {

// The inputs and weights of every output along one axis. The kernel grows with the factor by which the side
// shrinks; weights are normalised over the inputs that there are.
struct Resampling {
    Resampling(ops::Interpolation interpolation, int64_t from, int64_t to);

    Filter filter() const { return {taps, first.data(), weight.data()}; }

    int64_t taps = 0;
    std::vector<int64_t> first;  // of every output
    std::vector<float> weight;   // [output][tap], 0 behind the last one
};

}  // namespace sidestep
