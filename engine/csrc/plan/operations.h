// The operations of plans: a struct for each with its fields, and one table that names and describes them
// all. Reading, checks, shapes, placement in memory and execution follow from the table; engine/README.md
// says what a new operation needs. docs/plan.md specifies what each computes.
#pragma once

#include <tuple>
#include <variant>

#include "plan/fields.h"

namespace sidestep {

// The shape of a value: a map of (c, h, w), or a vector of c entries where h is 0.
struct Shape {
    int64_t c = 0, h = 0, w = 0;
    bool is_map() const { return h > 0; }
    bool operator==(const Shape&) const = default;
    std::string text() const;
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
enum class Act : uint8_t { none, relu6, silu, hard_swish, hard_sigmoid, sigmoid };
inline constexpr Names<Act, 5> ACTS{{{"relu6", Act::relu6},
                                     {"silu", Act::silu},
                                     {"hard_swish", Act::hard_swish},
                                     {"hard_sigmoid", Act::hard_sigmoid},
                                     {"sigmoid", Act::sigmoid}}};

// How maps are resized.
enum class Interpolation : uint8_t { bilinear, bicubic };
inline constexpr Names<Interpolation, 2> INTERPOLATIONS{
    {{"bilinear", Interpolation::bilinear}, {"bicubic", Interpolation::bicubic}}};

// Every operation has `shape`, which returns the shape of its output or throws PlanError with what follows
// "op NAME that makes value N". One whose fields have to fit each other has `check`, which throws the same.

struct Conv {
    int64_t in, weight, bias, residual;
    int64_t stride, padding, groups;
    bool same;
    bool relu;
    float slope;
    Act activation;

    // Rows or columns of zeros in front of `size` of them.
    int64_t before(int64_t size, int64_t kernel) const;
    // The most that any size has in front or behind.
    int64_t halo(int64_t kernel) const { return same ? kernel / 2 : padding; }

    void check(const std::vector<Tensor>& tensors) const;
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

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

struct Add {
    int64_t a, b;
    bool relu;
    float slope;
    Act activation;

    void check(const std::vector<Tensor>& tensors) const;
    Shape shape(const Known& known) const;
};

struct Scale {
    int64_t in, factors;

    Shape shape(const Known& known) const;
};

struct Relu {
    int64_t in;
    float slope;

    Shape shape(const Known& known) const { return known[in]; }
};

struct Activate {
    int64_t in;
    Act function;

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
    Shape shape(const Known& known) const;
};

// Global average pooling.
struct Gap {
    int64_t in;

    Shape shape(const Known& known) const { return {known[in].c}; }
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

enum class Function : uint8_t { relu, sigmoid, tanh, sqrt, exp, log, relu6, silu, hard_swish, hard_sigmoid };
inline constexpr Names<Function, 10> FUNCTIONS{{{"relu", Function::relu},
                                                {"sigmoid", Function::sigmoid},
                                                {"tanh", Function::tanh},
                                                {"sqrt", Function::sqrt},
                                                {"exp", Function::exp},
                                                {"log", Function::log},
                                                {"relu6", Function::relu6},
                                                {"silu", Function::silu},
                                                {"hard_swish", Function::hard_swish},
                                                {"hard_sigmoid", Function::hard_sigmoid}}};

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

// A row of the table: an operation's name, what it makes, and its fields beside `out`.
template <class Op_, class... Fields>
struct Row {
    using Op = Op_;
    const char* name;
    Form makes;
    std::tuple<Fields...> fields;

