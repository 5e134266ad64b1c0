#include "plan/reader.h"

#include <algorithm>
#include <map>
#include <utility>

namespace sidestep {

namespace {

class Reader {
  public:
    Reader(int64_t version, ImageInput input, std::map<std::string, Tensor> tensors) {
        program_.version = version;
        program_.channels = input.channels;
        program_.mean = std::move(input.mean);
        program_.std = std::move(input.std);
        for (auto& [name, tensor] : tensors) {
            tensors_.emplace(name, static_cast<int64_t>(program_.tensors.size()));
            program_.tensors.push_back(std::move(tensor));
        }
    }

    Program run(const Json& steps, const Json& output) {
        for (const Json& step : as_list(steps, "steps")) this->step(as_object(step, "a step"));
        program_.output = as_id(output);
        return std::move(program_);
    }

  private:
    void step(const JsonObject& step) {
        if (step.contains("ops"))
            sequence(step);
        else if (step.contains("choose"))
            choice(step);
        else if (step.contains("exit"))
            exit(as_object(entry_of(step, "exit"), "an exit"));
        else
            throw PlanError("a step must have ops, choose or exit, got " + names_of(step));
    }

    static std::string names_of(const JsonObject& object) {
        std::string names;
        for (const auto& [name, value] : object) names += (names.empty() ? "" : ", ") + name;
        return names.empty() ? "nothing" : names;
    }

    void sequence(const JsonObject& step) {
        std::vector<Node> nodes = this->nodes(entry_of(step, "ops"));
        const bool goes_on =
            !program_.steps.empty() && std::holds_alternative<Sequence>(program_.steps.back());
        if (!goes_on) program_.steps.emplace_back(Sequence{});
        auto& all = std::get<Sequence>(program_.steps.back()).nodes;
        std::move(nodes.begin(), nodes.end(), std::back_inserter(all));
    }

    void choice(const JsonObject& step) {
        Choice choice;
        choice.scores = as_id(entry_of(step, "choose"));
        for (const Json& entry : as_list(entry_of(step, "options"), "options")) {
            const JsonObject& option = as_object(entry, "an option");
            std::vector<Node> nodes = this->nodes(entry_of(option, "ops"));
            choice.options.push_back({std::move(nodes), as_ids(entry_of(option, "results"), "results")});
        }
        choice.defines = as_ids(entry_of(step, "defines"), "defines");
        for (int64_t id : choice.defines) made(id);
        program_.steps.emplace_back(std::move(choice));
        ++program_.num_choices;
    }

    void exit(const JsonObject& object) {
        Exit exit{};
        try {
            auto read = [&](const auto&... field) { (field.read({object, tensors_}, exit), ...); };
            std::apply(read, EXIT_FIELDS);
        } catch (const PlanError& error) {
            throw PlanError(std::string("an exit ") + error.what());
        }
        program_.steps.emplace_back(exit);
        ++program_.num_exits;
    }

    std::vector<Node> nodes(const Json& ops) {
        std::vector<Node> nodes;
        for (const Json& op : as_list(ops, "ops")) nodes.push_back(node(as_object(op, "an op")));
        return nodes;
    }

    Node node(const JsonObject& object) {
        const auto* name = entry_of(object, "op").as<std::string>();
        if (!name) throw PlanError("an op must be an object with a name");
        Node node{
            .op = op_named(*name), .out = as_id(entry_of(object, "out")), .index = program_.num_nodes++};
        made(node.out);
        const FieldSource from{object, tensors_};
        with_name(node.op, node.out, [&] { std::visit([&](auto& op) { read(from, op); }, node.op); });
        return node;
    }

    static AnyOp op_named(const std::string& name) {
        AnyOp found;
        bool known = false;
        each_row([&](const auto& row) {
            if (name != row.name) return;
            found = typename std::remove_cvref_t<decltype(row)>::Op{};
            known = true;
        });
        if (!known)
            throw PlanError("op '" + name + "' is unknown to this engine; a newer engine may know it");
        return found;
    }

    template <class Op>
    void read(const FieldSource& from, Op& op) const {
        row_of<Op>().each_field([&](const auto& field) { field.read(from, op); });
        for (const auto& [name, value] : from.object) check_field<Op>(name);
        if constexpr (requires { op.holds_real(); })
            if (program_.version < 5 && op.holds_real())
                throw PlanError("has weights of int8 for real ones, which plans of version " +
                                std::to_string(program_.version) + " lack");
    }

    // Engines of version 1 read fields by name and nothing else: what they do not know has no effect there.
    template <class Op>
    void check_field(const std::string& name) const {
        for (const auto& [field, version] : NEW_FIELDS)
            if (name == field && program_.version < version)
                throw PlanError("has a field '" + name + "', which plans of version " +
                                std::to_string(program_.version) + " lack");
        bool known = name == "op" || name == "out";
        row_of<Op>().each_field([&](const auto& field) { known |= name == field.name; });
        if (program_.version >= 2 && !known)
            throw PlanError("has a field '" + name + "' that is unknown to this engine");
    }

    void made(int64_t id) { program_.num_values = std::max(program_.num_values, id + 1); }

    Program program_;
    TensorIds tensors_;
};

// Gives real operations the weights for which int8 stands in the file.
class RealWeights {
  public:
    explicit RealWeights(Program& program) : program_(program) {}

    void make() {
        for (Step& step : program_.steps) {
            if (auto* sequence = std::get_if<Sequence>(&step)) make(sequence->nodes);
            if (auto* choice = std::get_if<Choice>(&step))
                for (Option& option : choice->options) make(option.nodes);
        }
    }

  private:
    void make(std::vector<Node>& nodes) {
        for (Node& node : nodes) std::visit([&](auto& op) { make_for(op); }, node.op);
    }

    template <class Op>
    void make_for(Op& op) {
        if constexpr (requires { op.holds_real(); }) {
            if (!op.holds_real()) return;
            const auto [entry, is_new] =
                made_.emplace(std::pair(op.weight, op.weight_scale), program_.tensors.size());
            if (is_new) program_.tensors.push_back(real(op.weight, op.weight_scale));
            op.weight = entry->second;
            op.weight_scale = NONE;
        }
    }

    Tensor real(int64_t weight, int64_t weight_scale) const {
        const Tensor& held = program_.tensors[weight];
        const auto& scales = program_.tensors[weight_scale].data;
        Tensor numbers{.shape = held.shape, .data = std::vector<float>(held.bytes.size()), .bytes = {}};
        const size_t each = held.bytes.size() / scales.size();
        for (size_t i = 0; i < held.bytes.size(); ++i)
            numbers.data[i] = static_cast<int8_t>(held.bytes[i]) * scales[i / each];
        return numbers;
    }

    Program& program_;
    std::map<std::pair<int64_t, int64_t>, int64_t> made_;
};

}  // namespace

Program read_program(int64_t version, const Json& steps, const Json& output, ImageInput input,
                     std::map<std::string, Tensor> tensors) {
    if (version < 1 || version > NEWEST_VERSION)
        throw PlanError("plans must be of version 1 to " + std::to_string(NEWEST_VERSION) + ", got " +
                        std::to_string(version));
    Program program = Reader(version, std::move(input), std::move(tensors)).run(steps, output);
    check(program);
    RealWeights(program).make();
    program.codings = codings_of(program);
    return program;
}

}  // namespace sidestep
