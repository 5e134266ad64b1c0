#include "memory/schedule.h"

#include <algorithm>
#include <span>

#include "memory/uses.h"

namespace sidestep {

namespace {

using Nodes = std::span<const Node>;

// Chosen by benchmarks/bench_engine.py --efficientnet --mobilenet for cores with 2 MiB of cache of their own.
//
// A map that has fewer bytes stays in the cache until it is read.
constexpr size_t LARGE_MAP = 1 << 18;
// Those of a chain's rows and of its weights, which are read anew for every few rows.
constexpr size_t WINDOW_BYTES = 3 << 18;
constexpr size_t CHAIN_WEIGHTS = 1 << 18;
constexpr int64_t FEWEST_ROWS = 2;
// Weights of a group, which are read anew for every image, and a map of which few images have room.
constexpr size_t GROUP_WEIGHTS = 3 << 18;
constexpr size_t GROUPED_MAP = 1 << 18;

size_t bytes_of(const Place& map) {
    return map.shape.h * map.row_step * map.entry_size;
}

const ops::Conv& conv_of(const Node& node) {
    return std::get<ops::Conv>(node.op);
}

class Scheduler {
  public:
    Scheduler(const Program& program, const std::vector<Packed>& packed, const Layout& layout)
        : program_(program), packed_(packed), layout_(layout), reads_(count_reads(program)) {}

    Schedule run() {
        schedule_.places = layout_.places;
        schedule_.chains.resize(program_.num_nodes);
        schedule_.groups.resize(program_.num_nodes, 1);
        for (const Step& step : program_.steps) {
            if (const auto* sequence = std::get_if<Sequence>(&step)) see(sequence->nodes);
            if (const auto* choice = std::get_if<Choice>(&step))
                for (const Option& option : choice->options) see(option.nodes);
        }
        return std::move(schedule_);
    }

  private:
    void see(Nodes nodes) {
        for (size_t first = 0; first < nodes.size();) {
            const Nodes chain = nodes.subspan(first, chain_length(nodes.subspan(first)));
            if (chain.size() > 1) place_windows(chain);
            first += chain.size();
        }
        for (size_t first = 0; first < nodes.size();)
            first += schedule_.groups[nodes[first].index] = group_length(nodes.subspan(first));
    }

    const Place& at(int64_t id) const { return layout_.places[id]; }
    int64_t kernel(const Node& node) const { return program_.tensors[conv_of(node).weight].shape[2]; }
    size_t weight_bytes(const Node& node) const {
        return packed_[node.index].weight.size() + packed_[node.index].factors.size() * sizeof(float);
    }

    bool is_by_rows(const Node& node) const {
        const Packed& packed = packed_[node.index];
        return std::holds_alternative<ops::Conv>(node.op) && !packed.of_bytes && !packed.winograd &&
               !at(node.out).strip;
    }

    // Whether the next node and nothing else reads rows of what a node makes.
    bool is_linked(const Node& node, const Node& next) const {
        return is_by_rows(node) && is_by_rows(next) && conv_of(next).in == node.out &&
               reads_[node.out] == 1 && conv_of(node).residual == NONE;
    }

    size_t chain_length(Nodes nodes) const {
        size_t length = 1, weights = weight_bytes(nodes[0]);
        bool is_large = false;
        for (; length < nodes.size() && is_linked(nodes[length - 1], nodes[length]); ++length) {
            weights += weight_bytes(nodes[length]);
            if (weights > CHAIN_WEIGHTS || window_bytes(nodes.first(length + 1), FEWEST_ROWS) > WINDOW_BYTES)
                break;
            is_large |= bytes_of(at(nodes[length - 1].out)) >= LARGE_MAP;
        }
        while (length > 1 && !keeps_input(nodes.first(length))) --length;
        return is_large ? length : 1;
    }

    // Whether what the last one writes does not lie where the first one has yet to read. A convolution of one
    // pixel has read all rows that are made of it.
    bool keeps_input(Nodes chain) const {
        const Place &in = at(conv_of(chain.front()).in), &out = at(chain.back().out);
        if (in.offset != out.offset) return true;
        return kernel(chain.front()) == 1 &&
               std::all_of(chain.begin(), chain.end(), [](const Node& n) { return conv_of(n).stride == 1; });
    }

