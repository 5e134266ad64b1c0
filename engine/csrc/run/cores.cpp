#include "run/cores.h"

#if defined(__linux__)
#include <pthread.h>
#endif

namespace sidestep {

#if defined(__linux__)

int allowed_cores(int otherwise) {
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : otherwise;
}

int current_core() {
    return sched_getcpu();
}

void WakeAffinity::avoid(std::thread& thread, int core) {
    if (core == avoided_) return;
    release(thread);
    // Fails where the system has more cores than such a set holds.
    if (core < 0 || pthread_getaffinity_np(thread.native_handle(), sizeof allowed_, &allowed_) != 0) return;
    others_ = allowed_;
    CPU_CLR(core, &others_);
    if (CPU_COUNT(&others_) == 0) return;
    if (pthread_setaffinity_np(thread.native_handle(), sizeof others_, &others_) == 0) avoided_ = core;
}

void WakeAffinity::release(std::thread& thread) {
    if (avoided_ == NONE) return;
    avoided_ = NONE;
    cpu_set_t now;
    // Otherwise the user has given it other cores in the meantime.
    if (pthread_getaffinity_np(thread.native_handle(), sizeof now, &now) == 0 && CPU_EQUAL(&now, &others_))
        pthread_setaffinity_np(thread.native_handle(), sizeof allowed_, &allowed_);
}

#else

int allowed_cores(int otherwise) {
    return otherwise;
}

int current_core() {
    return -1;
}

void WakeAffinity::avoid(std::thread&, int) {}

void WakeAffinity::release(std::thread&) {}

#endif

}  // namespace sidestep
