#include "memory/uses.h"

#include <type_traits>

namespace sidestep {

namespace {

constexpr int64_t NOWHERE = -1;

class LastUses {
  public:
    explicit LastUses(const Program& program) : last_(program.num_values, -1) {
        for (const Step& step : program.steps) std::visit([&](const auto& kind) { see(kind); }, step);
        use(program.output, FOREVER);
    }

    std::vector<int64_t> take() { return std::move(last_); }

  private:
    void use(int64_t id, int64_t when) { last_[id] = std::max(last_[id], when); }

    void see(const Sequence& sequence) {
        for (const Node& node : sequence.nodes) {
            each_input(node.op, [&](int64_t id, Form, unsigned) { use(id, now_); });
            ++now_;
        }
    }

    void see(const Exit& exit) { use(exit.logits, now_++); }

    void see(const Choice& choice) {
        use(choice.scores, now_++);
        const int64_t end = now_ + duration(choice);
        for (const Option& option : choice.options) see(option, end);
        now_ = end + 1;
    }

    void see(const Option& option, int64_t end) {
        std::vector<int64_t> inside;
        for (const Node& node : option.nodes) inside.push_back(node.out);
        for (const Node& node : option.nodes) {
            each_input(node.op,
                       [&](int64_t id, Form, unsigned) { use(id, contains(inside, id) ? now_ : end); });
            ++now_;
        }
        for (int64_t id : option.results) use(id, end);
    }

    std::vector<int64_t> last_;
    int64_t now_ = 0;
};

// The map whose channels an operation changes one by one.
template <class Op>
int64_t source_of(const Op& op) {
    constexpr bool by_channel = std::is_same_v<Op, ops::Affine> || std::is_same_v<Op, ops::Crop> ||
                                std::is_same_v<Op, ops::Resize> || std::is_same_v<Op, ops::Scale> ||
                                std::is_same_v<Op, ops::Quantize> || std::is_same_v<Op, ops::Dequantize>;
    if constexpr (by_channel)
        return op.in;
    else
        return NOWHERE;
}

}  // namespace

// How many moments a choice's options take.
int64_t duration(const Choice& choice) {
    int64_t count = 0;
    for (const Option& option : choice.options) count += static_cast<int64_t>(option.nodes.size());
    return count;
}

std::vector<int64_t> last_uses(const Program& program) {
    return LastUses(program).take();
}

std::vector<int64_t> count_reads(const Program& program) {
    std::vector<int64_t> reads(program.num_values, 0);
    each_node(program, [&](const Node& node) {
        each_input(node.op, [&](int64_t id, Form, unsigned) { ++reads[id]; });
    });
    for (const Step& step : program.steps)
        if (const auto* choice = std::get_if<Choice>(&step))
            for (const Option& option : choice->options)
                for (int64_t id : option.results) ++reads[id];
    return reads;
}

int64_t image_of(const Program& program) {
    if (count_reads(program)[0] != 1) return 0;
    for (const Step& step : program.steps)
        if (const auto* sequence = std::get_if<Sequence>(&step))
            for (const Node& node : sequence->nodes)
                if (const auto* op = std::get_if<ops::Quantize>(&node.op); op && op->in == 0) return node.out;
    return 0;
}

std::vector<bool> compact_values(const Program& program) {
    // The map that a value is made of by channel, or nowhere.
    std::vector<int64_t> source(program.num_values, NOWHERE);
    std::vector<bool> compact(program.num_values, true);
    each_node(program, [&](const Node& node) {
        std::visit([&](const auto& op) { source[node.out] = source_of(op); }, node.op);
        if (const auto* add = std::get_if<ops::Add>(&node.op)) compact[add->a] = compact[add->b] = false;
        if (const auto* conv = std::get_if<ops::Conv>(&node.op))
            if (conv->residual != NONE) compact[conv->residual] = false;
    });
    for (const Step& step : program.steps)
        if (const auto* choice = std::get_if<Choice>(&step))
            for (const Option& option : choice->options)
                for (int64_t id : option.results) compact[id] = false;
    each_node(program, [&](const Node& node) {
        const int64_t from = source[node.out];
        compact[node.out] = compact[node.out] && from != NOWHERE && compact[from];
    });
    for (const Step& step : program.steps)
        if (const auto* choice = std::get_if<Choice>(&step))
            for (int64_t id : choice->defines) compact[id] = false;
    return compact;
}

std::vector<bool> streamed_values(const Program& program) {
    const std::vector<int64_t> reads = count_reads(program);
    std::vector<bool> streamed(program.num_values, false);
    auto see = [&](const std::vector<Node>& nodes) {
        for (size_t i = 0; i + 1 < nodes.size(); ++i) {
            const auto* next = std::get_if<ops::Quantize>(&nodes[i + 1].op);
            const int64_t id = nodes[i].out;
            streamed[id] = std::holds_alternative<ops::Conv>(nodes[i].op) &&
                           !program.codings[id].is_bytes() && next && next->in == id && reads[id] == 1;
        }
    };
    for (const Step& step : program.steps) {
        if (const auto* sequence = std::get_if<Sequence>(&step)) see(sequence->nodes);
        if (const auto* choice = std::get_if<Choice>(&step))
            for (const Option& option : choice->options) see(option.nodes);
    }
    return streamed;
}

}  // namespace sidestep
