#include "run/executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "run/done.h"
#include "run/resampling.h"

namespace sidestep {

namespace {

// The index of the largest score, the first of equal ones; what is no number is the largest, as in PyTorch.
// With a bias the one at index i of n has bias * i / (n - 1) added.
int64_t largest(const float* scores, int64_t count, float bias = 0) {
    const auto biased = [&](int64_t i) {
        return scores[i] + bias * (static_cast<float>(i) / static_cast<float>(count - 1));
    };
    int64_t best = 0;
    for (int64_t i = 1; i < count && !std::isnan(biased(best)); ++i)
        if (!(biased(i) <= biased(best))) best = i;
    return best;
}

}  // namespace

#include "run/byte_ops.inl"
#include "run/map_ops.inl"
#include "run/token_ops.inl"
#include "run/vector_ops.inl"

void Executor::run(std::span<const WorkItem> items) {
    Items here;
    first_item_ = items.data();
    named_.resize(items.size());
    means_.resize(items.size());
    for (const WorkItem& item : items) {
        start(item);
        here.push_back(&item);
    }
    const Program& program = network_.program;
    for (size_t i = 0; i < program.steps.size() && !here.empty(); ++i)
        std::visit([&](const auto& step) { take(step, here, i); }, program.steps[i]);
    for (const WorkItem* item : here) finish(*item, program.output, exits_);
}

void Executor::start(const WorkItem& item) {
    if (!worker_.rank) std::fill_n(item.result.options, network_.program.num_choices, int64_t{-1});
    load(item);
}

void Executor::load(const WorkItem& item) {
    const Place& to = at(network_.layout.image);
    const auto [c, h, w] = to.shape;
    const auto [begin, end] = share(h);
    for (int64_t y = begin; y < end; ++y) {
        if (to.coding.is_bytes()) {
            load_bytes(to, item, y);
            continue;
        }
        std::byte* row = pixel(to, item, y);
        if (item.image.planes)
            kernels_.from_planes(item.image.planes + y * w, h * w, c, w, row, to.channels);
        else
            kernels_.from_bytes(item.image.bytes + y * w * c, c, w, network_.scale.data(),
                                network_.shift.data(), row, to.channels);
    }
    sync();
}

void Executor::finish(const WorkItem& item, int64_t scores, int64_t exit) {
    if (worker_.rank) return;
    std::copy_n(vector(scores, item), at(scores).shape.c, item.result.scores);
    *item.result.exit = exit;
    if (item.result.done >= 0) say_done(item.result.done, item.result.index);
}

void Executor::take(const Sequence& sequence, Items& items, size_t) {
    run_nodes(sequence.nodes, items);
}

void Executor::take(const Choice& choice, Items& items, size_t index) {
    const size_t count = choice.options.size();
    items_of_option_.resize(std::max(items_of_option_.size(), count));
    for (Items& of_option : items_of_option_) of_option.clear();
    for (const WorkItem* item : items) {
        const float* scores = vector(choice.scores, *item);
        const float bias = item->path.biases ? item->path.biases[choices_] : 0;
        const int64_t option = item->path.options ? item->path.options[choices_]
                                                  : largest(scores, static_cast<int64_t>(count), bias);
        items_of_option_[option].push_back(item);
        if (!worker_.rank) item->result.options[choices_] = option;
    }
    ++choices_;
    prefetch_linears(index + 1);
    for (size_t option = 0; option < count; ++option)
        if (!items_of_option_[option].empty()) {
            run_option(choice.options[option], network_.layout.copies[index][option],
                       items_of_option_[option]);
            hand_on_means(choice, choice.options[option], items_of_option_[option]);
        }
}

void Executor::take(const Exit& exit, Items& items, size_t) {
    std::erase_if(items, [&](const WorkItem* item) {
        // What an exit says costs time on a given path as well.
        const bool says = leaves(exit, *item);
        if (item->path.exit ? *item->path.exit != exits_ : !says) return false;
        finish(*item, exit.logits, exits_);
        return true;
    });
    ++exits_;
}

void Executor::run_option(const Option& option, const Copies& copies, const Items& items) {
    run_nodes(option.nodes, items);
    for (const auto& [from, to] : copies)
        for (const WorkItem* item : items) copy(from, to, *item);
}

// What a choice defines is what the option has as its results.
void Executor::hand_on_means(const Choice& choice, const Option& option, const Items& items) {
    for (const WorkItem* item : items) {
        Means& known = means_[item - first_item_];
        const auto result = std::find(option.results.begin(), option.results.end(), known.of);
        if (result != option.results.end()) known.of = choice.defines[result - option.results.begin()];
    }
}

// How many exits have named the class that this one names, itself included: all so far, or those in a row.
int64_t Executor::agreeing(const Exit& exit, const WorkItem& item) {
    std::vector<int64_t>& named = named_[&item - first_item_];
    const int64_t here = largest(vector(exit.logits, item), at(exit.logits).shape.c);
    named.push_back(here);
    if (exit.criterion == Criterion::agreement) return std::count(named.begin(), named.end(), here);
    const auto other = std::find_if(named.rbegin(), named.rend(), [&](int64_t name) { return name != here; });
    return other - named.rbegin();
}

// With a logit that is no number no image leaves by a probability: every comparison is false.
bool Executor::leaves(const Exit& exit, const WorkItem& item) {
    const float threshold = item.path.thresholds ? item.path.thresholds[exits_] : exit.threshold;
    if (exit.criterion == Criterion::agreement) return (agreeing(exit, item) >= 2 ? 1.0f : 0.0f) >= threshold;
    if (exit.criterion == Criterion::patience) return static_cast<float>(agreeing(exit, item)) >= threshold;
    const int64_t n = at(exit.logits).shape.c;
    const float* logits = vector(exit.logits, item);
    const float top = *std::max_element(logits, logits + n);
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double z = (logits[i] - top) / exit.temperature;
        sum += std::exp(z);
        if (z > -INFINITY) weighted += z * std::exp(z);  // of a probability of 0 nothing
    }
    if (exit.criterion == Criterion::entropy) return std::log(sum) - weighted / sum <= threshold;
    if (exit.criterion == Criterion::confidence) return 1 / sum >= threshold;
    double second = -INFINITY;
    bool seen = false;
    for (int64_t i = 0; i < n; ++i) {
        if (logits[i] == top && !seen)
            seen = true;
        else
            second = std::max<double>(second, logits[i]);
    }
    return (1 - std::exp((second - top) / exit.temperature)) / sum >= threshold;
}

