// Threads that wait for work, and a barrier for those that share one image.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "run/cores.h"

namespace sidestep {

// Makes `size` threads wait for each other. They spin: what they wait for is short.
class Barrier {
  public:
    explicit Barrier(int size) : size_(size) {}
    void wait();

  private:
    const int size_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

// num_threads - 1 threads beside the one that calls. One task runs at a time; callers from several threads
// wait for their turn.
class ThreadPool {
  public:
    explicit ThreadPool(int num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // Calls task(rank) once for every rank in [0, size()) and returns when all have returned. Rethrows the
    // first exception. A task that waits at a barrier must not throw.
    void run(const std::function<void(int)>& task);

  private:
    struct PoolThread {
        std::thread thread;
        bool sleeps = false;  // under the mutex
        WakeAffinity affinity;
    };

    void serve(int rank);
    template <class Called>
    void sleep(PoolThread& thread, const Called& called);
    void call(const std::function<void(int)>& task, int rank);

    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> round_{0};
    std::atomic<int> running_{0};
    std::atomic<bool> stop_{false};
    const std::function<void(int)>* task_ = nullptr;  // of this round, for the threads that it wakes
    std::exception_ptr error_;
    int caller_core_ = -1;  // of the last caller
    std::vector<PoolThread> threads_;
};

}  // namespace sidestep
