#include <algorithm>

#include "program.h"

namespace sidestep {

namespace {

constexpr int64_t MOST_ENTRIES = int64_t{1} << 31;

[[noreturn]] void misfit(const Op& op, const std::string& what) {
    throw PlanError(std::string("op ") + name_of(op.kind) + " that makes value " + std::to_string(op.out) +
                    " " + what);
}

class Inference {
  public:
    Inference(const Program& program, int64_t height, int64_t width)
        : program_(program), shapes_(program.num_values) {
        shapes_[0] = {program.channels, height, width};
    }

    std::vector<Shape> run() {
        for (const Step& step : program_.steps) {
            for (const Op& op : step.ops) apply(op);
            if (step.kind == StepKind::choose) choose(step);
            if (step.kind == StepKind::leave) exits_.push_back(step.value);
        }
        const Shape out = shapes_[program_.output];
        if (out.is_map()) throw PlanError("the output must be a vector, got a " + out.text());
        for (int64_t id : exits_)
            if (!(shapes_[id] == out)) throw PlanError("an exit must have as many scores as the output");
        return std::move(shapes_);
    }

  private:
    void choose(const Step& step) {
        const Shape scores = shapes_[step.value];
        if (scores.is_map() || scores.c != static_cast<int64_t>(step.options.size()))
            throw PlanError("a choice out of " + std::to_string(step.options.size()) +
                            " options needs as many scores, got a " + scores.text());
        for (size_t i = 0; i < step.options.size(); ++i) {
            const Option& option = step.options[i];
            for (const Op& op : option.ops) apply(op);
            for (size_t j = 0; j < step.defines.size(); ++j) {
                const Shape got = shapes_[option.results[j]];
                Shape& wanted = shapes_[step.defines[j]];
                if (i == 0) wanted = got;
                if (!(wanted == got))
                    throw PlanError("options of one choice end in a " + wanted.text() + " and in a " +
                                    got.text());
            }
        }
    }

    Shape map(const Op& op, size_t i = 0) const {
        const Shape shape = shapes_[op.in.at(i)];
        if (!shape.is_map()) misfit(op, "needs a map, got a " + shape.text());
        return shape;
    }

    int64_t length(const Op& op, size_t i = 0) const {
        const Shape shape = shapes_[op.in.at(i)];
        if (shape.is_map()) misfit(op, "needs a vector, got a " + shape.text());
        return shape.c;
    }

    const std::vector<int64_t>& weight(const Op& op) const { return program_.tensors[op.weight].shape; }

    void apply(const Op& op) {
        const Shape out = op.kind < Kind::gap ? of_map(op) : of_vector(op);
        if (out.c < 1 || (out.h == 0) != (out.w == 0) || out.h < 0 || out.w < 0)
            misfit(op, "would make an empty value; the images are too small");
        const int64_t pixels = out.is_map() ? (out.h + 16) * (out.w + 16) : 1;
        if (out.c > MOST_ENTRIES / 64 || pixels > MOST_ENTRIES / (out.c + CHANNELS))
            misfit(op, "is too large");
        shapes_[op.out] = out;
    }

    static Shape windows(const Op& op, const Shape& in, int64_t kernel, int64_t stride, int64_t padding) {
        const int64_t h = in.h + 2 * padding - kernel, w = in.w + 2 * padding - kernel;
        if (h < 0 || w < 0) misfit(op, "does not fit into a " + in.text());
        return {in.c, h / stride + 1, w / stride + 1};
    }

