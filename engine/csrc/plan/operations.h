// The operations of plans: a struct for each with its fields; plan/table.h names and describes them all.
// docs/plan.md specifies what each computes.
#pragma once

#include "plan/fields.h"

namespace sidestep {

// The shape of a value: a map of (c, h, w), or a vector of c entries where h is 0.
struct Shape {
    int64_t c = 0, h = 0, w = 0;
    bool is_map() const { return h > 0; }
    bool operator==(const Shape&) const = default;
    std::string text() const;
};

// How a map is held: as real numbers where the scale is 0, or as bytes, of which q stands for
// scale (q - zero).
struct Coding {
    float scale = 0;
    int64_t zero = 0;
    bool is_bytes() const { return scale != 0; }
    bool operator==(const Coding&) const = default;
};

// What the shape of an output follows from. Inputs have the form that the table says.
struct Known {
    const std::vector<Shape>& values;
    const std::vector<Tensor>& tensors;

    const Shape& operator[](int64_t value) const { return values[value]; }
    int64_t weight(int64_t tensor, size_t side) const { return tensors[tensor].shape[side]; }
};

namespace ops {

// What may end an operation beside a ReLU, and what `activate` computes.
enum class Act : uint8_t { none, relu6, silu, hard_swish, hard_sigmoid, sigmoid, gelu, gelu_tanh };
inline constexpr Names<Act, 7> ACTS{{{"relu6", Act::relu6},
                                     {"silu", Act::silu},
                                     {"hard_swish", Act::hard_swish},
                                     {"hard_sigmoid", Act::hard_sigmoid},
                                     {"sigmoid", Act::sigmoid},
                                     {"gelu", Act::gelu},
                                     {"gelu_tanh", Act::gelu_tanh}}};

// How maps are resized.
enum class Interpolation : uint8_t { bilinear, bicubic };
inline constexpr Names<Interpolation, 2> INTERPOLATIONS{
    {{"bilinear", Interpolation::bilinear}, {"bicubic", Interpolation::bicubic}}};

// Every operation has `shape`, which returns the shape of its output or throws PlanError with what follows
// "op NAME that makes value N". One whose fields have to fit each other has `check`, which throws the same,
// and one that does less with bytes than with real numbers `check_bytes`.

struct Conv {
    int64_t in, weight, bias, residual;
    int64_t stride, padding, groups;
    bool same;
    bool relu;
    float slope;
    Act activation;
    float scale;
    int64_t zero;
    int64_t weight_scale, table;
    float inner_scale;  // with a table: of what is in front of the activation
    int64_t inner_zero;

    // What sums become, before a table makes the activation of it.
    Coding sums_coding() const {
        return table == NONE ? Coding{scale, zero} : Coding{inner_scale, inner_zero};
    }
    // Rows or columns of zeros in front of `size` of them.
    int64_t before(int64_t size, int64_t kernel) const;
    // The most that any size has in front or behind.
    int64_t halo(int64_t kernel) const { return same ? kernel / 2 : padding; }

    // Whether int8 stands for real weights.
    bool holds_real() const { return weight_scale != NONE && scale == 0; }

    void check(const std::vector<Tensor>& tensors) const;
    void check_bytes() const;
    Shape shape(const Known& known) const;
};

struct MaxPool {
    int64_t in, kernel, stride, padding;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

struct AvgPool {
    int64_t in, kernel, stride;
    bool ceil;

    Shape shape(const Known& known) const;
};

struct Pad {
    int64_t in, stride, before, after;

    Shape shape(const Known& known) const;
};

// The middle of a map.
struct Crop {
    int64_t in, height, width;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

struct Affine {
    int64_t in, weight, bias;
    bool relu;
    float slope;
    Act activation;
    float scale;
    int64_t zero;

    void check(const std::vector<Tensor>& tensors) const;
    void check_bytes() const;
    Shape shape(const Known& known) const;
};

struct Add {
    int64_t a, b;
    bool relu;
    float slope;
    Act activation;
    float scale;
    int64_t zero;

    void check(const std::vector<Tensor>& tensors) const;
    void check_bytes() const;
    Shape shape(const Known& known) const;
};

struct Scale {
    int64_t in, factors;
    float scale;
    int64_t zero;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

struct Relu {
    int64_t in;
    float slope;

