#include "run/done.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>

namespace sidestep {

void say_done(int descriptor, int64_t index) {
    // A pipe takes so few bytes whole or not at all.
    while (write(descriptor, &index, sizeof index) < 0) {
        if (errno == EAGAIN) {
            pollfd room{descriptor, POLLOUT, 0};
            poll(&room, 1, -1);
        } else if (errno != EINTR) {
            return;
        }
    }
}

}  // namespace sidestep
