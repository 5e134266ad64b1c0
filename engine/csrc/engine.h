// A plan that is ready to run, and the threads that run it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "execute.h"

namespace sidestep {

// Pixels of a batch: one of the two is set.
struct Batch {
    const float* planes = nullptr;   // (B, C, H, W), normalised
    const uint8_t* bytes = nullptr;  // (B, H, W, C), not normalised
    int64_t count = 0, height = 0, width = 0;
};

class Engine {
  public:
    // Throws PlanError where the program cannot run or the processor lacks the precision.
    Engine(Program program, const std::string& precision, const std::string& isa, int num_threads);

    const Program& program() const { return program_; }
    const Kernels& kernels() const { return kernels_; }
    int num_threads() const { return team_.size(); }

    // Number of classes, for images of any size.
    int64_t num_classes(int64_t height, int64_t width);

    // Bytes of every image on its way; every thread runs up to MOST_JOBS of them, weights are shared.
    size_t bytes_per_image(int64_t height, int64_t width);
    size_t weight_bytes() const;

    // Writes scores (B, classes), options (B, choices) and exits (B). May be called from several threads at
    // once.
    void run(const Batch& batch, float* scores, int64_t* options, int64_t* exits);

  private:
    struct Arena {
        Memory maps, vectors;
    };
    // What belongs to one size of images.
    struct Sized {
        std::vector<Shape> shapes;
        Layout layout;
        std::vector<std::vector<Arena>>
            arenas;   // of every thread: one for every image that it runs at a time
        Memory sums;  // of a crew
        int64_t sums_step = 0;
    };

    Sized& sized(int64_t height, int64_t width);
    Network network(const Sized& sized) const;
    Arena& arena(Sized& sized, int rank, size_t index) const;
    void run_images(Sized& sized, const Batch& batch, float* scores, int64_t* options, int64_t* exits);
    void run_together(Sized& sized, const Batch& batch, float* scores, int64_t* options, int64_t* exits);

    Program program_;
    const Kernels& kernels_;
    Pool weights_;
    std::vector<Packed> packed_;
    std::vector<float> scale_, shift_;
    std::vector<Memory> scratch_;  // of every thread
    Team team_;
    std::mutex mutex_;
    std::map<std::pair<int64_t, int64_t>, std::unique_ptr<Sized>> sizes_;
};

}  // namespace sidestep
