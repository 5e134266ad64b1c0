// Runs one image through a program.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compile.h"
#include "team.h"

namespace sidestep {

// A program, its weights in the order of one set of kernels, and where its values lie for one size of images.
struct Network {
    const Program& program;
    const std::vector<Packed>& packed;
    const Layout& layout;
    const Kernels& kernels;
    const std::vector<float>& scale;  // bytes times scale plus shift are normalised, channel by channel
    const std::vector<float>& shift;
};

// One image: float planes (C, H, W) that are normalised, or bytes (H, W, C) that are not.
struct Image {
    const float* planes = nullptr;
    const uint8_t* bytes = nullptr;
};

// What a thread works with. Threads that share an image have the same maps and joint vectors, other vectors
// of their own, and wait for each other at a barrier; each computes its share of every map's rows and of
// every joint vector, and all of every other vector.
struct Crew {
    std::byte* scratch = nullptr;  // of this thread, as much as its network's ops need
    int rank = 0;
    int size = 1;
    Barrier* barrier = nullptr;
    float* sums = nullptr;  // room for two times `size` sums of a map's padded channels
    int64_t sums_step = 0;  // floats from one to the next
};

// Where scores go, the option that was taken at every choice (-1 where the image had left before), and the
// exit at which the image left (the number of exits for those that stayed).
struct Result {
    float* scores;
    int64_t* options;
    int64_t* exit;
};

// An image on its way.
struct Job {
    Image image;
    Result result;
    std::byte* maps;
    float* vectors;
    float* joint;  // where joint vectors lie: among the vectors of the first thread
};

// The most images that are run side by side.
constexpr size_t MOST_JOBS = 4;

// Runs images through the network side by side: every weight is read once for all images that need it. A crew
// takes one image at a time.
void execute(const Network& network, const Crew& crew, std::span<const Job> jobs);

}  // namespace sidestep
