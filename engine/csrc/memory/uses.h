// What becomes of the values of a program, from which it follows where they lie.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "plan/program.h"

namespace sidestep {

constexpr int64_t FOREVER = std::numeric_limits<int64_t>::max();

inline bool contains(const std::vector<int64_t>& ids, int64_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// How many moments a choice's options take.
int64_t duration(const Choice& choice);

// Returns when each value is read for the last time, or -1. Time runs through all nodes in order; a choice
// takes a moment before its options and one after them, until which everything that an option reads from
// outside is kept.
std::vector<int64_t> last_uses(const Program& program);

// Returns how often every value is read, handed on by an option or given as the output.
std::vector<int64_t> count_reads(const Program& program);

// Returns the value that pixels become when they are read: the image, or the bytes that are made of it where
// nothing else reads it. The image has no place then.
int64_t image_of(const Program& program);

// Returns which values lie compactly, with less padding than other maps and the halo that their own
// convolutions need: the image and what is made of it by channel, in other sizes too. Only where nothing adds
// them to other maps or puts them in their place.
std::vector<bool> compact_values(const Program& program);

// Returns which values never lie in memory as a whole: real maps that a convolution makes and only the
// operation behind it reads, which makes bytes of them. A few rows of them are made at a time.
std::vector<bool> streamed_values(const Program& program);

}  // namespace sidestep