    void check_bytes() const;
    Shape shape(const Known& known) const { return known[in]; }
};

struct Activate {
    int64_t in;
    Act function;
    int64_t table;
    float scale;
    int64_t zero;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const { return known[in]; }
};

struct Concat {
    std::vector<int64_t> in;

    Shape shape(const Known& known) const;
};

struct Resize {
    int64_t in, like, height, width;
    bool align_corners;
    Interpolation interpolation;
    bool antialias;

    void check(const std::vector<Tensor>& tensors) const;
    void check_bytes() const;
    Shape shape(const Known& known) const;
};

struct Quantize {
    int64_t in;
    float scale;
    int64_t zero;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const { return known[in]; }
};

struct Dequantize {
    int64_t in;

    Shape shape(const Known& known) const { return known[in]; }
};

// Means of every channel, of `rows` rows from `first` on; of all from there on where `rows` is 0.
struct Gap {
    int64_t in, first, rows;

    void check_bytes() const;
    Shape shape(const Known& known) const;
};

// Every pixel less the mean of its channels, by their standard deviation.
struct LayerNorm {
    int64_t in, weight, bias;
    float eps;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

// Pixels row by row, one in every row: numbers are added to them, and pixels of their own stand in front.
struct Tokens {
    int64_t in, weight;

    Shape shape(const Known& known) const;
};

// Every pixel's mean of the values of all pixels, weighted by how alike its query and their keys are.
struct Attention {
    int64_t in, heads;

    Shape shape(const Known& known) const;
};

struct Flatten {
    int64_t in;

    Shape shape(const Known& known) const { return {known[in].c * known[in].h * known[in].w}; }
};

struct Linear {
    int64_t in, weight, bias;
    bool relu;
    float slope;
    Act activation;
    float in_scale;  // of the bytes that the input becomes, or 0
    int64_t in_zero;
    int64_t weight_scale;

    // Whether int8 stands for real weights.
    bool holds_real() const { return weight_scale != NONE && in_scale == 0; }

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

struct VConst {
    int64_t weight;

    Shape shape(const Known& known) const { return {known.weight(weight, 0)}; }
};

struct VGather {
    std::vector<int64_t> in, indices;

    Shape shape(const Known& known) const;
};

struct VAdd {
    int64_t a, b;
    float alpha;
    bool relu;
    float slope;

    Shape shape(const Known& known) const;
};

struct VMul {
    int64_t a, b;

    Shape shape(const Known& known) const;
};

struct VDiv {
    int64_t a, b;

    Shape shape(const Known& known) const;
};

struct VAffine {
    int64_t in;
    float mul, add;

    Shape shape(const Known& known) const { return known[in]; }
};

enum class Function : uint8_t {
    relu,
    sigmoid,
    tanh,
    sqrt,
    exp,
    log,
    relu6,
    silu,
    hard_swish,
    hard_sigmoid,
    gelu,
    gelu_tanh
};
inline constexpr Names<Function, 12> FUNCTIONS{{{"relu", Function::relu},
                                                {"sigmoid", Function::sigmoid},
                                                {"tanh", Function::tanh},
                                                {"sqrt", Function::sqrt},
                                                {"exp", Function::exp},
                                                {"log", Function::log},
                                                {"relu6", Function::relu6},
                                                {"silu", Function::silu},
                                                {"hard_swish", Function::hard_swish},
                                                {"hard_sigmoid", Function::hard_sigmoid},
                                                {"gelu", Function::gelu},
                                                {"gelu_tanh", Function::gelu_tanh}}};

struct VMap {
    int64_t in;
    Function function;
    float slope;

    Shape shape(const Known& known) const { return known[in]; }
};

struct VClampMin {
    int64_t in;
    float min;

    Shape shape(const Known& known) const { return known[in]; }
};

struct VSum {
    int64_t in;

    Shape shape(const Known&) const { return {1}; }
};

struct VLogSoftmax {
    int64_t in;

    Shape shape(const Known& known) const { return known[in]; }
};

struct VLogAddExp {
    int64_t a, b;

    Shape shape(const Known& known) const;
};

}  // namespace ops

}  // namespace sidestep