    // Calls visit(field) for every field.
    template <class Visit>
    constexpr void each_field(const Visit& visit) const {
        std::apply([&](const auto&... field) { (visit(field), ...); }, fields);
    }
};

template <class Op, class... Fields>
constexpr Row<Op, Fields...> row(const char* name, Form makes, Fields... fields) {
    return {name, makes, {fields...}};
}

constexpr Form MAP = Form::map, VECTOR = Form::vector;

inline constexpr std::tuple TABLE{
    row<Conv>("conv", MAP, Input{"in", &Conv::in, MAP}, Weight{"weight", &Conv::weight, 4},
              Bias{"bias", &Conv::bias, &Conv::weight},
              Input{"residual", &Conv::residual, MAP, OPTIONAL | IN_PLACE}, Whole{"stride", &Conv::stride, 1},
              Whole{"padding", &Conv::padding, 0, 0}, Flag{"same", &Conv::same},
              Whole{"groups", &Conv::groups, 1}, Flag{"relu", &Conv::relu}, Number{"slope", &Conv::slope, 0},
              OneOf{"activation", &Conv::activation, ACTS, Act::none}),
    row<MaxPool>("max_pool", MAP, Input{"in", &MaxPool::in, MAP}, Whole{"kernel", &MaxPool::kernel, 1},
                 Whole{"stride", &MaxPool::stride, 1}, Whole{"padding", &MaxPool::padding, 0, 0}),
    row<AvgPool>("avg_pool", MAP, Input{"in", &AvgPool::in, MAP}, Whole{"kernel", &AvgPool::kernel, 1},
                 Whole{"stride", &AvgPool::stride, 1}, Flag{"ceil", &AvgPool::ceil}),
    row<Pad>("pad", MAP, Input{"in", &Pad::in, MAP}, Whole{"stride", &Pad::stride, 1},
             Whole{"before", &Pad::before, 0, 0}, Whole{"after", &Pad::after, 0, 0}),
    row<Crop>("crop", MAP, Input{"in", &Crop::in, MAP}, Size{"size", &Crop::height, &Crop::width}),
    row<Affine>("affine", MAP, Input{"in", &Affine::in, MAP, IN_PLACE}, Weight{"weight", &Affine::weight, 1},
                Bias{"bias", &Affine::bias, &Affine::weight, true}, Flag{"relu", &Affine::relu},
                Number{"slope", &Affine::slope, 0},
                OneOf{"activation", &Affine::activation, ACTS, Act::none}),
    row<Add>("add", MAP, InputPair{"in", &Add::a, MAP, &Add::b, MAP, IN_PLACE}, Flag{"relu", &Add::relu},
             Number{"slope", &Add::slope, 0}, OneOf{"activation", &Add::activation, ACTS, Act::none}),
    row<Scale>("scale", MAP, InputPair{"in", &Scale::in, MAP, &Scale::factors, VECTOR, IN_PLACE}),
    row<Relu>("relu", MAP, Input{"in", &Relu::in, MAP, IN_PLACE}, Number{"slope", &Relu::slope, 0}),
    row<Activate>("activate", MAP, Input{"in", &Activate::in, MAP, IN_PLACE},
                  OneOf{"function", &Activate::function, ACTS}),
    row<Concat>("concat", MAP, InputList{"in", &Concat::in, MAP}),
    row<Resize>("resize", MAP, Input{"in", &Resize::in, MAP}, Input{"like", &Resize::like, MAP, OPTIONAL},
                Size{"size", &Resize::height, &Resize::width}, Flag{"align_corners", &Resize::align_corners},
                OneOf{"interpolation", &Resize::interpolation, INTERPOLATIONS, Interpolation::bilinear},
                Flag{"antialias", &Resize::antialias}),
    row<Gap>("gap", VECTOR, Input{"in", &Gap::in, MAP, OWN_ROWS}),
    row<Flatten>("flatten", VECTOR, Input{"in", &Flatten::in, MAP}),
    row<Linear>("linear", VECTOR, Input{"in", &Linear::in, VECTOR}, Weight{"weight", &Linear::weight, 2},
                Bias{"bias", &Linear::bias, &Linear::weight}, Flag{"relu", &Linear::relu},
                Number{"slope", &Linear::slope, 0},
                OneOf{"activation", &Linear::activation, ACTS, Act::none}),
    row<VConst>("vconst", VECTOR, Weight{"weight", &VConst::weight, 1}),
    row<VGather>("vgather", VECTOR, InputList{"in", &VGather::in, VECTOR},
                 WholeList{"indices", &VGather::indices}),
    row<VAdd>("vadd", VECTOR, InputPair{"in", &VAdd::a, VECTOR, &VAdd::b, VECTOR},
              Number{"alpha", &VAdd::alpha, 1}, Flag{"relu", &VAdd::relu}, Number{"slope", &VAdd::slope, 0}),
    row<VMul>("vmul", VECTOR, InputPair{"in", &VMul::a, VECTOR, &VMul::b, VECTOR}),
    row<VDiv>("vdiv", VECTOR, InputPair{"in", &VDiv::a, VECTOR, &VDiv::b, VECTOR}),
    row<VAffine>("vaffine", VECTOR, Input{"in", &VAffine::in, VECTOR}, Number{"mul", &VAffine::mul},
                 Number{"add", &VAffine::add}),
    row<VMap>("vmap", VECTOR, Input{"in", &VMap::in, VECTOR}, OneOf{"function", &VMap::function, FUNCTIONS},
              Number{"slope", &VMap::slope, 0}),
    row<VClampMin>("vclamp_min", VECTOR, Input{"in", &VClampMin::in, VECTOR}, Number{"min", &VClampMin::min}),
    row<VSum>("vsum", VECTOR, Input{"in", &VSum::in, VECTOR}),
    row<VLogSoftmax>("vlog_softmax", VECTOR, Input{"in", &VLogSoftmax::in, VECTOR}),
    row<VLogAddExp>("vlogaddexp", VECTOR, InputPair{"in", &VLogAddExp::a, VECTOR, &VLogAddExp::b, VECTOR}),
};

}  // namespace ops

template <class... Rows>
std::variant<typename Rows::Op...> any_op_of(const std::tuple<Rows...>&);

// One operation of any kind.
using AnyOp = decltype(any_op_of(ops::TABLE));

// The row of an operation.
template <class Op, size_t I = 0>
constexpr const auto& row_of() {
    if constexpr (std::is_same_v<std::variant_alternative_t<I, AnyOp>, Op>)
        return std::get<I>(ops::TABLE);
    else
        return row_of<Op, I + 1>();
}

// Calls visit(row) for every row of the table.
template <class Visit>
void each_row(const Visit& visit) {
    std::apply([&](const auto&... row) { (visit(row), ...); }, ops::TABLE);
}

// Calls visit(id, form, flags) for every value that an operation reads.
template <class Op, class Visit>
void each_input_of(const Op& op, const Visit& visit) {
    row_of<Op>().each_field([&](const auto& field) {
        if constexpr (requires { field.each_input(op, visit); }) field.each_input(op, visit);
    });
}

template <class Visit>
void each_input(const AnyOp& any, const Visit& visit) {
    std::visit([&](const auto& op) { each_input_of(op, visit); }, any);
}

// Whether threads that share an image read rows of maps that other threads have made.
template <class Op>
constexpr bool reads_rows_of_others() {
    bool reads = false;
    row_of<Op>().each_field([&](const auto& field) {
        if constexpr (requires { field.reads_rows_of_others(); }) reads |= field.reads_rows_of_others();
    });
    return reads;
}

}  // namespace sidestep
