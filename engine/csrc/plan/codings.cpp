// How values are held: it follows from what operations read, and from their fields.
#include "plan/program.h"

namespace sidestep {

namespace {

class Inference {
  public:
    explicit Inference(const Program& program) : program_(program), codings_(program.num_values) {}

    std::vector<Coding> run() {
        for (const Step& step : program_.steps) std::visit([&](const auto& kind) { infer(kind); }, step);
        return std::move(codings_);
    }

  private:
    void infer(const Sequence& sequence) {
        for (const Node& node : sequence.nodes) infer(node);
    }

    void infer(const Exit&) {}

    void infer(const Choice& choice) {
        for (size_t i = 0; i < choice.options.size(); ++i) {
            const Option& option = choice.options[i];
            for (const Node& node : option.nodes) infer(node);
            for (size_t j = 0; j < choice.defines.size(); ++j) {
                Coding& wanted = codings_[choice.defines[j]];
                if (i == 0) wanted = codings_[option.results[j]];
                if (!(wanted == codings_[option.results[j]]))
                    throw PlanError("options of one choice end in maps that are held differently, value " +
                                    std::to_string(option.results[j]) + " among them");
            }
        }
    }

    void infer(const Node& node) {
        with_name(node.op, node.out, [&] {
            codings_[node.out] = std::visit([&](const auto& op) { return made_by(op); }, node.op);
        });
    }

    template <class Op>
    Coding made_by(const Op& op) const {
        constexpr Bytes rule = row_of<Op>().bytes;
        const Coding in = read_by(op);
        if (in.is_bytes() && rule == Bytes::refuses) throw PlanError("reads real maps only, got bytes");
        if (!in.is_bytes() && rule == Bytes::dequantizes)
            throw PlanError("reads bytes only, got real numbers");
        if constexpr (requires { op.check_bytes(); })
            if (in.is_bytes()) op.check_bytes();
        if constexpr (rule == Bytes::quantizes) return {op.scale, op.zero};
        if constexpr (rule == Bytes::codes) {
            if (in.is_bytes() != (op.scale != 0))
                throw PlanError(in.is_bytes() ? "reads bytes and has no scale for what it makes"
                                              : "reads real numbers and has a scale");
            return {op.scale, op.zero};
        }
        return rule == Bytes::keeps ? in : Coding{};
    }

    // How the maps are held that an operation reads: all bytes, or all real. Where it holds its output as
    // they are, with one scale and one zero point.
    template <class Op>
    Coding read_by(const Op& op) const {
        Coding found;
        bool is_first = true;
        each_input_of(op, [&](int64_t id, Form form, unsigned flags) {
            if (form != Form::map || (flags & SIZE_ONLY)) return;
            const Coding& coding = codings_[id];
            if (is_first) found = coding;
            is_first = false;
            if (coding.is_bytes() != found.is_bytes())
                throw PlanError("reads a map of bytes and one of real numbers");
            if (row_of<Op>().bytes == Bytes::keeps && !(coding == found))
                throw PlanError("joins maps of different scales or zero points");
        });
        return found;
    }

    const Program& program_;
    std::vector<Coding> codings_;
};

}  // namespace

std::vector<Coding> codings_of(const Program& program) {
    return Inference(program).run();
}

}  // namespace sidestep
