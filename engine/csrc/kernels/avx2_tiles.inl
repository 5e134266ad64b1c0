// Vectors and tiles for 16 registers of 8 numbers each: AVX2, of any kind of numbers.

constexpr int64_t LANES = 8;
constexpr int64_t WIDE_BLOCK = CHANNEL_BLOCK;

// 2 x 6 sums, beside two vectors of weights and what is read of the input.
using NarrowTiles = Tiles<6, 4, 2, 1>;
using WideTiles = Tiles<1>;
using SevenTiles = Tiles<1>;
using DepthwiseTiles = Tiles<4, 2, 1>;
using DepthwiseSevens = Tiles<4, 2, 1>;
using LinearTiles = Tiles<1>;