// A thread with images of its own leads one through a group of nodes and then the next.
void Executor::run_nodes(Nodes nodes, const Items& items) {
    if (items.size() == 1) return run_group(nodes, items);
    for (size_t first = 0, count; first < nodes.size(); first += count) {
        count = network_.schedule.groups[nodes[first].index];
        const Nodes group = nodes.subspan(first, count);
        if (count == 1)
            run_group(group, items);
        else
            for (const WorkItem* item : items) run_group(group, {item});
    }
}

void Executor::run_group(Nodes nodes, const Items& items) {
    for (size_t i = 0; i < nodes.size(); ++i) {
        const auto& [length, rows] = network_.schedule.chains[nodes[i].index];
        if (length > 1 && worker_.group_size == 1) {
            for (const WorkItem* item : items) run_chain(nodes.subspan(i, length), rows, *item);
            i += length - 1;
        } else if (at(nodes[i].out).strip) {
            run_strips(nodes[i], nodes[i + 1], items);
            ++i;
        } else {
            std::visit([&](const auto& op) { run_all(op, nodes[i], items); }, nodes[i].op);
        }
    }
}

// Some rows of what the last convolution makes, and of every other one those that they need; then the next.
void Executor::run_chain(Nodes chain, int64_t rows, const WorkItem& item) {
    constexpr int64_t BEFORE_ALL = -(int64_t{1} << 40);
    const size_t last = chain.size() - 1;
    windows_.assign(last, {BEFORE_ALL, BEFORE_ALL});
    made_.resize(chain.size());
    for (size_t i = 0; i < last; ++i) clear_columns(at(chain[i].out));
    const int64_t height = at(chain[last].out).shape.h;
    for (int64_t y = 0; y < height; y += rows) {
        made_[last] = {y, std::min(y + rows, height)};
        for (size_t i = last; i > 0; --i) made_[i - 1] = move_window(chain[i - 1], chain[i], made_[i]);
        for (size_t i = 0; i <= last; ++i) {
            strip_ = made_[i];
            run(std::get<ops::Conv>(chain[i].op), chain[i], item);
        }
    }
    strip_.reset();
    writing_ = false;
}

