#include "memory/layout.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "memory/aligned.h"
#include "memory/uses.h"

namespace sidestep {

namespace {

constexpr int64_t NOWHERE = -1;
// Threads share out linear layers of as many weights. Making a smaller one alone takes no longer than
// fetching the other threads' parts from their caches.
constexpr int64_t SHARED_WEIGHTS = 1 << 15;
// Rows of maps that are made strip by strip take half of a core's nearest cache.
constexpr size_t STRIP_BYTES = 1 << 14;

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

class Allocator {
  public:
    Allocator(const Program& program, const std::vector<Shape>& shapes, size_t entry_size)
        : program_(program),
          shapes_(shapes),
          entry_size_(entry_size),
          last_use_(last_uses(program)),
          slot_(shapes.size(), NOWHERE),
          compact_(compact_values(program)),
          streamed_(streamed_values(program)) {}

    Layout run() {
        const int64_t image = layout_.image = image_of(program_);
        slot_[image] = fresh(shapes_[image], program_.codings[image], last_use_[image], compact_[image]);
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
        Coding coding{};
        int64_t busy_until;
        bool compact;
        bool image = false;
        bool shared = false;
    };

    void see(const Sequence& sequence) {
        for (const Node& node : sequence.nodes) {
            if (node.out != layout_.image) place(node, now_, last_use_[node.out]);
            if (is_large_linear(node)) last_wait_ = now_;
            ++now_;
        }
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
                slot.compact == compact && !slot.image && !slot.shared) {
                slot.busy_until = until;
                return static_cast<int64_t>(i);
            }
        }
        return fresh(shape, coding, until, compact);
    }

    // A place that is read no more, and for which all threads have waited since. They wait behind every
    // shared vector; of those that options make it is not said that all images make them.
    int64_t take_shared(int64_t id, int64_t until) {
        for (size_t i = 0; i < slots_.size(); ++i) {
            Slot& slot = slots_[i];
            if (slot.shared && slot.busy_until <= last_wait_ && slot.shape == shapes_[id]) {
                slot.busy_until = until;
                return static_cast<int64_t>(i);
            }
        }
        slots_.push_back({.shape = shapes_[id], .busy_until = until, .compact = false, .shared = true});
        return static_cast<int64_t>(slots_.size()) - 1;
    }

    void place(const Node& node, int64_t now, int64_t until) {
        if (streamed_[node.out]) return;
        until = std::max(until, now);
        const int64_t replaced = input_to_replace(node, now);
        if (replaced != NOWHERE) {
            slot_[node.out] = slot_[replaced];
            slots_[slot_[replaced]].busy_until = until;
        } else if (is_large_linear(node)) {
            slot_[node.out] = take_shared(node.out, until);
        } else {
            slot_[node.out] = take(node.out, compact_[node.out], now, until);
        }
    }

    // The first input that nothing needs any more and in whose place the output may lie.
    int64_t input_to_replace(const Node& node, int64_t now) const {
        int64_t found = NOWHERE;
        each_input(node.op, [&](int64_t id, Form, unsigned) {
            if (found == NOWHERE && last_use_[id] == now && id != layout_.image &&
                shapes_[id] == shapes_[node.out] && shapes_[id].is_map() &&
                compact_[id] == compact_[node.out] &&
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
            if (slot_[id] == NOWHERE || id == layout_.image || last_use_[id] != end ||
                slots_[slot_[id]].shared)
                continue;
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
            if (streamed_[id]) layout_.places.back() = place_strip(shapes_[id], halo);
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

    // An even number of rows, since Winograd's algorithm makes two at a time, and each as long as those of
    // other maps: what is added to them is read in their steps.
    Place place_strip(const Shape& shape, int64_t halo) {
        Place place{.shape = shape, .entry_size = entry_size_, .halo = halo};
        place.channels = padded_channels(shape.c, false);
        place.row_step = (shape.w + 2 * halo) * place.channels;
        const size_t pair = 2 * place.row_step * entry_size_;
        place.strip = 2 * static_cast<int64_t>(std::max<size_t>(STRIP_BYTES / pair, 1));
        layout_.strip_bytes = std::max(layout_.strip_bytes, place.strip / 2 * pair);
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
    const std::vector<bool> compact_, streamed_;
    int64_t now_ = 0;
    int64_t last_wait_ = -1;  // when all threads have waited for each other whatever the image
    std::vector<Slot> slots_;
    Layout layout_;
};

}  // namespace

int64_t padded_channels(int64_t channels, bool compact) {
    if (compact && channels <= 4) return 4;
    return (channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK * CHANNEL_BLOCK;
}

Layout lay_out(const Program& program, const std::vector<Shape>& shapes, size_t entry_size) {
    return Allocator(program, shapes, entry_size).run();
}

}  // namespace sidestep
