// Threads that wait for work, and a barrier for those that share one image.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "cores.h"

namespace sidestep {

// Makes `size` threads wait for each other. They spin: what they wait for takes microseconds.
class Barrier {
  public:
    explicit Barrier(int size) : size_(size) {}
    void wait();

  private:
    const int size_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

// num_threads - 1 threads beside the one that calls. One job runs at a time; callers from several threads
// wait for their turn.
class Team {
  public:
    explicit Team(int num_threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls job(rank) once for every rank in [0, size()) and returns when all have returned. Rethrows the
    // first exception. A job that waits at a barrier must not throw.
    void run(const std::function<void(int)>& job);

  private:
    struct Worker {
        std::thread thread;
        bool sleeps = false;  // under the mutex
        OtherCore core;
    };

    void serve(int rank);
    template <class Called>
    void sleep(Worker& worker, const Called& called);
    void call(int rank);

    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> round_{0};
    std::atomic<int> running_{0};
    std::atomic<bool> stop_{false};
    const std::function<void(int)>* job_ = nullptr;
    std::exception_ptr error_;
    int core_ = -1;  // of the last caller
    std::vector<Worker> workers_;
};

}  // namespace sidestep