    Shape of_map(const Op& op) const {
        const Shape in = map(op);
        const auto& n = op.ints;
        switch (op.kind) {
            case Kind::conv: return conv(op, in);
            case Kind::max_pool: return windows(op, in, n[0], n[1], n[2]);
            case Kind::avg_pool: return average(op, in);
            case Kind::pad: return {in.c + n[1] + n[2], (in.h + n[0] - 1) / n[0], (in.w + n[0] - 1) / n[0]};
            case Kind::affine:
                if (weight(op)[0] != in.c) misfit(op, "has a weight that does not fit a " + in.text());
                return in;
            case Kind::add:
                if (!(map(op, 1) == in)) misfit(op, "adds a " + map(op, 1).text() + " to a " + in.text());
                return in;
            case Kind::scale:
                if (length(op, 1) != in.c) misfit(op, "has factors that do not fit a " + in.text());
                return in;
            case Kind::concat: return concat(op, in);
            case Kind::resize:
                if (op.in.size() == 2) return {in.c, map(op, 1).h, map(op, 1).w};
                return {in.c, n[0], n[1]};
            default: return in;
        }
    }

    Shape conv(const Op& op, const Shape& in) const {
        const auto& w = weight(op);
        if (w[1] * op.ints[2] != in.c) misfit(op, "has a weight that does not fit a " + in.text());
        Shape out = windows(op, in, w[2], op.ints[0], op.ints[1]);
        out.c = w[0];
        if (op.in.size() == 2 && !(map(op, 1) == out))
            misfit(op, "adds a " + map(op, 1).text() + " to a " + out.text());
        return out;
    }

    static Shape average(const Op& op, const Shape& in) {
        const int64_t kernel = op.ints[0], stride = op.ints[1];
        if (!op.ints[2]) return windows(op, in, kernel, stride, 0);
        // As PyTorch: a window that would start behind the map is dropped.
        auto size = [&](int64_t n) {
            const int64_t out = (std::max<int64_t>(n - kernel, 0) + stride - 1) / stride + 1;
            return (out - 1) * stride >= n ? out - 1 : out;
        };
        return {in.c, size(in.h), size(in.w)};
    }

    Shape concat(const Op& op, Shape out) const {
        for (size_t i = 1; i < op.in.size(); ++i) {
            const Shape other = map(op, i);
            if (other.h != out.h || other.w != out.w) misfit(op, "joins maps of different sizes");
            out.c += other.c;
            if (out.c > MOST_ENTRIES) misfit(op, "is too large");
        }
        return out;
    }

    Shape of_vector(const Op& op) const {
        switch (op.kind) {
            case Kind::gap: return {map(op).c, 0, 0};
            case Kind::flatten: return {map(op).c * map(op).h * map(op).w, 0, 0};
            case Kind::vconst: return {weight(op)[0], 0, 0};
            case Kind::vsum: length(op); return {1, 0, 0};
            case Kind::linear:
                if (length(op) != weight(op)[1])
                    misfit(op, "has a weight that does not fit a vector of " + std::to_string(length(op)));
                return {weight(op)[0], 0, 0};
            case Kind::vgather: return gather(op);
            case Kind::vadd:
            case Kind::vmul:
            case Kind::vdiv: {
                const int64_t a = length(op, 0), b = length(op, 1);
                if (a != b && a != 1 && b != 1) misfit(op, "joins vectors of different lengths");
                return {std::max(a, b), 0, 0};
            }
            default: return {length(op), 0, 0};
        }
    }

    Shape gather(const Op& op) const {
        int64_t total = 0;
        for (size_t i = 0; i < op.in.size(); ++i) total += length(op, i);
        for (int64_t index : op.ints)
            if (index < 0 || index >= total)
                misfit(op, "reads entry " + std::to_string(index) + " of " + std::to_string(total));
        return {static_cast<int64_t>(op.ints.size()), 0, 0};
    }

    static constexpr int64_t CHANNELS = 16;  // channels are padded by less than this
    const Program& program_;
    std::vector<Shape> shapes_;
    std::vector<int64_t> exits_;
};

}  // namespace

std::vector<Shape> infer_shapes(const Program& program, int64_t height, int64_t width) {
    constexpr int64_t largest = 1 << 14;
    if (height < 1 || width < 1 || height > largest || width > largest)
        throw PlanError("images must have 1 to 16384 pixels a side, got " + std::to_string(height) + " x " +
                        std::to_string(width));
    return Inference(program, height, width).run();
}

}  // namespace sidestep
