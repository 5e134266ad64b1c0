// Vectors and tiles for 32 registers of 16 numbers each: AVX-512, of any kind of numbers.

constexpr int64_t LANES = 16;
constexpr int64_t WIDE_BLOCK = 2 * CHANNEL_BLOCK;

// 16 sums; rows of 32, 16 and 8 pixels divide evenly.
using NarrowTiles = Tiles<16, 8, 4, 2, 1>;
using WideTiles = Tiles<8, 4, 2, 1>;
using SevenTiles = Tiles<14, 7>;
using DepthwiseTiles = Tiles<8, 4, 2, 1>;
using DepthwiseSevens = Tiles<7>;
using LinearTiles = Tiles<2, 1>;