// Zeros beside the rows of a window, where other windows may have been.
void Executor::clear_columns(const Place& window) {
    const size_t columns = window.first * window.entry_size, row = window.row_step * window.entry_size;
    std::byte* at = worker_.strip + window.offset;
    for (int64_t y = 0; y < window.window_rows; ++y, at += row) {
        std::memset(at, 0, columns);
        std::memset(at + row - columns, 0, columns);
    }
}

// Makes room for what a convolution reads to make some rows, of which it keeps what is there and makes zeros
// of what lies outside of the map. Returns the rows that are to be made.
Executor::Range Executor::move_window(const Node& node, const Node& reader, Range rows) {
    if (rows.first == rows.second) return {0, 0};
    const Place& place = at(node.out);
    const auto& conv = std::get<ops::Conv>(reader.op);
    const int64_t height = place.shape.h, kernel = network_.program.tensors[conv.weight].shape[2];
    const int64_t before = conv.before(height, kernel), first = rows.first * conv.stride - before,
                  end = (rows.second - 1) * conv.stride - before + kernel;
    auto& window = windows_[place.window];
    const size_t row = place.row_step * place.entry_size;
    std::byte* at = worker_.strip + place.offset;
    if (window.first < first && first < window.second)
        std::memmove(at, at + (first - window.first) * row, (window.second - first) * row);
    const int64_t begin = std::max(first, window.second);
    window = {first, end};
    for (int64_t y = begin; y < end; ++y)
        if (y < 0 || y >= height) std::memset(at + (y - first) * row, 0, row);
    return {std::clamp<int64_t>(begin, 0, height), std::clamp<int64_t>(end, 0, height)};
}

// Some rows of a real map, what bytes are made of them, and then the next rows.
void Executor::run_strips(const Node& conv, const Node& quantize, const Items& items) {
    const Place& between = at(conv.out);
    for (const WorkItem* item : items) {
        if (reading_ || writing_) sync();
        const auto [begin, end] = share(between.shape.h);
        for (int64_t y = begin; y < end; y = strip_->second) {
            strip_ = {y, std::min((y / between.strip + 1) * between.strip, end)};
            run(std::get<ops::Conv>(conv.op), conv, *item);
            run(std::get<ops::Quantize>(quantize.op), quantize, *item);
        }
        strip_.reset();
        sync();
    }
}

template <class Op>
void Executor::run_all(const Op& op, const Node& node, const Items& items) {
    for (const WorkItem* item : items) run_in_turn(op, node, *item);
}

// Runs an operation when what it reads is there and what it overwrites is read: other threads may still read
// the whole of a map whose place it writes to, or still write rows that it reads.
template <class Op>
void Executor::run_in_turn(const Op& op, const Node& node, const WorkItem& item) {
    constexpr bool makes_map = row_of<Op>().makes == Form::map;
    if ((reading_ && makes_map) || (writing_ && reads_rows_of_others<Op>())) sync();
    run(op, node, item);
    if (makes_map && !writing_) sync();
}

void Executor::copy(int64_t from, int64_t to, const WorkItem& item) {
    const Place &a = at(from), &b = at(to);
    if (!a.shape.is_map()) {
        std::copy_n(vector(from, item), a.shape.c, vector(to, item));
        return;
    }
    if (reading_ || writing_) sync();
    const auto [begin, end] = share(a.shape.h);
    for (int64_t y = begin; y < end; ++y)
        std::memcpy(pixel(b, item, y), pixel(a, item, y), a.shape.w * a.channels * a.entry_size);
    sync();
}

// Lists the weights of linear layers from a step on to the next choice or exit, as far as this thread reads
// them.
void Executor::prefetch_linears(size_t index) {
    prefetch_.clear();
    const auto& steps = network_.program.steps;
    for (; index < steps.size(); ++index) {
        const auto* sequence = std::get_if<Sequence>(&steps[index]);
        if (!sequence) return;
        for (const Node& node : sequence->nodes) {
            if (!std::holds_alternative<ops::Linear>(node.op)) continue;
            const auto weight = packed(node).weight;
            const auto [begin, end] = linear_share(node);
            const size_t each = weight.size() / at(node.out).shape.c;
            if (begin < end) prefetch_.add(weight.data() + begin * each, (end - begin) * each);
        }
    }
}

void execute(const Network& network, const Worker& worker, std::span<const WorkItem> items) {
    Executor(network, worker).run(items);
}

}  // namespace sidestep
