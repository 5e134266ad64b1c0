#include "layout.h"

#include <algorithm>
#include <limits>

#include "kernels.h"

namespace sidestep {

namespace {

constexpr int64_t FOREVER = std::numeric_limits<int64_t>::max();
constexpr int64_t NOWHERE = -1;
// Threads share out linear layers of as many weights. Making a smaller one alone takes no longer than
// fetching the other threads' parts from their caches.
constexpr int64_t JOINT_WEIGHTS = 1 << 15;

// Whether an op may write where its input i lies: it reads a pixel before it writes it, and never again.
bool in_place(const Op& op, size_t i) {
    switch (op.kind) {
        case Kind::conv: return i == 1;
        case Kind::add:
        case Kind::affine:
        case Kind::relu: return true;
        case Kind::scale: return i == 0;
        default: return false;
    }
}

bool reads(const Op& op, int64_t id) {
    return std::find(op.in.begin(), op.in.end(), id) != op.in.end();
}

bool overwrites_safely(const Op& op, int64_t id) {
    for (size_t i = 0; i < op.in.size(); ++i)
        if (op.in[i] == id && !in_place(op, i)) return false;
    return true;
}

class Allocator {
  public:
    Allocator(const Program& program, const std::vector<Shape>& shapes)
        : program_(program),
          shapes_(shapes),
          last_use_(shapes.size(), -1),
          slot_(shapes.size(), NOWHERE),
          apart_(image_lies_apart(program)) {}

    Layout run() {
        find_last_uses();
        slot_[0] = fresh(shapes_[0], last_use_[0], true);
        int64_t now = 0;
        layout_.copies.resize(program_.steps.size());
        for (size_t i = 0; i < program_.steps.size(); ++i) {
            const Step& step = program_.steps[i];
            for (const Op& op : step.ops) place(op, now++, last_use_[op.out]);
            if (step.kind == StepKind::choose) choose(step, layout_.copies[i], now);
            if (step.kind == StepKind::leave) ++now;
        }
        return finish();
    }

  private:
    struct Slot {
        Shape shape;
        int64_t busy_until;
        bool image;
        bool joint = false;
    };

    // Time runs through all ops in order; a choice takes a moment before its options and one after them,
    // until which everything that an option reads from outside is kept.
    void find_last_uses() {
        int64_t now = 0;
        auto use = [&](int64_t id, int64_t when) { last_use_[id] = std::max(last_use_[id], when); };
        for (const Step& step : program_.steps) {
            for (const Op& op : step.ops) {
                for (int64_t id : op.in) use(id, now);
                ++now;
            }
            if (step.kind == StepKind::leave) use(step.value, now++);
            if (step.kind != StepKind::choose) continue;
            use(step.value, now++);
            int64_t end = now;
            for (const Option& option : step.options) end += static_cast<int64_t>(option.ops.size());
            for (const Option& option : step.options) use_option(option, now, end, use);
            now = end + 1;
        }
        use(program_.output, FOREVER);
    }

    template <class Use>
    void use_option(const Option& option, int64_t& now, int64_t end, const Use& use) {
        std::vector<int64_t> inside;
        for (const Op& op : option.ops) inside.push_back(op.out);
        for (const Op& op : option.ops) {
            for (int64_t id : op.in)
                use(id, std::find(inside.begin(), inside.end(), id) == inside.end() ? end : now);
            ++now;
        }
        for (int64_t id : option.results) use(id, end);
    }

    int64_t fresh(const Shape& shape, int64_t until, bool image = false) {
        slots_.push_back({shape, until, image});
        return static_cast<int64_t>(slots_.size()) - 1;
    }

    int64_t take(const Shape& shape, int64_t now, int64_t until) {
        for (size_t i = 0; i < slots_.size(); ++i)
            if (slots_[i].busy_until < now && slots_[i].shape == shape && !slots_[i].image) {
                slots_[i].busy_until = until;
                return static_cast<int64_t>(i);
            }
        return fresh(shape, until);
    }

    void place(const Op& op, int64_t now, int64_t until) {
        until = std::max(until, now);
        for (int64_t id : op.in)
            if (last_use_[id] == now && id != 0 && shapes_[id] == shapes_[op.out] && shapes_[id].is_map() &&
                overwrites_safely(op, id)) {
                slot_[op.out] = slot_[id];
                slots_[slot_[id]].busy_until = until;
                return;
            }
        if (op.kind == Kind::linear && shapes_[op.in[0]].c * shapes_[op.out].c >= JOINT_WEIGHTS) {
            slot_[op.out] = fresh(shapes_[op.out], FOREVER);
            slots_.back().joint = true;
            return;
        }
        slot_[op.out] = take(shapes_[op.out], now, until);
    }

    void choose(const Step& step, std::vector<Copies>& copies, int64_t& now) {
        const int64_t begin = now++;
        int64_t end = now;
        for (const Option& option : step.options) end += static_cast<int64_t>(option.ops.size());
        std::vector<int64_t> shared(step.defines.size());  // the outside value whose place a result takes
        for (size_t j = 0; j < step.defines.size(); ++j) {
            const int64_t id = step.defines[j];
            const int64_t until = std::max(last_use_[id], end);
            shared[j] = share(step, j, end);
            slot_[id] = shared[j] == NOWHERE ? take(shapes_[id], begin, until) : slot_[shared[j]];
            slots_[slot_[id]].busy_until = until;
        }
        for (const Option& option : step.options) {
            for (size_t k = 0; k < option.ops.size(); ++k)
                place_in_option(step, option, k, shared, now++, end);
            Copies& moves = copies.emplace_back();
            for (size_t j = 0; j < step.defines.size(); ++j)
                if (slot_[option.results[j]] != slot_[step.defines[j]])
                    moves.emplace_back(option.results[j], step.defines[j]);
        }
        ++now;
    }

