// Memory that convolutions prefetch while they compute: the weights of the next router, of which there are
// more than a core's cache keeps and each is read once per image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sidestep {

constexpr int64_t CACHE_LINE = 64;

// Regions of memory, which are prefetched one after the other.
class PrefetchQueue {
  public:
    void clear() {
        regions_.clear();
        first_ = 0;
    }
    void add(const std::byte* at, size_t bytes) {
        if (bytes) regions_.push_back({reinterpret_cast<const char*>(at), bytes});
    }

    // The next line to prefetch and the bytes from one to the next. Without regions it is always the same
    // one, so that kernels need not check. A kernel may prefetch lines behind a region; it should not many.
    const char* next() const { return done() ? NOTHING : regions_[first_].at; }
    int64_t step() const { return done() ? 0 : CACHE_LINE; }

    // Takes back how far a kernel came.
    void advance(const char* until) {
        if (done()) return;
        auto& [at, bytes] = regions_[first_];
        const auto lines = static_cast<size_t>(until - at);
        if (lines >= bytes)
            ++first_;
        else
            at += lines, bytes -= lines;
    }

  private:
    struct Region {
        const char* at;
        size_t bytes;
    };
    bool done() const { return first_ == regions_.size(); }

    static constexpr char NOTHING[CACHE_LINE] = {};
    std::vector<Region> regions_;
    size_t first_ = 0;
};

}  // namespace sidestep