    // The rows of what the first of two nodes makes for some of the second.
    int64_t window_rows(const Node& reader, int64_t rows) const {
        return (rows - 1) * conv_of(reader).stride + kernel(reader);
    }

    // What lies between two nodes of a chain: columns of zeros and as many rows as the second reads.
    Place window(const Node& node, const Node& reader, int64_t rows) const {
        Place place = at(node.out);
        place.halo = conv_of(reader).halo(kernel(reader));
        place.row_step = (place.shape.w + 2 * place.halo) * place.channels;
        place.first = place.halo * place.channels;
        place.window_rows = rows;
        return place;
    }

    static size_t size_of(const Place& window) {
        return rounded_bytes(window.window_rows * window.row_step * window.entry_size, LINE_BYTES) +
               LINE_BYTES;
    }

    // The windows of a chain that makes so many rows at a time, from the last one to the first.
    template <class Visit>
    void each_window(Nodes chain, int64_t rows, const Visit& visit) const {
        for (size_t i = chain.size() - 1; i > 0; --i) {
            rows = window_rows(chain[i], rows);
            visit(static_cast<int64_t>(i - 1), window(chain[i - 1], chain[i], rows));
        }
    }

    size_t window_bytes(Nodes chain, int64_t rows) const {
        size_t bytes = 0;
        each_window(chain, rows, [&](int64_t, const Place& window) { bytes += size_of(window); });
        return bytes;
    }

    void place_windows(Nodes chain) {
        int64_t rows = FEWEST_ROWS;
        const int64_t most = at(chain.back().out).shape.h;
        while (rows < most && window_bytes(chain, rows + 1) <= WINDOW_BYTES) ++rows;
        // Equal parts.
        const int64_t parts = (most + rows - 1) / rows;
        rows = (most + parts - 1) / parts;
        schedule_.chains[chain.front().index] = {chain.size(), rows};
        size_t offset = 0;
        each_window(chain, rows, [&](int64_t index, const Place& window) {
            Place& place = schedule_.places[chain[index].out];
            place = window;
            place.window = index;
            place.offset = offset;
            offset += size_of(window);
        });
        schedule_.window_bytes = std::max(schedule_.window_bytes, offset);
    }

    bool has_large_map(const Node& node) const {
        const Place& out = at(node.out);
        size_t most = out.shape.is_map() ? bytes_of(out) : 0;
        each_input(node.op, [&](int64_t id, Form form, unsigned) {
            if (form == Form::map) most = std::max(most, bytes_of(at(id)));
        });
        return most >= GROUPED_MAP;
    }

    // A chain, or a convolution with the bytes that are made of its rows.
    size_t part_length(const Node& node) const {
        return at(node.out).strip ? 2 : schedule_.chains[node.index].length;
    }

    // Whole chains, from one operation on a large map to another; vectors between them come along, but not
    // those behind them: a gate reads its weights once for all images.
    size_t group_length(Nodes nodes) const {
        size_t length = 0, end = 0, weights = 0;
        while (length < nodes.size()) {
            const Nodes part = nodes.subspan(length, part_length(nodes[length]));
            for (const Node& node : part) weights += weight_bytes(node);
            const bool is_large = has_large_map(part.front());
            if (!length && !is_large) return part.size();
            if (length && (weights > GROUP_WEIGHTS || (!is_large && at(part.front().out).shape.is_map())))
                break;
            length += part.size();
            if (is_large) end = length;
        }
        return end;
    }

    const Program& program_;
    const std::vector<Packed>& packed_;
    const Layout& layout_;
    const std::vector<int64_t> reads_;
    Schedule schedule_;
};

}  // namespace

Schedule schedule_of(const Program& program, const std::vector<Packed>& packed, const Layout& layout) {
    return Scheduler(program, packed, layout).run();
}

}  // namespace sidestep