    // A value from outside that some option returns as result j, that nobody needs afterwards, and that is no
    // other result of any option; its place can become the result's, and copies need no order.
    int64_t share(const Step& step, size_t j, int64_t end) const {
        for (const Option& option : step.options) {
            const int64_t id = option.results[j];
            if (slot_[id] == NOWHERE || id == 0 || last_use_[id] != end || slots_[slot_[id]].joint) continue;
            if (!made_inside(step, id) && only_result(step, id, j)) return id;
        }
        return NOWHERE;
    }

    static bool made_inside(const Step& step, int64_t id) {
        for (const Option& option : step.options)
            for (const Op& op : option.ops)
                if (op.out == id) return true;
        return false;
    }

    static bool only_result(const Step& step, int64_t id, size_t j) {
        for (const Option& option : step.options)
            for (size_t i = 0; i < option.results.size(); ++i)
                if (option.results[i] == id && i != j) return false;
        return true;
    }

    void place_in_option(const Step& step, const Option& option, size_t k, const std::vector<int64_t>& shared,
                         int64_t now, int64_t end) {
        const Op& op = option.ops[k];
        for (size_t j = 0; j < option.results.size(); ++j) {
            if (option.results[j] != op.out) continue;
            if (shared[j] == NOWHERE || may_replace(option, k, shared[j])) {
                slot_[op.out] = slot_[step.defines[j]];
                return;
            }
        }
        const bool result =
            std::find(option.results.begin(), option.results.end(), op.out) != option.results.end();
        place(op, now, result ? end : last_use_[op.out]);
    }

    static bool may_replace(const Option& option, size_t k, int64_t id) {
        if (!overwrites_safely(option.ops[k], id)) return false;
        for (size_t later = k + 1; later < option.ops.size(); ++later)
            if (reads(option.ops[later], id)) return false;
        return true;
    }

    Layout finish() {
        std::vector<Place> slots;
        const auto [image_halo, halo] = halos();
        for (const Slot& slot : slots_) {
            Place place{.shape = slot.shape, .joint = slot.joint};
            if (!slot.shape.is_map()) {
                place.offset = layout_.vector_floats;
                layout_.vector_floats += (slot.shape.c + 31) / 16 * 16;
                slots.push_back(place);
                continue;
            }
            const bool apart = slot.image && apart_;
            place.halo = apart ? image_halo : halo;
            place.channels = padded_channels(slot.shape.c, apart);
            place.row_step = (slot.shape.w + 2 * place.halo) * place.channels;
            place.first = place.halo * (place.row_step + place.channels);
            place.offset = layout_.map_entries;
            const size_t entries = (slot.shape.h + 2 * place.halo) * place.row_step;
            // One cache line more, so that equal shapes do not lie on the same sets.
            layout_.map_entries += (entries + 31) / 32 * 32 + 32;
            slots.push_back(place);
        }
        for (int64_t slot : slot_) layout_.places.push_back(slot == NOWHERE ? Place{} : slots[slot]);
        return std::move(layout_);
    }

    // The largest padding of convolutions that read an image that lies apart, and of those that read other
    // maps.
    std::pair<int64_t, int64_t> halos() const {
        int64_t image = 0, other = 0;
        auto see = [&](const std::vector<Op>& ops) {
            for (const Op& op : ops)
                if (op.kind == Kind::conv) {
                    int64_t& halo = op.in[0] == 0 && apart_ ? image : other;
                    halo = std::max(halo, op.ints[1]);
                }
        };
        for (const Step& step : program_.steps) {
            see(step.ops);
            for (const Option& option : step.options) see(option.ops);
        }
        return {image, other};
    }

    const Program& program_;
    const std::vector<Shape>& shapes_;
    std::vector<int64_t> last_use_, slot_;
    const bool apart_;
    std::vector<Slot> slots_;
    Layout layout_;
};

}  // namespace

bool image_lies_apart(const Program& program) {
    auto beside_maps = [](const Op& op) {
        return (op.kind == Kind::add && reads(op, 0)) ||
               (op.kind == Kind::conv && op.in.size() > 1 && op.in[1] == 0);
    };
    for (const Step& step : program.steps) {
        if (std::any_of(step.ops.begin(), step.ops.end(), beside_maps)) return false;
        for (const Option& option : step.options)
            if (std::any_of(option.ops.begin(), option.ops.end(), beside_maps) ||
                std::find(option.results.begin(), option.results.end(), 0) != option.results.end())
                return false;
    }
    return true;
}

int64_t padded_channels(int64_t channels, bool apart) {
    if (apart && channels <= 4) return 4;
    return (channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK * CHANNEL_BLOCK;
}

Layout lay_out(const Program& program, const std::vector<Shape>& shapes) {
    return Allocator(program, shapes).run();
}

}  // namespace sidestep
