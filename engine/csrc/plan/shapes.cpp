#include "plan/program.h"

namespace sidestep {

namespace {

constexpr int64_t MOST_ENTRIES = int64_t{1} << 31;
constexpr int64_t CHANNEL_PADDING = 16;  // channels are padded by less than this

class Inference {
  public:
    Inference(const Program& program, int64_t height, int64_t width)
        : program_(program), shapes_(program.num_values) {
        shapes_[0] = {program.channels, height, width};
    }

    std::vector<Shape> run() {
        for (const Step& step : program_.steps) std::visit([&](const auto& kind) { infer(kind); }, step);
        const Shape out = shapes_[program_.output];
        if (out.is_map()) throw PlanError("the output must be a vector, got a " + out.text());
        for (int64_t id : exits_)
            if (!(shapes_[id] == out)) throw PlanError("an exit must have as many scores as the output");
        return std::move(shapes_);
    }

  private:
    void infer(const Sequence& sequence) {
        for (const Node& node : sequence.nodes) infer(node);
    }

    void infer(const Exit& exit) { exits_.push_back(exit.logits); }

    void infer(const Choice& choice) {
        const Shape scores = shapes_[choice.scores];
        if (scores.is_map() || scores.c != static_cast<int64_t>(choice.options.size()))
            throw PlanError("a choice out of " + std::to_string(choice.options.size()) +
                            " options needs as many scores, got a " + scores.text());
        for (size_t i = 0; i < choice.options.size(); ++i) {
            const Option& option = choice.options[i];
            for (const Node& node : option.nodes) infer(node);
            for (size_t j = 0; j < choice.defines.size(); ++j) {
                const Shape got = shapes_[option.results[j]];
                Shape& wanted = shapes_[choice.defines[j]];
                if (i == 0) wanted = got;
                if (!(wanted == got))
                    throw PlanError("options of one choice end in a " + wanted.text() + " and in a " +
                                    got.text());
            }
        }
    }

    void infer(const Node& node) {
        with_name(node.op, node.out, [&] {
            each_input(node.op, [&](int64_t id, Form form, unsigned) { check_form(shapes_[id], form); });
            const Known known{shapes_, program_.tensors};
            const Shape out = std::visit([&](const auto& op) { return op.shape(known); }, node.op);
            check_size(out);
            shapes_[node.out] = out;
        });
    }

    static void check_form(const Shape& shape, Form form) {
        if (shape.is_map() == (form == Form::map)) return;
        throw PlanError(std::string("needs a ") + (form == Form::map ? "map" : "vector") + ", got a " +
                        shape.text());
    }

    static void check_size(const Shape& out) {
        if (out.c < 1 || (out.h == 0) != (out.w == 0) || out.h < 0 || out.w < 0)
            throw PlanError("would make an empty value; the images are too small");
        const int64_t pixels = out.is_map() ? (out.h + 16) * (out.w + 16) : 1;
        if (out.c > MOST_ENTRIES / 64 || pixels > MOST_ENTRIES / (out.c + CHANNEL_PADDING))
            throw PlanError("is too large");
    }

    const Program& program_;
    std::vector<Shape> shapes_;
    std::vector<int64_t> exits_;
};

}  // namespace

std::string Shape::text() const {
    if (!is_map()) return "vector of " + std::to_string(c);
    return "map of " + std::to_string(c) + " x " + std::to_string(h) + " x " + std::to_string(w);
}

std::vector<Shape> infer_shapes(const Program& program, int64_t height, int64_t width) {
    constexpr int64_t largest = 1 << 14;
    if (height < 1 || width < 1 || height > largest || width > largest)
        throw PlanError("images must have 1 to 16384 pixels a side, got " + std::to_string(height) + " x " +
                        std::to_string(width));
    return Inference(program, height, width).run();
}

}  // namespace sidestep
