#include "program.h"

#include <array>
#include <cmath>
#include <unordered_set>
#include <utility>

namespace sidestep {

namespace {

struct KindInfo {
    const char* name;
    int inputs_min, inputs_max;  // max -1: any number
    int ints, floats;            // ints -1: any number
    bool weight, bias;           // whether it must have one
    bool may_bias;
};

constexpr std::array<KindInfo, 22> INFO{{
    {"conv", 1, 2, 4, 1, true, false, true},       {"max_pool", 1, 1, 3, 0, false, false, false},
    {"avg_pool", 1, 1, 3, 0, false, false, false}, {"pad", 1, 1, 3, 0, false, false, false},
    {"affine", 1, 1, 1, 1, true, true, true},      {"add", 2, 2, 1, 1, false, false, false},
    {"scale", 2, 2, 0, 0, false, false, false},    {"relu", 1, 1, 0, 1, false, false, false},
    {"concat", 1, -1, 0, 0, false, false, false},  {"resize", 1, 2, 3, 0, false, false, false},
    {"gap", 1, 1, 0, 0, false, false, false},      {"linear", 1, 1, 1, 1, true, false, true},
    {"vconst", 0, 0, 0, 0, true, false, false},    {"vgather", 1, -1, -1, 0, false, false, false},
    {"vadd", 2, 2, 1, 2, false, false, false},     {"vmul", 2, 2, 0, 0, false, false, false},
    {"vdiv", 2, 2, 0, 0, false, false, false},     {"vaffine", 1, 1, 0, 2, false, false, false},
    {"vmap", 1, 1, 1, 1, false, false, false},     {"vclamp_min", 1, 1, 0, 1, false, false, false},
    {"vsum", 1, 1, 0, 0, false, false, false},     {"flatten", 1, 1, 0, 0, false, false, false},
}};

const KindInfo& info(Kind kind) {
    return INFO[static_cast<size_t>(kind)];
}

[[noreturn]] void fail(const Op& op, const std::string& what) {
    throw PlanError(std::string("op ") + info(op.kind).name + " that makes value " + std::to_string(op.out) +
                    " " + what);
}

// Walks through a program as it runs and keeps which values there are.
class Checker {
  public:
    explicit Checker(const Program& program) : program_(program), defined_(program.num_values, false) {
        defined_.at(0) = true;
    }

    void run() {
        for (const Step& step : program_.steps) {
            if (step.kind == StepKind::run) ops(step.ops);
            if (step.kind == StepKind::choose) choose(step);
            if (step.kind == StepKind::leave) leave(step);
        }
        need(program_.output, "the output");
    }

  private:
    void need(int64_t id, const std::string& who) const {
        if (id < 0 || id >= program_.num_values || !defined_[id])
            throw PlanError(who + " needs value " + std::to_string(id) + ", which nothing before it makes");
    }

    void define(int64_t id) {
        if (id < 1 || id >= program_.num_values)
            throw PlanError("values must be in [1, " + std::to_string(program_.num_values) + "), got " +
                            std::to_string(id));
        if (!ever_.insert(id).second) throw PlanError("value " + std::to_string(id) + " is made twice");
        defined_[id] = true;
    }

    void ops(const std::vector<Op>& list) {
        for (const Op& op : list) {
            fields(op);
            for (int64_t id : op.in) need(id, std::string("op ") + info(op.kind).name);
            define(op.out);
        }
    }

    void choose(const Step& step) {
        need(step.value, "a choice");
        if (step.options.empty()) throw PlanError("a choice must have options, got none");
        for (const Option& option : step.options) {
            ops(option.ops);
            if (option.results.size() != step.defines.size())
                throw PlanError("an option must have " + std::to_string(step.defines.size()) +
                                " results, got " + std::to_string(option.results.size()));
            for (int64_t id : option.results) need(id, "an option's results");
            for (const Op& op : option.ops) defined_[op.out] = false;  // not seen outside
        }
        for (int64_t id : step.defines) define(id);
    }

    void leave(const Step& step) const {
        need(step.value, "an exit");
        if (!(step.temperature > 0) || !std::isfinite(step.temperature) || std::isnan(step.threshold))
            throw PlanError("an exit must have a positive temperature and a threshold that is a number");
    }

