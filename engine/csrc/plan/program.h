// What a plan says, before anything is known about the processor or the size of the images.
#pragma once

#include "plan/table.h"

namespace sidestep {

// An operation in its place: what it does, and the value that it makes.
struct Node {
    AnyOp op;
    int64_t out = NONE;
    int64_t index = NONE;  // among all nodes of the program, in their order
};

// Operations that always run.
struct Sequence {
    std::vector<Node> nodes;
};

struct Option {
    std::vector<Node> nodes;
    std::vector<int64_t> results;
};

// The option at the index of the largest score runs; its results become the values of `defines`.
struct Choice {
    int64_t scores = NONE;
    std::vector<Option> options;
    std::vector<int64_t> defines;
};

enum class Criterion : uint8_t { confidence, margin, entropy, patience, agreement };
inline constexpr Names<Criterion, 5> CRITERIA{{{"confidence", Criterion::confidence},
                                               {"margin", Criterion::margin},
                                               {"entropy", Criterion::entropy},
                                               {"patience", Criterion::patience},
                                               {"agreement", Criterion::agreement}}};

// The image leaves with these logits if their score reaches the threshold. Some scores ask which classes the
// exits before have named.
struct Exit {
    int64_t logits;
    Criterion criterion;
    float threshold, temperature;
};

inline constexpr std::tuple EXIT_FIELDS{
    Input{"logits", &Exit::logits, Form::vector}, OneOf{"criterion", &Exit::criterion, CRITERIA},
    Number{"threshold", &Exit::threshold}, Number{"temperature", &Exit::temperature, 1}};

using Step = std::variant<Sequence, Choice, Exit>;

struct Program {
    int64_t version = 1;
    int64_t channels = 3;
    std::vector<float> mean, std;
    std::vector<Tensor> tensors;
    std::vector<Step> steps;
    std::vector<Coding> codings;  // of every value
    int64_t output = NONE;
    int64_t num_values = 1;  // ids are in [0, num_values); 0 is the image
    int64_t num_nodes = 0;
    int64_t num_choices = 0;
    int64_t num_exits = 0;
};

const char* name_of(const AnyOp& op);

// Calls visit(node) for every node in order.
template <class Visit>
void each_node(const Program& program, const Visit& visit) {
    for (const Step& step : program.steps) {
        if (const auto* sequence = std::get_if<Sequence>(&step))
            for (const Node& node : sequence->nodes) visit(node);
        if (const auto* choice = std::get_if<Choice>(&step))
            for (const Option& option : choice->options)
                for (const Node& node : option.nodes) visit(node);
    }
}

// Runs a check of a node; its PlanError gets the node's name in front.
template <class Check>
void with_name(const AnyOp& op, int64_t out, const Check& check) {
    try {
        check();
    } catch (const PlanError& error) {
        throw PlanError(std::string("op ") + name_of(op) + " that makes value " + std::to_string(out) + " " +
                        error.what());
    }
}

// Throws PlanError unless ids are defined once and before their use, and tensors have the shapes that their
// operations need whatever the size of the images.
void check(const Program& program);

// Returns how every value is held. Throws PlanError where an operation reads what it cannot.
std::vector<Coding> codings_of(const Program& program);

// Returns the shape of every value for images of a size. Throws PlanError where shapes do not fit.
std::vector<Shape> infer_shapes(const Program& program, int64_t height, int64_t width);

}  // namespace sidestep
