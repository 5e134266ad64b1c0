// Memory on the boundaries of cache lines, zero at the start.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace sidestep {

class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t bytes) : size_(bytes) {
        if (!bytes) return;
        const size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        data_.reset(static_cast<std::byte*>(std::aligned_alloc(ALIGNMENT, rounded)));
        if (!data_) throw std::bad_alloc();
        std::memset(data_.get(), 0, rounded);
    }
    std::byte* data() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    static constexpr size_t ALIGNMENT = 64;
    struct Free {
        void operator()(std::byte* data) const { std::free(data); }
    };
    std::unique_ptr<std::byte[], Free> data_;
    size_t size_ = 0;
};

}  // namespace sidestep
