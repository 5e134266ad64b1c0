// Where values lie in the memory of one image.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "plan/program.h"

namespace sidestep {

// A map lies as [row][pixel][channel] with a halo of zero pixels around it, which nothing writes to: each
// place is used by maps of one shape only. Channels are padded with zeros. A zero of bytes is their zero
// point, and a place is used by maps of one zero point only. A vector lies as floats.
struct Place {
    Shape shape;
    Coding coding{};
    size_t offset = 0;      // maps: bytes from the start of the maps; vectors: floats
    size_t entry_size = 0;  // bytes
    int64_t channels = 0;   // padded
    int64_t halo = 0;
    int64_t row_step = 0;  // entries from row to row
    int64_t first = 0;     // entries from the place's start to the first pixel inside of the halo
    // Of a map that never lies in memory as a whole: rows that every thread has room for, in memory of its
    // own. 0 for all others.
    int64_t strip = 0;
    // Of a map in a chain: which of the chain's maps, and the rows of it that lie in memory at a time.
    // `first` is then from the first of these on, and halos are columns alone.
    int64_t window = NONE;
    int64_t window_rows = 0;
    // Threads that share an image make the vector together, each a part of it, in memory that all of them
    // see. Only such vectors lie there, and all threads have waited for each other since the last one was
    // read, so that none waits before writing.
    bool shared = false;
};

// A copy at the end of an option, from a value to one that its choice defines.
using Copies = std::vector<std::pair<int64_t, int64_t>>;

// Bytes of one value.
struct Fill {
    size_t offset, size;
    uint8_t value;
};

struct Layout {
    std::vector<Place> places;                // of every value
    int64_t image = 0;                        // what pixels become when they are read, see image_of
    std::vector<std::vector<Copies>> copies;  // of every step's every option
    std::vector<Fill> fills;                  // what memory of maps holds at first, where it is not 0
    size_t map_bytes = 0;
    size_t strip_bytes = 0;  // of every thread, for the rows of maps that are made strip by strip
    size_t vector_floats = 0;
};

// Returns a place for every value. Places are shared by values that are not needed at the same time; a
// skipped unit's output lies where its input lay, so that skipping moves nothing. An entry of a real map has
// `entry_size` bytes.
Layout lay_out(const Program& program, const std::vector<Shape>& shapes, size_t entry_size);

// Returns the padded number of channels of a map; a compact one of up to 4 channels is padded to 4.
int64_t padded_channels(int64_t channels, bool compact);

}  // namespace sidestep
