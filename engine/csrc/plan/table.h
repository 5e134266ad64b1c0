// The table of operations: it names and describes them all. Reading, checks, shapes, how values are held,
// placement in memory and execution follow from it; engine/README.md says what a new operation needs.
#pragma once

#include <tuple>
#include <variant>

#include "plan/operations.h"

namespace sidestep {

// What an operation does with maps of bytes.
enum class Bytes : uint8_t {
    refuses,     // it reads real maps only
    keeps,       // it holds what it makes as what it reads
    codes,       // of bytes it makes bytes, with a scale and a zero point of its own
    reads,       // of bytes it makes a real vector
    quantizes,   // of any map it makes bytes
    dequantizes  // of bytes it makes real numbers
};

namespace ops {

// A row of the table: an operation's name, what it makes, what it does with bytes, and its fields beside
// `out`.
template <class Op_, class... Fields>
struct Row {
    using Op = Op_;
    const char* name;
    Form makes;
    Bytes bytes;
    std::tuple<Fields...> fields;

    // Calls visit(field) for every field.
    template <class Visit>
    constexpr void each_field(const Visit& visit) const {
        std::apply([&](const auto&... field) { (visit(field), ...); }, fields);
    }
};

template <class Op, class... Fields>
constexpr Row<Op, Fields...> row(const char* name, Form makes, Bytes bytes, Fields... fields) {
    return {name, makes, bytes, {fields...}};
}

constexpr Form MAP = Form::map, VECTOR = Form::vector;
constexpr int64_t MOST_ZERO = 255;

inline constexpr std::tuple TABLE{
    row<Conv>("conv", MAP, Bytes::codes, Input{"in", &Conv::in, MAP},
              Weight{"weight", &Conv::weight, 4, true}, Bias{"bias", &Conv::bias, &Conv::weight},
              Input{"residual", &Conv::residual, MAP, OPTIONAL | IN_PLACE}, Whole{"stride", &Conv::stride, 1},
              Whole{"padding", &Conv::padding, 0, 0}, Flag{"same", &Conv::same},
              Whole{"groups", &Conv::groups, 1}, Flag{"relu", &Conv::relu}, Number{"slope", &Conv::slope, 0},
              OneOf{"activation", &Conv::activation, ACTS, Act::none}, Number{"scale", &Conv::scale, 0},
              Whole{"zero", &Conv::zero, 0, 0, MOST_ZERO},
              Bias{"weight_scale", &Conv::weight_scale, &Conv::weight}, Table{"table", &Conv::table},
              Number{"inner_scale", &Conv::inner_scale, 0},
              Whole{"inner_zero", &Conv::inner_zero, 0, 0, MOST_ZERO}),
    row<MaxPool>("max_pool", MAP, Bytes::keeps, Input{"in", &MaxPool::in, MAP},
                 Whole{"kernel", &MaxPool::kernel, 1}, Whole{"stride", &MaxPool::stride, 1},
                 Whole{"padding", &MaxPool::padding, 0, 0}),
    row<AvgPool>("avg_pool", MAP, Bytes::keeps, Input{"in", &AvgPool::in, MAP},
                 Whole{"kernel", &AvgPool::kernel, 1}, Whole{"stride", &AvgPool::stride, 1},
                 Flag{"ceil", &AvgPool::ceil}),
    row<Pad>("pad", MAP, Bytes::keeps, Input{"in", &Pad::in, MAP}, Whole{"stride", &Pad::stride, 1},
             Whole{"before", &Pad::before, 0, 0}, Whole{"after", &Pad::after, 0, 0}),
    row<Crop>("crop", MAP, Bytes::keeps, Input{"in", &Crop::in, MAP},
              Size{"size", &Crop::height, &Crop::width}),
    row<Affine>("affine", MAP, Bytes::codes, Input{"in", &Affine::in, MAP, IN_PLACE},
                Weight{"weight", &Affine::weight, 1}, Bias{"bias", &Affine::bias, &Affine::weight, true},
                Flag{"relu", &Affine::relu}, Number{"slope", &Affine::slope, 0},
                OneOf{"activation", &Affine::activation, ACTS, Act::none}, Number{"scale", &Affine::scale, 0},
                Whole{"zero", &Affine::zero, 0, 0, MOST_ZERO}),
    row<Add>("add", MAP, Bytes::codes, InputPair{"in", &Add::a, MAP, &Add::b, MAP, IN_PLACE},
             Flag{"relu", &Add::relu}, Number{"slope", &Add::slope, 0},
             OneOf{"activation", &Add::activation, ACTS, Act::none}, Number{"scale", &Add::scale, 0},
             Whole{"zero", &Add::zero, 0, 0, MOST_ZERO}),
    row<Scale>("scale", MAP, Bytes::codes,
               InputPair{"in", &Scale::in, MAP, &Scale::factors, VECTOR, IN_PLACE},
               Number{"scale", &Scale::scale, 0}, Whole{"zero", &Scale::zero, 0, 0, MOST_ZERO}),
    row<Relu>("relu", MAP, Bytes::keeps, Input{"in", &Relu::in, MAP, IN_PLACE},
              Number{"slope", &Relu::slope, 0}),
    row<Activate>("activate", MAP, Bytes::codes, Input{"in", &Activate::in, MAP, IN_PLACE},
                  OneOf{"function", &Activate::function, ACTS}, Table{"table", &Activate::table},
                  Number{"scale", &Activate::scale, 0}, Whole{"zero", &Activate::zero, 0, 0, MOST_ZERO}),
    row<Quantize>("quantize", MAP, Bytes::quantizes, Input{"in", &Quantize::in, MAP},
                  Number{"scale", &Quantize::scale}, Whole{"zero", &Quantize::zero, 0, 0, MOST_ZERO}),
    row<Dequantize>("dequantize", MAP, Bytes::dequantizes, Input{"in", &Dequantize::in, MAP}),
    row<Concat>("concat", MAP, Bytes::keeps, InputList{"in", &Concat::in, MAP}),
    row<Resize>("resize", MAP, Bytes::keeps, Input{"in", &Resize::in, MAP},
                Input{"like", &Resize::like, MAP, OPTIONAL | SIZE_ONLY},
                Size{"size", &Resize::height, &Resize::width}, Flag{"align_corners", &Resize::align_corners},
                OneOf{"interpolation", &Resize::interpolation, INTERPOLATIONS, Interpolation::bilinear},
                Flag{"antialias", &Resize::antialias}),
    row<LayerNorm>("layer_norm", MAP, Bytes::refuses, Input{"in", &LayerNorm::in, MAP, IN_PLACE},
                   Weight{"weight", &LayerNorm::weight, 1},
                   Bias{"bias", &LayerNorm::bias, &LayerNorm::weight, true}, Number{"eps", &LayerNorm::eps}),
    row<Tokens>("tokens", MAP, Bytes::refuses, Input{"in", &Tokens::in, MAP},
                Weight{"weight", &Tokens::weight, 2}),
    row<Attention>("attention", MAP, Bytes::refuses, Input{"in", &Attention::in, MAP},
                   Whole{"heads", &Attention::heads, 1}),
    row<Gap>("gap", VECTOR, Bytes::reads, Input{"in", &Gap::in, MAP, OWN_ROWS},
             Whole{"first", &Gap::first, 0, 0}, Whole{"rows", &Gap::rows, 0, 0}),
    row<Flatten>("flatten", VECTOR, Bytes::reads, Input{"in", &Flatten::in, MAP}),
    row<Linear>("linear", VECTOR, Bytes::refuses, Input{"in", &Linear::in, VECTOR},
                Weight{"weight", &Linear::weight, 2, true}, Bias{"bias", &Linear::bias, &Linear::weight},
                Flag{"relu", &Linear::relu}, Number{"slope", &Linear::slope, 0},
                OneOf{"activation", &Linear::activation, ACTS, Act::none},
                Number{"in_scale", &Linear::in_scale, 0}, Whole{"in_zero", &Linear::in_zero, 0, 0, MOST_ZERO},
                Bias{"weight_scale", &Linear::weight_scale, &Linear::weight}),
    row<VConst>("vconst", VECTOR, Bytes::refuses, Weight{"weight", &VConst::weight, 1}),
    row<VGather>("vgather", VECTOR, Bytes::refuses, InputList{"in", &VGather::in, VECTOR},
                 WholeList{"indices", &VGather::indices}),
    row<VAdd>("vadd", VECTOR, Bytes::refuses, InputPair{"in", &VAdd::a, VECTOR, &VAdd::b, VECTOR},
              Number{"alpha", &VAdd::alpha, 1}, Flag{"relu", &VAdd::relu}, Number{"slope", &VAdd::slope, 0}),
    row<VMul>("vmul", VECTOR, Bytes::refuses, InputPair{"in", &VMul::a, VECTOR, &VMul::b, VECTOR}),
    row<VDiv>("vdiv", VECTOR, Bytes::refuses, InputPair{"in", &VDiv::a, VECTOR, &VDiv::b, VECTOR}),
    row<VAffine>("vaffine", VECTOR, Bytes::refuses, Input{"in", &VAffine::in, VECTOR},
                 Number{"mul", &VAffine::mul}, Number{"add", &VAffine::add}),
    row<VMap>("vmap", VECTOR, Bytes::refuses, Input{"in", &VMap::in, VECTOR},
              OneOf{"function", &VMap::function, FUNCTIONS}, Number{"slope", &VMap::slope, 0}),
    row<VClampMin>("vclamp_min", VECTOR, Bytes::refuses, Input{"in", &VClampMin::in, VECTOR},
                   Number{"min", &VClampMin::min}),
    row<VSum>("vsum", VECTOR, Bytes::refuses, Input{"in", &VSum::in, VECTOR}),
    row<VLogSoftmax>("vlog_softmax", VECTOR, Bytes::refuses, Input{"in", &VLogSoftmax::in, VECTOR}),
    row<VLogAddExp>("vlogaddexp", VECTOR, Bytes::refuses,
                    InputPair{"in", &VLogAddExp::a, VECTOR, &VLogAddExp::b, VECTOR}),
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
