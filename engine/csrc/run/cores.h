// Where the threads of a pool wake.
#pragma once

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace sidestep {

// Returns how many cores the calling thread may use, or `otherwise` where that is not known.
int allowed_cores(int otherwise);

// Returns the number of the core that the calling thread is on, or a negative one where it is not known.
int current_core();

// Keeps a thread that sleeps from waking on the core of the one that wakes it. Left alone, a system may wake
// it there though another core is idle, and leave both there: then they take turns at every barrier, and an
// image alone takes longer than with one thread. Does nothing where there is one core, or no Linux.
class WakeAffinity {
  public:
    // Makes a thread wake on another core than `core`. Called by itself before it sleeps, or while it does.
    void avoid(std::thread& thread, int core);
    // Lets the thread use all its cores again. Called while it does not sleep.
    void release(std::thread& thread);

#if defined(__linux__)
  private:
    static constexpr int NONE = -1;

    int avoided_ = NONE;
    cpu_set_t allowed_, others_;
#endif
};

}  // namespace sidestep
