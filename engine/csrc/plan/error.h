#pragma once

#include <stdexcept>

namespace sidestep {

// A plan or a setting that cannot be run, said in one sentence.
struct PlanError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

}  // namespace sidestep
