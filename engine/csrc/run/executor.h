// Runs work items step by step. Operations on maps are in map_ops.inl, those on vectors in vector_ops.inl.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "run/network.h"

namespace sidestep {

class Executor {
  public:
    Executor(const Network& network, const Worker& worker)
        : network_(network),
          kernels_(network.kernels),
          bytes_(network.bytes),
          worker_(worker),
          places_(worker.group_size == 1 ? network.schedule.places : network.layout.places) {}

    void run(std::span<const WorkItem> items);

  private:
    using Items = std::vector<const WorkItem*>;
    using Nodes = std::span<const Node>;
    using Range = std::pair<int64_t, int64_t>;

    // The means of a map's channels, of the last one of which an image needed them. Where a unit is skipped
    // the next gate asks for those of the same map.
    struct Means {
        int64_t of = NONE;
        std::vector<float> values;
    };

    // What a thread computes of a convolution: rows of the output and blocks of its channels; either all rows
    // or all blocks.
    struct ConvShare {
        Range rows, blocks;
        bool by_rows;
    };

    // Where things lie.
    const Place& at(int64_t id) const { return places_[id]; }
    const Packed& packed(const Node& node) const { return network_.packed[node.index]; }
    float* vector(int64_t id, const WorkItem& item) const {
        return (at(id).shared ? item.shared_vectors : item.vectors) + at(id).offset;
    }
    std::byte* pixel(const Place& p, const WorkItem& item, int64_t y, int64_t x = 0) const {
        if (p.window != NONE)
            return worker_.strip + p.offset +
                   (p.first + (y - windows_[p.window].first) * p.row_step + x * p.channels) * p.entry_size;
        if (p.strip) return worker_.strip + (y % p.strip * p.row_step + x * p.channels) * p.entry_size;
        return item.maps + p.offset + (p.first + y * p.row_step + x * p.channels) * p.entry_size;
    }
    uint8_t* byte(const Place& p, const WorkItem& item, int64_t y, int64_t x = 0) const {
        return reinterpret_cast<uint8_t*>(pixel(p, item, y, x));
    }
    Rows rows(const Place& p, int64_t count) const { return {count, p.shape.w, p.channels, p.row_step}; }

    // What threads that share an image divide between them; of rows those of a strip alone, if there is one.
    Range rows_of(const Place& out) const { return strip_ ? *strip_ : share(out.shape.h); }
    Range share(int64_t count) const {
        return {count * worker_.rank / worker_.group_size, count * (worker_.rank + 1) / worker_.group_size};
    }
    ConvShare conv_share(const Packed& packed, const Place& in, const Place& out) const;
    Range linear_share(const Node& node) const;
    void sync() {
        if (worker_.barrier) worker_.barrier->wait();
        reading_ = writing_ = false;
    }

    // executor.cpp: steps
    void start(const WorkItem& item);
    void load(const WorkItem& item);
    void load_bytes(const Place& to, const WorkItem& item, int64_t y);  // byte_ops.inl
    void finish(const WorkItem& item, int64_t scores, int64_t exit);
    void take(const Sequence& sequence, Items& items, size_t index);
    void take(const Choice& choice, Items& items, size_t index);
    void take(const Exit& exit, Items& items, size_t index);
    void run_option(const Option& option, const Copies& copies, const Items& items);
    void hand_on_means(const Choice& choice, const Option& option, const Items& items);
    bool leaves(const Exit& exit, const WorkItem& item);
    int64_t agreeing(const Exit& exit, const WorkItem& item);
    void run_nodes(Nodes nodes, const Items& items);
    void run_group(Nodes nodes, const Items& items);
    void run_chain(Nodes chain, int64_t rows, const WorkItem& item);
    void clear_columns(const Place& window);
    Range move_window(const Node& node, const Node& reader, Range rows);
    void run_strips(const Node& conv, const Node& quantize, const Items& items);
    template <class Op>
    void run_all(const Op& op, const Node& node, const Items& items);
    template <class Op>
    void run_in_turn(const Op& op, const Node& node, const WorkItem& item);
    void copy(int64_t from, int64_t to, const WorkItem& item);
    void prefetch_linears(size_t index);