    void fields(const Op& op) const {
        const KindInfo& k = info(op.kind);
        const auto inputs = static_cast<int>(op.in.size());
        if (inputs < k.inputs_min || (k.inputs_max >= 0 && inputs > k.inputs_max))
            fail(op, "has " + std::to_string(inputs) + " inputs");
        if ((k.ints >= 0 && op.ints.size() != static_cast<size_t>(k.ints)) ||
            op.floats.size() != static_cast<size_t>(k.floats))
            fail(op, "has the wrong number of settings");
        const auto tensors = static_cast<int64_t>(program_.tensors.size());
        if (op.weight >= tensors || op.bias >= tensors) fail(op, "names a tensor that is not there");
        if ((k.weight && op.weight < 0) || (k.bias && op.bias < 0)) fail(op, "lacks a tensor");
        if (!k.weight && op.weight >= 0) fail(op, "must not have a weight");
        if (!k.may_bias && op.bias >= 0) fail(op, "must not have a bias");
        for (float number : op.floats)
            if (!std::isfinite(number)) fail(op, "has a number that is not finite");
        settings(op);
        if (op.weight >= 0) weights(op);
    }

    void settings(const Op& op) const {
        constexpr int64_t large = 1 << 16;
        if (op.kind != Kind::vgather)
            for (int64_t value : op.ints)
                if (value < 0 || value > large) fail(op, "has a setting outside of [0, 65536]");
        const bool strided = op.kind == Kind::conv || op.kind == Kind::pad;
        if (strided && op.ints[0] < 1) fail(op, "must have a stride of at least 1");
        const bool pools = op.kind == Kind::max_pool || op.kind == Kind::avg_pool;
        if (pools && (op.ints[0] < 1 || op.ints[1] < 1))
            fail(op, "must have kernel and stride of at least 1");
        if (op.kind == Kind::max_pool && 2 * op.ints[2] > op.ints[0])
            fail(op, "pads by more than half its kernel");
        if (op.kind == Kind::resize && op.in.size() == 1 && (op.ints[0] < 1 || op.ints[1] < 1))
            fail(op, "must have a size");
        if (op.kind == Kind::vmap && op.ints[0] > static_cast<int64_t>(Function::exp))
            fail(op, "has no function");
    }

    void weights(const Op& op) const {
        const auto& shape = program_.tensors[op.weight].shape;
        const size_t dims = op.kind == Kind::conv ? 4 : op.kind == Kind::linear ? 2 : 1;
        if (shape.size() != dims) fail(op, "needs a weight of " + std::to_string(dims) + " dimensions");
        for (int64_t size : shape)
            if (size < 1) fail(op, "has an empty weight");
        if (op.bias >= 0) {
            const auto& bias = program_.tensors[op.bias].shape;
            if (bias.size() != 1 || bias[0] != shape[0]) fail(op, "has a bias that does not fit its weight");
        }
        if (op.kind != Kind::conv) return;
        if (shape[2] != shape[3]) fail(op, "must have a square kernel");
        if (op.ints[1] >= shape[2]) fail(op, "pads by its kernel or more");
        if (op.ints[2] < 1 || shape[0] % op.ints[2]) fail(op, "has groups that do not divide its channels");
    }

    const Program& program_;
    std::vector<bool> defined_;
    std::unordered_set<int64_t> ever_;
};

}  // namespace

std::string Shape::text() const {
    if (!is_map()) return "vector of " + std::to_string(c);
    return "map of " + std::to_string(c) + " x " + std::to_string(h) + " x " + std::to_string(w);
}

void check(const Program& program) {
    constexpr int64_t many = 1 << 22;
    if (program.num_values < 1 || program.num_values > many)
        throw PlanError("a plan has at most 4 million values");
    if (program.channels < 1 || program.channels > 1024)
        throw PlanError("images must have 1 to 1024 channels");
    const auto channels = static_cast<size_t>(program.channels);
    if (program.mean.size() != channels || program.std.size() != channels)
        throw PlanError("mean and std must have one number for every channel");
    for (float number : program.mean)
        if (!std::isfinite(number)) throw PlanError("mean must be finite");
    for (float number : program.std)
        if (!std::isfinite(number) || number == 0) throw PlanError("std must be finite and not 0");
    for (const Tensor& tensor : program.tensors)
        for (float number : tensor.data)
            if (!std::isfinite(number))
                throw PlanError("all weights must be finite numbers, got NaN or infinity");
    Checker(program).run();
}

int64_t number_ops(Program& program) {
    int64_t count = 0;
    for (Step& step : program.steps) {
        for (Op& op : step.ops) op.index = count++;
        for (Option& option : step.options)
            for (Op& op : option.ops) op.index = count++;
    }
    return count;
}

const char* name_of(Kind kind) {
    return info(kind).name;
}

Kind kind_of(const std::string& name) {
    for (size_t i = 0; i < INFO.size(); ++i)
        if (name == INFO[i].name) return static_cast<Kind>(i);
    throw PlanError("op '" + name + "' is unknown to this engine; a newer engine may know it");
}

}  // namespace sidestep
