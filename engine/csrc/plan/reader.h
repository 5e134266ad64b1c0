// Reads programs out of the JSON of plans.
#pragma once

#include "plan/program.h"

namespace sidestep {

// The newest version of plans that is read, beside all older ones.
constexpr int64_t NEWEST_VERSION = 5;

// What a plan says of the images.
struct ImageInput {
    int64_t channels;
    std::vector<float> mean, std;
};

// Returns a program that has been checked. Throws PlanError where an operation is unknown, or a field is
// missing, wrong, or of a later version than the plan.
Program read_program(int64_t version, const Json& steps, const Json& output, ImageInput input,
                     std::map<std::string, Tensor> tensors);

}  // namespace sidestep
