// What threads work with: a network that is ready to run, and images on their way through it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/layout.h"
#include "memory/packing.h"
#include "memory/schedule.h"
#include "run/thread_pool.h"

namespace sidestep {

// A program, its weights in the order of one set of kernels, and where its values lie for one size of images.
struct Network {
    const Program& program;
    const std::vector<Packed>& packed;
    const Layout& layout;
    const Schedule& schedule;         // of threads with images of their own
    const Kernels& kernels;           // of real maps
    const ByteKernels& bytes;         // of maps of bytes
    const std::vector<float>& scale;  // bytes times scale plus shift are normalised, channel by channel
    const std::vector<float>& shift;
};

// One image: float planes (C, H, W) that are normalised, or bytes (H, W, C) that are not.
struct Image {
    const float* planes = nullptr;
    const uint8_t* bytes = nullptr;
};

// Where scores go, the option that was taken at every choice (-1 where the image had left before), and the
// exit at which the image left (the number of exits for those that stayed). When all is there, `index` is
// written to the file descriptor `done`, if there is one.
struct Result {
    float* scores;
    int64_t* options;
    int64_t* exit;
    int done = -1;
    int64_t index = 0;
};

// What an image is made to do whatever the network decides: an option for every choice and an exit, the
// number of exits to stay to the end. Null where the network decides, which it does by thresholds of all
// exits that are the image's own, or by the program's, and with biases of all choices if there are any.
struct Path {
    const int64_t* options = nullptr;
    const int64_t* exit = nullptr;
    const float* thresholds = nullptr;
    const float* biases = nullptr;
};

// An image on its way, and its memory.
struct WorkItem {
    Image image;
    Path path;
    Result result;
    std::byte* maps;
    float* vectors;
    float* shared_vectors;  // of the first thread that works on the image
};

// One thread among those that share an image, or one alone. They have the same maps and shared vectors, other
// vectors of their own, and wait for each other at a barrier; each computes its share of every map's rows and
// of every shared vector, and all of every other vector.
struct Worker {
    std::byte* scratch = nullptr;  // of this thread, as much as its network's operations need
    std::byte* strip = nullptr;    // of this thread, for rows of a map that never lies in memory as a whole
    int rank = 0;
    int group_size = 1;
    Barrier* barrier = nullptr;
    float* partial_sums = nullptr;  // room for 2 x group_size sums of a map's padded channels
    int64_t partial_sums_step = 0;  // floats from one to the next
};

// The most images that a thread runs side by side.
constexpr size_t MAX_ITEMS = 16;

// Runs images through the network side by side: every weight is read once for all images that need it.
// Threads that share an image take one at a time.
void execute(const Network& network, const Worker& worker, std::span<const WorkItem> items);

}  // namespace sidestep
