#include "run/engine.h"

#include <algorithm>
#include <atomic>

namespace sidestep {

namespace {

// Images side by side share what is read of weights, but their maps must stay in a core's cache. Of large
// maps none do, and weights count.
constexpr size_t CACHED_MAPS = 5 << 18;
constexpr int64_t FEWEST_ITEMS = 4;

float* floats(const Memory& memory) {
    return reinterpret_cast<float*>(memory.data());
}

// How many images a thread runs side by side, at most.
int64_t images_at_a_time(size_t map_bytes) {
    const auto cached = static_cast<int64_t>(CACHED_MAPS / std::max<size_t>(map_bytes, 1));
    return std::clamp<int64_t>(cached, FEWEST_ITEMS, MAX_ITEMS);
}

}  // namespace

Engine::Engine(Program program, const std::string& precision, const std::string& isa, int num_threads,
               int num_cores)
    : program_(std::move(program)),
      kernels_(select_kernels(precision, isa)),
      byte_kernels_(select_byte_kernels(isa)),
      packed_(pack(program_, {kernels_, byte_kernels_}, weights_)),
      quantized_(std::any_of(packed_.begin(), packed_.end(), [](const auto& op) { return op.of_bytes; })),
      num_threads_(num_threads),
      num_cores_(num_cores),
      state_(std::make_unique<State>()),
      fork_handler_([this] {
          static_cast<void>(state_.release());
          state_ = std::make_unique<State>();
      }) {
    for (int64_t c = 0; c < program_.channels; ++c) {
        scale_.push_back(1 / (255 * program_.std[c]));
        shift_.push_back(-program_.mean[c] / program_.std[c]);
    }
    start(*state_);
}

void Engine::start(State& state) const {
    std::vector<Memory> scratch;
    for (int rank = 0; rank < num_threads_; ++rank) scratch.emplace_back(scratch_bytes(packed_));
    state.scratch = std::move(scratch);
    // A child may have been given fewer cores than its parent had.
    const int num_cores = std::min(num_cores_, allowed_cores(num_cores_));
    state.threads = std::make_unique<ThreadPool>(num_threads_, num_cores);
}

Network Engine::network(const Workspace& workspace) const {
    return {program_, packed_, workspace.layout, workspace.schedule, kernels_, byte_kernels_, scale_, shift_};
}

Engine::Workspace& Engine::workspace(State& state, int64_t height, int64_t width) const {
    const auto key = std::pair(height, width);
    auto found = state.workspaces.find(key);
    if (found == state.workspaces.end()) {
        found = state.workspaces.emplace(key, new_workspace(height, width)).first;
        const size_t bytes = attention_bytes(program_, found->second->shapes, kernels_);
        for (Memory& scratch : state.scratch)
            if (scratch.size() < bytes) scratch = Memory(bytes);
    }
    return *found->second;
}

std::unique_ptr<Engine::Workspace> Engine::new_workspace(int64_t height, int64_t width) const {
    auto made = std::make_unique<Workspace>();
    made->shapes = infer_shapes(program_, height, width);
    made->layout = lay_out(program_, made->shapes, kernels_.entry_size);
    made->schedule = schedule_of(program_, packed_, made->layout);
    made->images.resize(num_threads_);
    for (std::vector<ImageMemory>& images : made->images) images.resize(MAX_ITEMS);
    const size_t strip = std::max(made->layout.strip_bytes, made->schedule.window_bytes);
    for (int rank = 0; rank < num_threads_; ++rank) made->strips.emplace_back(strip);
    for (const Place& place : made->layout.places)
        made->partial_sums_step = std::max(made->partial_sums_step, place.channels);
    made->partial_sums = Memory(2 * num_threads_ * made->partial_sums_step * sizeof(float));
    return made;
}

int64_t Engine::num_classes(int64_t height, int64_t width) {
    std::lock_guard lock(state_->mutex);
    return workspace(*state_, height, width).shapes[program_.output].c;
}

size_t Engine::bytes_per_image(int64_t height, int64_t width) {
    std::lock_guard lock(state_->mutex);
    const Layout& layout = workspace(*state_, height, width).layout;
    return layout.map_bytes + layout.vector_floats * sizeof(float);
}

size_t Engine::weight_bytes() const {
    size_t bytes = 0;
    for (const Packed& packed : packed_)
        bytes += packed.weight.size() + packed.table.size() +
                 4 * (packed.bias.size() + packed.factors.size() + packed.start.size() +
                      packed.multiplier.size() + packed.start_sums.size());
    return bytes;
}

Engine::ImageMemory& Engine::image_memory(Workspace& workspace, int rank, size_t index) const {
    ImageMemory& memory = workspace.images[rank][index];
    if (!memory.vectors.data()) {
        memory.maps = Memory(workspace.layout.map_bytes);
        for (const auto& [offset, size, value] : workspace.layout.fills)
            std::memset(memory.maps.data() + offset, value, size);
        memory.vectors = Memory(std::max<size_t>(workspace.layout.vector_floats, 1) * sizeof(float));
    }
    return memory;
}

// An image of a batch, without memory.
WorkItem Engine::work_item(const Workspace& workspace, const Batch& batch, const BatchPaths& paths,
                           const BatchResult& result, int64_t index) const {
    const int64_t offset = index * batch.height * batch.width * program_.channels;
    WorkItem item{};
    if (batch.planes)
        item.image.planes = batch.planes + offset;
    else
        item.image.bytes = batch.bytes + offset;
    if (paths.options) item.path = {paths.options + index * program_.num_choices, paths.exits + index};
    if (paths.thresholds) item.path.thresholds = paths.thresholds + index * program_.num_exits;
    if (paths.biases) item.path.biases = paths.biases + index * program_.num_choices;
    item.result = {result.scores + index * workspace.shapes[program_.output].c,
                   result.options + index * program_.num_choices, result.exits + index, result.done, index};
    return item;
}

void Engine::run(const Batch& batch, const BatchPaths& paths, const BatchResult& result) {
    State& state = *state_;
    std::lock_guard lock(state.mutex);
    if (!state.threads) start(state);
    Workspace& ready = workspace(state, batch.height, batch.width);
    // An image alone is shared by all threads; several are dealt out.
    if (batch.count == 1 && num_threads_ > 1)
        run_shared(state, ready, batch, paths, result);
    else
        run_side_by_side(state, ready, batch, paths, result);
}

void Engine::run_side_by_side(State& state, Workspace& workspace, const Batch& batch, const BatchPaths& paths,
                              const BatchResult& result) const {
    const Network network = this->network(workspace);
    const int64_t most = images_at_a_time(workspace.layout.map_bytes);
    std::atomic<int64_t> next{0};
    state.threads->run([&](int rank) {
        for (int64_t begin = next; begin < batch.count;) {
            // The fewer are left the fewer at a time, so that no thread has nothing to do.
            const int64_t left = batch.count - begin, shares = num_threads_ > 1 ? 2 * num_threads_ : 1;
            const int64_t end = begin + std::min((left + shares - 1) / shares, most);
            if (!next.compare_exchange_weak(begin, end)) continue;
            std::vector<WorkItem> items;
            for (int64_t i = begin; i < end; ++i) {
                const ImageMemory& memory = image_memory(workspace, rank, items.size());
                WorkItem& item = items.emplace_back(work_item(workspace, batch, paths, result, i));
                item.maps = memory.maps.data();
                item.vectors = item.shared_vectors = floats(memory.vectors);
            }
            execute(network, {.scratch = state.scratch[rank].data(), .strip = workspace.strips[rank].data()},
                    items);
            begin = next;
        }
    });
}

void Engine::run_shared(State& state, Workspace& workspace, const Batch& batch, const BatchPaths& paths,
                        const BatchResult& result) const {
    const Network network = this->network(workspace);
    Barrier barrier(num_threads_, state.threads->spins());
    std::vector<WorkItem> items(num_threads_, work_item(workspace, batch, paths, result, 0));
    const ImageMemory& first = image_memory(workspace, 0, 0);
    for (int rank = 0; rank < num_threads_; ++rank) {
        items[rank].maps = first.maps.data();
        items[rank].vectors = floats(image_memory(workspace, rank, 0).vectors);
        items[rank].shared_vectors = floats(first.vectors);
    }
    state.threads->run([&](int rank) {
        const Worker worker{.scratch = state.scratch[rank].data(),
                            .strip = workspace.strips[rank].data(),
                            .rank = rank,
                            .group_size = num_threads_,
                            .barrier = &barrier,
                            .partial_sums = floats(workspace.partial_sums),
                            .partial_sums_step = workspace.partial_sums_step};
        execute(network, worker, {&items[rank], 1});
    });
}

}  // namespace sidestep
