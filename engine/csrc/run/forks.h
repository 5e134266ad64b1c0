// What a child of fork() has to put right.
#pragma once

#include <functional>

namespace sidestep {

// Calls a function in every child that is forked while it lives. No other thread is there then, and those of
// the parent may have been anywhere: what they hold or write to is theirs.
class ForkHandler {
  public:
    explicit ForkHandler(std::function<void()> in_child);
    ~ForkHandler();
    ForkHandler(const ForkHandler&) = delete;
    ForkHandler& operator=(const ForkHandler&) = delete;

  private:
    friend struct ForkHandlers;
    const std::function<void()> in_child_;
};

}  // namespace sidestep
