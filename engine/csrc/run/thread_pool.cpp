#include "run/thread_pool.h"

#include <string>
#include <system_error>

#include "plan/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sidestep {

namespace {

// Rounds of waiting before a thread gives its core away: within a task, and between two, where it takes less
// time than waking a thread that sleeps.
constexpr int SPIN_IN_TASK = 1 << 9;
constexpr int SPIN_BETWEEN_TASKS = 1 << 12;

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

// Waits until done(value), where whoever makes that true notifies those that wait for the value. One that
// spins never sleeps: it would wake on the core of the one that wakes it, and both would stay there.
template <class T, class Done>
void wait_until(const std::atomic<T>& value, bool spins, const Done& done) {
    if (spins) {
        auto now = [&] { return done(value.load(std::memory_order_acquire)); };
        while (!spin(SPIN_IN_TASK, now)) std::this_thread::yield();
        return;
    }
    for (T seen = value.load(std::memory_order_acquire); !done(seen);
         seen = value.load(std::memory_order_acquire))
        value.wait(seen, std::memory_order_acquire);
}

}  // namespace

void Barrier::wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        round_.notify_all();
        return;
    }
    wait_until(round_, spins_, [&](unsigned now) { return now != round; });
}

ThreadPool::ThreadPool(int num_threads, int num_cores)
    : spins_(num_threads <= num_cores), threads_(num_threads - 1) {
    try {
        std::lock_guard lock(mutex_);
        for (int rank = 1; rank < num_threads; ++rank)
            threads_[rank - 1].thread = std::thread([this, rank] { serve(rank); });
    } catch (const std::system_error& error) {
        end();
        throw PlanError("num_threads must be as many as this system can start, got " +
                        std::to_string(num_threads) + " (" + error.what() + "); ask for fewer");
    }
}

ThreadPool::~ThreadPool() {
    end();
}

// Of threads that were started.
void ThreadPool::end() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (PoolThread& thread : threads_)
        if (thread.thread.joinable()) thread.thread.join();
}

void ThreadPool::run(const std::function<void(int)>& task) {
    std::lock_guard turn(turn_);
    {
        std::lock_guard lock(mutex_);
        task_ = &task;
        error_ = nullptr;
        running_ = static_cast<int>(threads_.size());
        round_.fetch_add(1, std::memory_order_release);
        caller_core_ = current_core();
        for (PoolThread& thread : threads_)
            if (spins_ && thread.sleeps) thread.affinity.avoid(thread.thread, caller_core_);
    }
    wake_.notify_all();
    call(task, 0);
    wait_until(running_, spins_, [](int left) { return left == 0; });
    if (error_) std::rethrow_exception(error_);
}

void ThreadPool::call(const std::function<void(int)>& task, int rank) {
    try {
        task(rank);
    } catch (...) {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
    }
}

void ThreadPool::serve(int rank) {
    PoolThread& thread = threads_[rank - 1];
    unsigned seen = 0;
    while (true) {
        auto called = [&] { return round_.load(std::memory_order_acquire) != seen || stop_.load(); };
        if (!spin(spins_ ? SPIN_BETWEEN_TASKS : 0, called)) sleep(thread, called);
        if (stop_) return;
        seen = round_.load(std::memory_order_acquire);
        call(*task_, rank);
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
        thread.affinity.release(thread.thread);
    }
}

template <class Called>
void ThreadPool::sleep(PoolThread& thread, const Called& called) {
    std::unique_lock lock(mutex_);
    if (called()) return;
    // Now and not when it is called, when somebody waits for it.
    if (spins_) thread.affinity.avoid(thread.thread, caller_core_);
    thread.sleeps = true;
    wake_.wait(lock, called);
    thread.sleeps = false;
}

}  // namespace sidestep
