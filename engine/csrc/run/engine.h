// A plan that is ready to run, and the threads that run it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "run/forks.h"
#include "run/network.h"

namespace sidestep {

// Pixels of a batch: one of the two is set.
struct Batch {
    const float* planes = nullptr;   // (B, C, H, W), normalised
    const uint8_t* bytes = nullptr;  // (B, H, W, C), not normalised
    int64_t count = 0, height = 0, width = 0;
};

// Paths that a batch is made to take: options (B, choices) and exits (B), or null where the network decides;
// thresholds (B, exits) by which it decides, or null for those of the program; biases (B, choices) of its
// scores, or null for none.
struct BatchPaths {
    const int64_t* options = nullptr;
    const int64_t* exits = nullptr;
    const float* thresholds = nullptr;
    const float* biases = nullptr;
};

// Where scores (B, classes), options (B, choices) and exits (B) of a batch go, and a file descriptor that
// gets the index of every image, 8 bytes, as soon as that image is done; -1 for none.
struct BatchResult {
    float* scores;
    int64_t* options;
    int64_t* exits;
    int done = -1;
};

class Engine {
  public:
    // `num_cores` are those that the threads may use together. Throws PlanError where the processor lacks the
    // precision or the instruction set, or the system the threads.
    Engine(Program program, const std::string& precision, const std::string& isa, int num_threads,
           int num_cores);

    const Program& program() const { return program_; }
    const Kernels& kernels() const { return kernels_; }
    const ByteKernels& byte_kernels() const { return byte_kernels_; }
    // Whether some of its maps or weights are bytes.
    bool quantized() const { return quantized_; }
    int num_threads() const { return num_threads_; }

    // Number of classes, for images of any size.
    int64_t num_classes(int64_t height, int64_t width);

    // Bytes of every image on its way; every thread runs 4 to MAX_ITEMS of them, weights are shared.
    size_t bytes_per_image(int64_t height, int64_t width);
    size_t weight_bytes() const;

    // Writes results. May be called from several threads at once, which then take turns.
    void run(const Batch& batch, const BatchPaths& paths, const BatchResult& result);

  private:
    // Memory of one image.
    struct ImageMemory {
        Memory maps, vectors;
    };
    // What belongs to one size of images.
    struct Workspace {
        std::vector<Shape> shapes;
        Layout layout;
        Schedule schedule;
        std::vector<std::vector<ImageMemory>> images;  // of every thread, MAX_ITEMS each
        std::vector<Memory> strips;                    // of every thread
        Memory partial_sums;                           // of threads that share an image
        int64_t partial_sums_step = 0;
    };
    // What calls change, one at a time. A child of fork() gets one of its own and leaves its parent's as it
    // is: the threads are not there, and a call may have been under way.
    struct State {
        std::mutex mutex;
        std::unique_ptr<ThreadPool> threads;  // started with the engine, in a child with its first call
        std::vector<Memory> scratch;          // of every thread
        std::map<std::pair<int64_t, int64_t>, std::unique_ptr<Workspace>> workspaces;
    };

    void start(State& state) const;
    Workspace& workspace(State& state, int64_t height, int64_t width) const;
    std::unique_ptr<Workspace> new_workspace(int64_t height, int64_t width) const;
    Network network(const Workspace& workspace) const;
    ImageMemory& image_memory(Workspace& workspace, int rank, size_t index) const;
    WorkItem work_item(const Workspace& workspace, const Batch& batch, const BatchPaths& paths,
                       const BatchResult& result, int64_t index) const;
    void run_side_by_side(State& state, Workspace& workspace, const Batch& batch, const BatchPaths& paths,
                          const BatchResult& result) const;
    void run_shared(State& state, Workspace& workspace, const Batch& batch, const BatchPaths& paths,
                    const BatchResult& result) const;

    Program program_;
    const Kernels& kernels_;
    const ByteKernels& byte_kernels_;
    MemoryPool weights_;
    std::vector<Packed> packed_;
    const bool quantized_;
    std::vector<float> scale_, shift_;
    const int num_threads_, num_cores_;
    std::unique_ptr<State> state_;
    ForkHandler fork_handler_;
};

}  // namespace sidestep
