#include "memory/layout.h"

#include <algorithm>
#include <limits>

#include "kernels/kernels.h"
#include "memory/aligned.h"

namespace sidestep {

namespace {

constexpr int64_t FOREVER = std::numeric_limits<int64_t>::max();
constexpr int64_t NOWHERE = -1;
// Threads share out linear layers of as many weights. Making a smaller one alone takes no longer than
// fetching the other threads' parts from their caches.
constexpr int64_t SHARED_WEIGHTS = 1 << 15;

bool reads(const Node& node, int64_t id) {
    bool found = false;
    each_input(node.op, [&](int64_t input, Form, unsigned) { found |= input == id; });
    return found;
}

// Whether a node may write where a value lies that it reads.
bool overwrites_safely(const Node& node, int64_t id) {
    bool safe = true;
    each_input(node.op,
               [&](int64_t input, Form, unsigned flags) { safe &= input != id || (flags & IN_PLACE); });
    return safe;
}

bool contains(const std::vector<int64_t>& ids, int64_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// How many moments a choice's options take.
int64_t duration(const Choice& choice) {
    int64_t count = 0;
    for (const Option& option : choice.options) count += static_cast<int64_t>(option.nodes.size());
    return count;
}

// When each value is read for the last time. Time runs through all nodes in order; a choice takes a moment
// before its options and one after them, until which everything that an option reads from outside is kept.
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

class Allocator {
  public:
    Allocator(const Program& program, const std::vector<Shape>& shapes, size_t entry_size)
        : program_(program),
          shapes_(shapes),
          entry_size_(entry_size),
          last_use_(LastUses(program).take()),
          slot_(shapes.size(), NOWHERE),
          compact_(compact_values(program)) {}

    Layout run() {
        slot_[0] = fresh(shapes_[0], {}, last_use_[0], compact_[0]);
        slots_[0].image = true;
        for (const Step& step : program_.steps) {
            layout_.copies.emplace_back();
            std::visit([&](const auto& kind) { see(kind); }, step);
        }
        return finish();
    }

  private:
    struct Slot {
        Shape shape;
        Coding coding;
        int64_t busy_until;
        bool compact;
        bool image = false;
        bool shared = false;
    };

    void see(const Sequence& sequence) {
        for (const Node& node : sequence.nodes) place(node, now_++, last_use_[node.out]);
    }

    void see(const Exit&) { ++now_; }

    void see(const Choice& choice) {
        const int64_t begin = now_++, end = now_ + duration(choice);
        // The values from outside whose places the results take.
        std::vector<int64_t> replaced(choice.defines.size());
        for (size_t j = 0; j < choice.defines.size(); ++j) {
            const int64_t id = choice.defines[j], until = std::max(last_use_[id], end);
            replaced[j] = replaceable(choice, j, end);
            slot_[id] = replaced[j] == NOWHERE ? take(id, false, begin, until) : slot_[replaced[j]];
            slots_[slot_[id]].busy_until = until;
        }
        for (const Option& option : choice.options) {
            for (size_t k = 0; k < option.nodes.size(); ++k)
                place_in_option(choice, option, k, replaced, end);
            Copies& copies = layout_.copies.back().emplace_back();
            for (size_t j = 0; j < choice.defines.size(); ++j)
                if (slot_[option.results[j]] != slot_[choice.defines[j]])
                    copies.emplace_back(option.results[j], choice.defines[j]);
        }
        ++now_;
    }

    int64_t fresh(const Shape& shape, const Coding& coding, int64_t until, bool compact) {
        slots_.push_back({shape, coding, until, compact});
        return static_cast<int64_t>(slots_.size()) - 1;
    }

    // Whether maps of two codings may lie in one place: entries of one size, and one zero.
    static bool alike(const Coding& a, const Coding& b) {
        return a.is_bytes() == b.is_bytes() && a.zero == b.zero;
    }

    int64_t take(int64_t id, bool compact, int64_t now, int64_t until) {
        const Shape& shape = shapes_[id];
        const Coding& coding = program_.codings[id];
        for (size_t i = 0; i < slots_.size(); ++i) {
            Slot& slot = slots_[i];
            if (slot.busy_until < now && slot.shape == shape && alike(slot.coding, coding) &&
                slot.compact == compact && !slot.image) {
                slot.busy_until = until;
                return static_cast<int64_t>(i);
            }
        }
        return fresh(shape, coding, until, compact);
    }

    void place(const Node& node, int64_t now, int64_t until) {
        until = std::max(until, now);
        const int64_t replaced = input_to_replace(node, now);
        if (replaced != NOWHERE) {
            slot_[node.out] = slot_[replaced];
            slots_[slot_[replaced]].busy_until = until;
        } else if (is_large_linear(node)) {
            slot_[node.out] = fresh(shapes_[node.out], {}, FOREVER, false);
            slots_.back().shared = true;
        } else {
            slot_[node.out] = take(node.out, compact_[node.out], now, until);
        }
    }

    // The first input that nothing needs any more and in whose place the output may lie.
    int64_t input_to_replace(const Node& node, int64_t now) const {
        int64_t found = NOWHERE;
        each_input(node.op, [&](int64_t id, Form, unsigned) {
            if (found == NOWHERE && last_use_[id] == now && id != 0 && shapes_[id] == shapes_[node.out] &&
                shapes_[id].is_map() && compact_[id] == compact_[node.out] &&
                alike(program_.codings[id], program_.codings[node.out]) && overwrites_safely(node, id))
                found = id;
        });
        return found;
    }

    bool is_large_linear(const Node& node) const {
        const auto* linear = std::get_if<ops::Linear>(&node.op);
        return linear && shapes_[linear->in].c * shapes_[node.out].c >= SHARED_WEIGHTS;
    }

    // A value from outside that some option returns as result j, that nothing needs afterwards, and that is
    // no other result of any option; its place can become the result's, and copies need no order.
    int64_t replaceable(const Choice& choice, size_t j, int64_t end) const {
        for (const Option& option : choice.options) {
            const int64_t id = option.results[j];
            if (slot_[id] == NOWHERE || id == 0 || last_use_[id] != end || slots_[slot_[id]].shared) continue;
            if (!made_inside(choice, id) && only_result(choice, id, j)) return id;
        }
        return NOWHERE;
    }

    static bool made_inside(const Choice& choice, int64_t id) {
        for (const Option& option : choice.options)
            for (const Node& node : option.nodes)
                if (node.out == id) return true;
        return false;
    }

    static bool only_result(const Choice& choice, int64_t id, size_t j) {
        for (const Option& option : choice.options)
            for (size_t i = 0; i < option.results.size(); ++i)
                if (option.results[i] == id && i != j) return false;
        return true;
    }

    void place_in_option(const Choice& choice, const Option& option, size_t k,
                         const std::vector<int64_t>& replaced, int64_t end) {
        const Node& node = option.nodes[k];
        const int64_t now = now_++;
        for (size_t j = 0; j < option.results.size(); ++j) {
            if (option.results[j] != node.out) continue;
            if (replaced[j] == NOWHERE || may_replace(option, k, replaced[j])) {
                slot_[node.out] = slot_[choice.defines[j]];
                return;
            }
        }
        place(node, now, contains(option.results, node.out) ? end : last_use_[node.out]);
    }

    static bool may_replace(const Option& option, size_t k, int64_t id) {
        if (!overwrites_safely(option.nodes[k], id)) return false;
        for (size_t later = k + 1; later < option.nodes.size(); ++later)
            if (reads(option.nodes[later], id)) return false;
        return true;
    }

    Layout finish() {
        std::vector<Place> slots;
        const auto [compact_halo, halo] = halos();
        for (const Slot& slot : slots_) {
            if (!slot.shape.is_map()) {
                slots.push_back(place_vector(slot));
                continue;
            }
            slots.push_back(place_map(slot, slot.compact ? compact_halo : halo));
        }
        for (size_t id = 0; id < slot_.size(); ++id) {
            layout_.places.push_back(slot_[id] == NOWHERE ? Place{} : slots[slot_[id]]);
            layout_.places.back().coding = program_.codings[id];
        }
        return std::move(layout_);
    }

    Place place_vector(const Slot& slot) {
        const Place place{.shape = slot.shape, .offset = layout_.vector_floats, .shared = slot.shared};
        layout_.vector_floats += (slot.shape.c + 31) / 16 * 16;
        return place;
    }

    Place place_map(const Slot& slot, int64_t halo) {
        const auto& [c, h, w] = slot.shape;
        Place place{.shape = slot.shape, .offset = layout_.map_bytes, .halo = halo};
        place.entry_size = slot.coding.is_bytes() ? 1 : entry_size_;
        place.channels = padded_channels(c, slot.compact);
        place.row_step = (w + 2 * halo) * place.channels;
        place.first = halo * (place.row_step + place.channels);
        const size_t size = (h + 2 * halo) * place.row_step * place.entry_size;
        if (slot.coding.zero)
            layout_.fills.push_back({place.offset, size, static_cast<uint8_t>(slot.coding.zero)});
        // One cache line more, so that equal shapes do not lie on the same sets.
        layout_.map_bytes += rounded_bytes(size, LINE_BYTES) + LINE_BYTES;
        return place;
    }

    // The largest padding of convolutions that read compact maps, and of those that read others.
    std::pair<int64_t, int64_t> halos() const {
        int64_t compact = 0, other = 0;
        each_node(program_, [&](const Node& node) {
            const auto* conv = std::get_if<ops::Conv>(&node.op);
            if (!conv) return;
            int64_t& halo = compact_[conv->in] ? compact : other;
            halo = std::max(halo, conv->halo(program_.tensors[conv->weight].shape[2]));
        });
        return {compact, other};
    }

    const Program& program_;
    const std::vector<Shape>& shapes_;
    const size_t entry_size_;
    const std::vector<int64_t> last_use_;
    std::vector<int64_t> slot_;
    const std::vector<bool> compact_;
    int64_t now_ = 0;
    std::vector<Slot> slots_;
    Layout layout_;
};

}  // namespace

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

int64_t padded_channels(int64_t channels, bool compact) {
    if (compact && channels <= 4) return 4;
    return (channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK * CHANNEL_BLOCK;
}

Layout lay_out(const Program& program, const std::vector<Shape>& shapes, size_t entry_size) {
    return Allocator(program, shapes, entry_size).run();
}

}  // namespace sidestep