    // One specialisation for every operation of the table but Linear. Of a map every thread that shares the
    // image makes its rows; of a vector every thread makes all entries. A convolution by rows sets writing_.
    template <class Op>
    void run(const Op& op, const Node& node, const WorkItem& item);
    // map_ops.inl
    void depthwise(const ops::Conv& conv, const Node& node, const WorkItem& item);
    void winograd(const ops::Conv& conv, const Node& node, const WorkItem& item);
    template <class Op>
    void pool(const Op& op, const Node& node, const WorkItem& item, int64_t padding, bool mean);
    void affine(int64_t in, const Node& node, const WorkItem& item, const float* weight, const float* bias,
                Activation activation);
    void resample(const ops::Resize& resize, const Node& node, const WorkItem& item);
    template <class Sum>
    void sum_rows(const Place& in, const WorkItem& item, int64_t begin, int64_t end, Sum* sums);
    void average(const Place& in, const WorkItem& item, Range rows, float* out);
    template <class Sum>
    void sum_map(const Place& in, const WorkItem& item, Range rows, Sum* sums);
    // byte_ops.inl
    void add_bytes(const ops::Add& add, const Node& node, const WorkItem& item);
    void scale_bytes(const ops::Scale& scale, const Node& node, const WorkItem& item);
    void affine_bytes(int64_t in, const Node& node, const WorkItem& item, const Recode& recode);
    void look_up(int64_t in, const Node& node, const WorkItem& item);
    void linear_bytes(const ops::Linear& linear, const Node& node, const float* const* inputs,
                      float* const* outputs, int64_t count);
    void to_numbers(const Place& from, const WorkItem& item, int64_t y, int64_t x, int64_t count, float* to);
    void from_numbers(const float* from, const Place& to, const WorkItem& item, int64_t y, int64_t x,
                      int64_t count);

    // vector_ops.inl; Linear reads its weights once for all items, and shares out entries of shared vectors
    void run_all(const ops::Linear& linear, const Node& node, const Items& items);
    template <class Op, class F>
    void join(const Op& op, const Node& node, const WorkItem& item, const F& f);
    template <class Op, class F>
    void each(const Op& op, const Node& node, const WorkItem& item, const F& f);

    const Network& network_;
    const Kernels& kernels_;
    const ByteKernels& bytes_;
    const Worker& worker_;
    const std::vector<Place>& places_;
    std::vector<Items> items_of_option_;       // kept, so that a choice allocates nothing
    int64_t choices_ = 0, exits_ = 0;          // steps of these kinds so far
    std::vector<std::vector<int64_t>> named_;  // classes that exits have named so far, of every item
    std::vector<Means> means_;                 // of every item
    const WorkItem* first_item_ = nullptr;
    PrefetchQueue prefetch_;
    std::vector<int32_t> sums_;  // of a map of bytes, by channel
    std::vector<float> numbers_, offsets_;
    std::vector<uint8_t> codes_;
    int64_t rounds_ = 0;
    std::vector<Range> windows_;  // rows of every map of a chain that lie in memory, also outside of the map
    std::vector<Range> made_;     // rows that every convolution of a chain makes now
    std::optional<Range> strip_;  // rows that are made now of a map that never lies in memory as a whole
    // What has happened since the last barrier, the same for every thread that shares the image: maps were
    // read as a whole; rows of a map were written that only their thread may read yet.
    bool reading_ = false, writing_ = false;
};

inline Activation activation_of(ops::Act act) {
    switch (act) {
        case ops::Act::none: return {};
        case ops::Act::relu6: return {Curve::relu6};
        case ops::Act::silu: return {Curve::silu};
        case ops::Act::hard_swish: return {Curve::hard_swish};
        case ops::Act::hard_sigmoid: return {Curve::hard_sigmoid};
        case ops::Act::sigmoid: return {Curve::sigmoid};
        case ops::Act::gelu: return {Curve::gelu};
        case ops::Act::gelu_tanh: return {Curve::gelu_tanh};
    }
    return {};
}

// What ends an operation.
template <class Op>
Activation ending_of(const Op& op) {
    return op.relu ? Activation{Curve::relu, op.slope} : activation_of(op.activation);
}

}  // namespace sidestep
