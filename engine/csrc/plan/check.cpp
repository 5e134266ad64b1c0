#include <cmath>
#include <unordered_set>

#include "plan/program.h"

namespace sidestep {

namespace {

// Checks steps in the order in which they run and keeps which values there are.
class Checker {
  public:
    explicit Checker(const Program& program) : program_(program), defined_(program.num_values, false) {
        defined_.at(0) = true;
    }

    void run() {
        for (const Step& step : program_.steps) std::visit([&](const auto& kind) { check(kind); }, step);
        need(program_.output, "the output ");
    }

  private:
    void need(int64_t id, const char* who = "") const {
        if (id < 0 || id >= program_.num_values || !defined_[id])
            throw PlanError(std::string(who) + "needs value " + std::to_string(id) +
                            ", which nothing before it makes");
    }

    void define(int64_t id) {
        if (id < 1 || id >= program_.num_values)
            throw PlanError("values must be in [1, " + std::to_string(program_.num_values) + "), got " +
                            std::to_string(id));
        if (!ever_.insert(id).second) throw PlanError("value " + std::to_string(id) + " is made twice");
        defined_[id] = true;
    }

    void check(const std::vector<Node>& nodes) {
        for (const Node& node : nodes) {
            with_name(node.op, node.out, [&] {
                std::visit([&](const auto& op) { fields(op); }, node.op);
                each_input(node.op, [&](int64_t id, Form, unsigned) { need(id); });
            });
            define(node.out);
        }
    }

    template <class Op>
    void fields(const Op& op) const {
        row_of<Op>().each_field([&](const auto& field) {
            if constexpr (requires { field.check(program_.tensors, op); }) field.check(program_.tensors, op);
        });
        if constexpr (requires { op.check(program_.tensors); }) op.check(program_.tensors);
    }

    void check(const Sequence& sequence) { check(sequence.nodes); }

    void check(const Choice& choice) {
        need(choice.scores, "a choice ");
        if (choice.options.empty()) throw PlanError("a choice must have options, got none");
        for (const Option& option : choice.options) {
            check(option.nodes);
            if (option.results.size() != choice.defines.size())
                throw PlanError("an option must have " + std::to_string(choice.defines.size()) +
                                " results, got " + std::to_string(option.results.size()));
            for (int64_t id : option.results) need(id, "an option's result ");
            for (const Node& node : option.nodes) defined_[node.out] = false;  // not seen outside
        }
        for (int64_t id : choice.defines) define(id);
    }

    void check(const Exit& exit) const {
        need(exit.logits, "an exit ");
        if (!(exit.temperature > 0)) throw PlanError("an exit must have a positive temperature");
    }

    const Program& program_;
    std::vector<bool> defined_;
    std::unordered_set<int64_t> ever_;
};

void check_input(const Program& program) {
    if (program.channels < 1 || program.channels > 1024)
        throw PlanError("images must have 1 to 1024 channels");
    const auto channels = static_cast<size_t>(program.channels);
    if (program.mean.size() != channels || program.std.size() != channels)
        throw PlanError("mean and std must have one number for every channel");
    for (float number : program.mean)
        if (!std::isfinite(number)) throw PlanError("mean must be finite");
    for (float number : program.std)
        if (!std::isfinite(number) || number == 0) throw PlanError("std must be finite and not 0");
}

}  // namespace

const char* name_of(const AnyOp& any) {
    return std::visit(
        []<class Op>(const Op&) {
            constexpr const char* name = row_of<Op>().name;
            return name;
        },
        any);
}

void check(const Program& program) {
    constexpr int64_t many = 1 << 22;
    if (program.num_values < 1 || program.num_values > many)
        throw PlanError("a plan has at most 4 million values");
    check_input(program);
    for (const Tensor& tensor : program.tensors)
        for (float number : tensor.data)
            if (!std::isfinite(number))
                throw PlanError("all weights must be finite numbers, got NaN or infinity");
    Checker(program).run();
}

}  // namespace sidestep
