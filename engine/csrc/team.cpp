#include "team.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sidestep {

namespace {

// Rounds of waiting before a thread gives its core away: some 20 us within a job, some 100 us between jobs,
// less than it takes to wake a thread that sleeps.
constexpr int SPIN_IN_JOB = 1 << 9;
constexpr int SPIN_BETWEEN_JOBS = 1 << 12;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

template <class Done>
bool spin(int rounds, const Done& done) {
    for (int i = 0; i < rounds; ++i) {
        if (done()) return true;
        pause();
    }
    return done();
}

}  // namespace

void Barrier::wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    auto done = [&] { return round_.load(std::memory_order_acquire) != round; };
    while (!spin(SPIN_IN_JOB, done)) std::this_thread::yield();
}

Team::Team(int num_threads) : workers_(num_threads - 1) {
    std::lock_guard lock(mutex_);
    for (int rank = 1; rank < num_threads; ++rank)
        workers_[rank - 1].thread = std::thread([this, rank] { serve(rank); });
}

Team::~Team() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (Worker& worker : workers_) worker.thread.join();
}

void Team::run(const std::function<void(int)>& job) {
    std::lock_guard turn(turn_);
    {
        std::lock_guard lock(mutex_);
        job_ = &job;
        error_ = nullptr;
        running_ = static_cast<int>(workers_.size());
        round_.fetch_add(1, std::memory_order_release);
        core_ = current_core();
        for (Worker& worker : workers_)
            if (worker.sleeps) worker.core.avoid(worker.thread, core_);
    }
    wake_.notify_all();
    call(0);
    auto done = [&] { return running_.load(std::memory_order_acquire) == 0; };
    while (!spin(SPIN_IN_JOB, done)) std::this_thread::yield();
    if (error_) std::rethrow_exception(error_);
}

void Team::call(int rank) {
    try {
        (*job_)(rank);
    } catch (...) {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
    }
}

void Team::serve(int rank) {
    Worker& worker = workers_[rank - 1];
    unsigned seen = 0;
    while (true) {
        auto called = [&] { return round_.load(std::memory_order_acquire) != seen || stop_.load(); };
        if (!spin(SPIN_BETWEEN_JOBS, called)) sleep(worker, called);
        if (stop_) return;
        seen = round_.load(std::memory_order_acquire);
        call(rank);
        running_.fetch_sub(1, std::memory_order_acq_rel);
        worker.core.release(worker.thread);
    }
}

template <class Called>
void Team::sleep(Worker& worker, const Called& called) {
    std::unique_lock lock(mutex_);
    if (called()) return;
    // Now and not when it is called, when somebody waits for it.
    worker.core.avoid(worker.thread, core_);
    worker.sleeps = true;
    wake_.wait(lock, called);
    worker.sleeps = false;
}

}  // namespace sidestep
