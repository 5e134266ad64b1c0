#include "engine.h"

#include <algorithm>
#include <atomic>

namespace sidestep {

namespace {

Program checked(Program program) {
    check(program);
    return program;
}

// The part of a batch that starts at an image.
Image image_of(const Batch& batch, int64_t index, int64_t channels) {
    const int64_t offset = index * batch.height * batch.width * channels;
    if (batch.planes) return {batch.planes + offset, nullptr};
    return {nullptr, batch.bytes + offset};
}

}  // namespace

Engine::Engine(Program program, const std::string& precision, const std::string& isa, int num_threads)
    : program_(checked(std::move(program))),
      kernels_(select_kernels(precision, isa)),
      packed_(pack(program_, number_ops(program_), kernels_, weights_)),
      team_(num_threads) {
    for (int rank = 0; rank < team_.size(); ++rank) scratch_.emplace_back(scratch_bytes(packed_));
    for (int64_t c = 0; c < program_.channels; ++c) {
        scale_.push_back(1 / (255 * program_.std[c]));
        shift_.push_back(-program_.mean[c] / program_.std[c]);
    }
}

Network Engine::network(const Sized& sized) const {
    return {program_, packed_, sized.layout, kernels_, scale_, shift_};
}

Engine::Sized& Engine::sized(int64_t height, int64_t width) {
    const auto key = std::pair(height, width);
    auto found = sizes_.find(key);
    if (found == sizes_.end()) {
        auto made = std::make_unique<Sized>();
        made->shapes = infer_shapes(program_, height, width);
        made->layout = lay_out(program_, made->shapes);
        made->arenas.resize(team_.size());
        for (std::vector<Arena>& arenas : made->arenas) arenas.resize(MOST_JOBS);
        for (const Place& place : made->layout.places)
            made->sums_step = std::max(made->sums_step, place.channels);
        made->sums = Memory(2 * team_.size() * made->sums_step * sizeof(float));
        found = sizes_.emplace(key, std::move(made)).first;
    }
    return *found->second;
}

int64_t Engine::num_classes(int64_t height, int64_t width) {
    std::lock_guard lock(mutex_);
    return sized(height, width).shapes[program_.output].c;
}

size_t Engine::bytes_per_image(int64_t height, int64_t width) {
    std::lock_guard lock(mutex_);
    const Layout& layout = sized(height, width).layout;
    return layout.map_entries * kernels_.entry_size + layout.vector_floats * sizeof(float);
}

size_t Engine::weight_bytes() const {
    size_t bytes = 0;
    for (const Packed& packed : packed_)
        bytes += packed.weight.size() + (packed.bias.size() + packed.factors.size()) * sizeof(float);
    return bytes;
}

Engine::Arena& Engine::arena(Sized& sized, int rank, size_t index) const {
    Arena& arena = sized.arenas[rank][index];
    if (!arena.vectors.data()) {
        arena.maps = Memory(sized.layout.map_entries * kernels_.entry_size);
        arena.vectors = Memory(std::max<size_t>(sized.layout.vector_floats, 1) * sizeof(float));
    }
    return arena;
}

void Engine::run(const Batch& batch, float* scores, int64_t* options, int64_t* exits) {
    std::lock_guard lock(mutex_);
    Sized& ready = sized(batch.height, batch.width);
    // An image alone is shared by all threads; several are dealt out.
    if (batch.count == 1 && team_.size() > 1)
        run_together(ready, batch, scores, options, exits);
    else
        run_images(ready, batch, scores, options, exits);
}

void Engine::run_images(Sized& sized, const Batch& batch, float* scores, int64_t* options, int64_t* exits) {
    const Network network = this->network(sized);
    const int64_t classes = sized.shapes[program_.output].c;
    // Side by side as many as there are for every thread, so that none has nothing to do.
    const int64_t together = std::clamp<int64_t>(batch.count / (2 * team_.size()), 1, MOST_JOBS);
    std::atomic<int64_t> next{0};
    team_.run([&](int rank) {
        for (int64_t begin = next.fetch_add(together); begin < batch.count;
             begin = next.fetch_add(together)) {
            std::vector<Job> jobs;
            for (int64_t i = begin; i < std::min(begin + together, batch.count); ++i) {
                const Arena& own = arena(sized, rank, jobs.size());
                auto* vectors = reinterpret_cast<float*>(own.vectors.data());
                jobs.push_back({image_of(batch, i, program_.channels),
                                {scores + i * classes, options + i * program_.num_choices, exits + i},
                                own.maps.data(),
                                vectors,
                                vectors});
            }
            execute(network, {.scratch = scratch_[rank].data()}, jobs);
        }
    });
}

void Engine::run_together(Sized& sized, const Batch& batch, float* scores, int64_t* options, int64_t* exits) {
    const Network network = this->network(sized);
    Barrier barrier(team_.size());
    std::vector<Job> jobs;
    const Arena& first = arena(sized, 0, 0);
    for (int rank = 0; rank < team_.size(); ++rank)
        jobs.push_back({image_of(batch, 0, program_.channels),
                        {scores, options, exits},
                        first.maps.data(),
                        reinterpret_cast<float*>(arena(sized, rank, 0).vectors.data()),
                        reinterpret_cast<float*>(first.vectors.data())});
    team_.run([&](int rank) {
        const Crew crew{.scratch = scratch_[rank].data(),
                        .rank = rank,
                        .size = team_.size(),
                        .barrier = &barrier,
                        .sums = reinterpret_cast<float*>(sized.sums.data()),
                        .sums_step = sized.sums_step};
        execute(network, crew, {&jobs[rank], 1});
    });
}

}  // namespace sidestep
