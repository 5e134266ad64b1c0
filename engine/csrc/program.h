// What a plan says, before anything is known about the processor or the size of the images.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sidestep {

// A plan that cannot be run, said in one sentence.
struct PlanError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

enum class Kind : uint8_t {
    // maps
    conv,
    max_pool,
    avg_pool,
    pad,
    affine,
    add,
    scale,
    relu,
    concat,
    resize,
    gap,
    // vectors
    linear,
    vconst,
    vgather,
    vadd,
    vmul,
    vdiv,
    vaffine,
    vmap,
    vclamp_min,
    vsum,
    flatten
};

enum class Function : int64_t { relu, sigmoid, tanh, sqrt, exp };

struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> data;
};

// What `ints` and `floats` hold, in order:
//   conv      stride, padding, groups, relu; slope. The residual is a second input.
//   max_pool  kernel, stride, padding        avg_pool  kernel, stride, ceil
//   pad       stride, before, after          affine, add, linear  relu; slope
//   relu      ; slope                        resize    height, width, align_corners; or the size of a second
//   input vgather   the indices                    vadd      relu; slope, alpha vaffine   ; mul, add vmap
//   function; slope vclamp_min  ; min
struct Op {
    Kind kind;
    std::vector<int64_t> in;
    int64_t out = -1;
    std::vector<int64_t> ints;
    std::vector<float> floats;
    int64_t weight = -1;
    int64_t bias = -1;
    int64_t index = -1;  // among all ops of the plan, set by number_ops
};

struct Option {
    std::vector<Op> ops;
    std::vector<int64_t> results;
};

enum class StepKind : uint8_t { run, choose, leave };
enum class Criterion : int64_t { confidence, margin, entropy };

struct Step {
    StepKind kind = StepKind::run;
    std::vector<Op> ops;           // run
    int64_t value = -1;            // choose: the scores; leave: the logits
    std::vector<Option> options;   // choose
    std::vector<int64_t> defines;  // choose
    Criterion criterion{};         // leave
    float threshold = 0;           // leave
    float temperature = 1;         // leave
};

struct Program {
    int64_t channels = 3;
    std::vector<float> mean, std;
    std::vector<Tensor> tensors;
    std::vector<Step> steps;
    int64_t output = -1;
    int64_t num_values = 1;  // ids are in [0, num_values); 0 is the image
    int64_t num_choices = 0;
    int64_t num_exits = 0;
};

// The shape of a value: a map of (c, h, w), or a vector of c entries where h is 0.
struct Shape {
    int64_t c = 0, h = 0, w = 0;
    bool is_map() const { return h > 0; }
    bool operator==(const Shape&) const = default;
    auto operator<=>(const Shape&) const = default;
    std::string text() const;
};

// Throws PlanError unless every op has the fields of its kind, ids are defined once and before their use, and
// tensors have the shapes that their ops need whatever the size of the images.
void check(const Program& program);

// Returns the shape of every value for images of a size. Throws PlanError where shapes do not fit.
std::vector<Shape> infer_shapes(const Program& program, int64_t height, int64_t width);

// Numbers all ops in order and returns how many there are.
int64_t number_ops(Program& program);

const char* name_of(Kind kind);
Kind kind_of(const std::string& name);

}  // namespace sidestep
