// In which order a thread runs the operations of images of its own.
#pragma once

#include <cstddef>
#include <vector>

#include "memory/layout.h"
#include "memory/packing.h"

namespace sidestep {

// Convolutions of which some rows are made at a time, from the first to the last, and then the next rows.
// The maps between them never lie in memory as a whole.
struct Chain {
    size_t length = 1;  // nodes
    int64_t rows = 0;   // of what the last one makes
};

// Chains and groups begin with nodes, by whose indices they lie.
struct Schedule {
    std::vector<Place> places;  // as those of the layout, but for windows
    std::vector<Chain> chains;
    std::vector<size_t> groups;  // nodes that one image goes through before the next one does
    size_t window_bytes = 0;     // for the rows of a chain
};

// Returns a schedule that keeps maps in a core's cache from the operation that makes them to the one that
// reads them, where reading weights again costs less than that saves.
Schedule schedule_of(const Program& program, const std::vector<Packed>& packed, const Layout& layout);

}  // namespace sidestep
