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

// Makes `size` threads wait for each other. What they wait for is short, so that they spin; but where there
// are more threads than cores they sleep, since one that spins keeps another from its work.
class Barrier {
  public:
    Barrier(int size, bool spins) : size_(size), spins_(spins) {}
    void wait();

  private:
    const int size_;
    const bool spins_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

// num_threads - 1 threads beside the one that calls. One task runs at a time; callers from several threads
// wait for their turn.
class ThreadPool {
  public:
    // `num_cores` are those that the threads may use together. Throws PlanError where the system has no more
    // threads to give.
    ThreadPool(int num_threads, int num_cores);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // Whether there is a core for every thread, so that those that wait may spin.
    bool spins() const { return spins_; }

    // Calls task(rank) once for every rank in [0, size()) and returns when all have returned. Rethrows the
    // first exception. A task that waits at a barrier must not throw.
    void run(const std::function<void(int)>& task);

  private:
    struct PoolThread {
        std::thread thread;
        bool sleeps = false;  // under the mutex
        WakeAffinity affinity;
    };

    void end();
    void serve(int rank);
    template <class Called>
    void sleep(PoolThread& thread, const Called& called);
    void call(const std::function<void(int)>& task, int rank);

    const bool spins_;
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
