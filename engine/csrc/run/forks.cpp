#include "run/forks.h"

#include <pthread.h>

#include <mutex>
#include <set>

namespace sidestep {

struct ForkHandlers {
    std::mutex mutex;
    std::set<const ForkHandler*> all;

    // Never destroyed: a process may fork until its very end.
    static ForkHandlers& get() {
        static auto* handlers = new ForkHandlers;
        static const int registered = pthread_atfork([] { get().mutex.lock(); }, [] { get().mutex.unlock(); },
                                                     [] { get().in_child(); });
        static_cast<void>(registered);
        return *handlers;
    }

    void in_child() {
        for (const ForkHandler* handler : all) handler->in_child_();
        mutex.unlock();
    }
};

ForkHandler::ForkHandler(std::function<void()> in_child) : in_child_(std::move(in_child)) {
    ForkHandlers& handlers = ForkHandlers::get();
    std::lock_guard lock(handlers.mutex);
    handlers.all.insert(this);
}

ForkHandler::~ForkHandler() {
    ForkHandlers& handlers = ForkHandlers::get();
    std::lock_guard lock(handlers.mutex);
    handlers.all.erase(this);
}

}  // namespace sidestep
