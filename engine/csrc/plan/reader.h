// Reads programs out of the JSON of plans.
#pragma once

#include "plan/program.h"

namespace sidestep {

// What a plan says of the images.
struct ImageInput {
    int64_t channels;
    std::vector<float> mean, std;
};

// Returns a program that has been checked. Throws PlanError where an operation is unknown, or a field is
// missing or wrong.
Program read_program(const Json& steps, const Json& output, ImageInput input,
                     std::map<std::string, Tensor> tensors);

}  // namespace sidestep
