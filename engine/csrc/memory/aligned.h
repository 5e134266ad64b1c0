// Memory on the boundaries of cache lines, and of large pages where it is large.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sidestep {

constexpr size_t LINE_BYTES = 64;
constexpr size_t LARGE_PAGE = size_t{2} << 20;

inline size_t rounded_bytes(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

class Memory {
  public:
    Memory() = default;

    // Zeros.
    explicit Memory(size_t bytes) : Memory(untouched(bytes)) {
        if (bytes) std::memset(data_.get(), 0, bytes);
    }

    // Not initialised: what is never touched takes no memory. Asks for large pages where they pay, since
    // looking a small one up costs as much as reading a good part of it.
    static Memory untouched(size_t bytes) {
        Memory memory;
        if (!bytes) return memory;
        const size_t alignment = bytes < LARGE_PAGE ? LINE_BYTES : LARGE_PAGE;
        const size_t rounded = rounded_bytes(bytes, alignment);
        memory.data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, rounded)));
        if (!memory.data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (alignment == LARGE_PAGE) madvise(memory.data_.get(), rounded, MADV_HUGEPAGE);
#endif
        memory.size_ = bytes;
        return memory;
    }

    std::byte* data() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    struct Free {
        void operator()(std::byte* data) const { std::free(data); }
    };
    std::unique_ptr<std::byte[], Free> data_;
    size_t size_ = 0;
};

// Hands out pieces of large blocks, which live as long as the pool.
class MemoryPool {
  public:
    // Zeros, from the start of a cache line.
    std::span<std::byte> take(size_t bytes) {
        const size_t rounded = rounded_bytes(bytes, LINE_BYTES);
        if (rounded > free_.size()) {
            blocks_.push_back(Memory::untouched(std::max(rounded, BLOCK)));
            free_ = {blocks_.back().data(), blocks_.back().size()};
        }
        const std::span<std::byte> piece = free_.first(bytes);
        free_ = free_.subspan(rounded);
        std::fill(piece.begin(), piece.end(), std::byte{});
        return piece;
    }

  private:
    static constexpr size_t BLOCK = 16 * LARGE_PAGE;
    std::vector<Memory> blocks_;
    std::span<std::byte> free_;
};

}  // namespace sidestep
