#include <algorithm>
#include <cstring>

#include "executor.h"

namespace sidestep {

namespace {

// How many times the maps' memory weights must have for threads to share them out. Measured on two cores:
// 6 times (64 channels, 8 x 8 pixels) it costs, 9 times (256 channels, 14 x 14 pixels) it saves.
constexpr int64_t HEAVY = 8;

}  // namespace

// Threads share out the rows of a map, or blocks of channels where the weights outweigh the maps: then each
// reads its own weights and all of the input, of which the others have made a part.
Executor::Share Executor::share(const Packed& packed, const Place& in, const Place& out) const {
    const auto blocks = static_cast<int64_t>(packed.blocks.size());
    const int64_t entries = in.shape.h * in.row_step + out.shape.h * out.row_step;
    const auto weights = static_cast<int64_t>(packed.weight.size());
    const bool heavy = weights > HEAVY * entries * kernels_.entry_size;
    if (heavy && blocks % crew_.size == 0) return {{0, out.shape.h}, share(blocks), false};
    return {share(out.shape.h), {0, blocks}, true};
}

void Executor::conv(const Op& op) {
    const Packed& packed = network_.packed[op.index];
    if (!packed.run) return winograd(op, packed);
    const Place &in = at(op.in[0]), &out = at(op.out);
    const auto [lines, blocks, by_rows] = share(packed, in, out);
    writing_ = by_rows;
    if (lines.first == lines.second || blocks.first == blocks.second) return;
    const int64_t stride = op.ints[0], padding = op.ints[1];
    ConvRows rows{};
    rows.in = pixel(in, lines.first * stride - padding, -padding);
    rows.weight = packed.weight.data();
    rows.blocks = &packed.blocks[blocks.first];
    rows.num_blocks = blocks.second - blocks.first;
    rows.bias = packed.bias.data();
    rows.residual = op.in.size() > 1 ? pixel(at(op.in[1]), lines.first) : nullptr;
    rows.out = pixel(out, lines.first);
    rows.rows = lines.second - lines.first;
    rows.pixels = out.shape.w;
    rows.kernel_rows = network_.program.tensors[op.weight].shape[2];
    rows.run = packed.run;
    rows.row_step = in.row_step;
    rows.in_row_step = stride * in.row_step;
    rows.out_row_step = out.row_step;
    rows.pixel_step = stride * in.channels;
    rows.out_step = out.channels;
    rows.relu = closing(op, 3);
    rows.ahead = &ahead_;
    kernels_.conv_rows(rows);
}

void Executor::winograd(const Op& op, const Packed& packed) {
    const Place &in = at(op.in[0]), &out = at(op.out);
    const auto [lines, blocks, by_rows] = share(packed, in, out);
    writing_ = by_rows;
    if (lines.first == lines.second || blocks.first == blocks.second) return;
    Winograd rows{};
    rows.in = pixel(in, lines.first - 1, -1);
    rows.weight = packed.weight.data();
    rows.bias = packed.bias.data();
    rows.residual = op.in.size() > 1 ? pixel(at(op.in[1]), lines.first) : nullptr;
    rows.out = pixel(out, lines.first);
    rows.scratch = crew_.scratch;
    rows.rows = lines.second - lines.first;
    rows.pixels = out.shape.w;
    rows.inputs = in.channels;
    rows.outputs = out.channels;
    rows.begin = packed.blocks[blocks.first].first;
    rows.end = packed.blocks[blocks.second - 1].first + packed.blocks[blocks.second - 1].width;
    rows.row_step = in.row_step;
    rows.out_row_step = out.row_step;
    rows.relu = closing(op, 3);
    rows.ahead = &ahead_;
    kernels_.winograd(rows);
}

void Executor::pool(const Op& op) {
    const Place &in = at(op.in[0]), &out = at(op.out);
    const bool mean = op.kind == Kind::avg_pool;
    const int64_t kernel = op.ints[0], stride = op.ints[1], padding = mean ? 0 : op.ints[2];
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y) {
        const int64_t top = std::max<int64_t>(y * stride - padding, 0);
        const int64_t bottom = std::min(y * stride - padding + kernel, in.shape.h);
        for (int64_t x = 0; x < out.shape.w; ++x) {
            const int64_t left = std::max<int64_t>(x * stride - padding, 0);
            const int64_t right = std::min(x * stride - padding + kernel, in.shape.w);
            const Rows window{bottom - top, right - left, std::min(in.channels, out.channels), in.row_step};
            kernels_.window(pixel(in, top, left), window, pixel(out, y, x), in.channels, mean);
        }
    }
}

void Executor::pad(const Op& op) {
    const Place &in = at(op.in[0]), &out = at(op.out);
    const int64_t stride = op.ints[0], size = kernels_.entry_size;
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < out.shape.w; ++x) {
            std::byte* to = pixel(out, y, x);
            std::memset(to, 0, out.channels * size);
            std::memcpy(to + op.ints[1] * size, pixel(in, y * stride, x * stride), in.shape.c * size);
        }
}

void Executor::affine(const Op& op, const float* weight, const float* bias, Relu relu) {
    const Place &in = at(op.in[0]), &out = at(op.out);
    const auto [begin, end] = share(out.shape.h);
    Rows from = rows(in, end - begin);
    from.channels = std::min(in.channels, out.channels);
    kernels_.affine(pixel(in, begin), pixel(out, begin), from, in.channels, rows(out, end - begin), weight,
                    bias, relu);
}

void Executor::add(const Op& op) {
    const Place &a = at(op.in[0]), &b = at(op.in[1]), &out = at(op.out);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y)
        kernels_.add(pixel(a, y), pixel(b, y), pixel(out, y), out.shape.w * out.channels, closing(op, 0));
}

void Executor::concat(const Op& op) {
    const Place& out = at(op.out);
    const int64_t size = kernels_.entry_size;
    const auto [begin, end] = share(out.shape.h);
    int64_t first = 0;
    for (int64_t id : op.in) {
        const Place& in = at(id);
        for (int64_t y = begin; y < end; ++y)
            for (int64_t x = 0; x < out.shape.w; ++x)
                std::memcpy(pixel(out, y, x) + first * size, pixel(in, y, x), in.shape.c * size);
        first += in.shape.c;
    }
}

// Bilinear, as PyTorch: positions of pixel centres, or of corners with align_corners.
void Executor::resize(const Op& op) {
    const Place &in = at(op.in[0]), &out = at(op.out);
    const bool corners = op.ints[2];
    auto source = [&](int64_t i, int64_t to, int64_t from) {
        if (corners) return to > 1 ? static_cast<float>(i) * (from - 1) / (to - 1) : 0.0f;
        return std::max((i + 0.5f) * from / to - 0.5f, 0.0f);
    };
    const int64_t channels = std::min(in.channels, out.channels);
    std::vector<float> part(channels), sum(out.channels);
    const auto [begin, end] = share(out.shape.h);
    for (int64_t y = begin; y < end; ++y) {
        const float sy = source(y, out.shape.h, in.shape.h);
        for (int64_t x = 0; x < out.shape.w; ++x) {
            const float sx = source(x, out.shape.w, in.shape.w);
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (int64_t corner = 0; corner < 4; ++corner) {
                const auto y0 = static_cast<int64_t>(sy), x0 = static_cast<int64_t>(sx);
                const int64_t cy = std::min(y0 + corner / 2, in.shape.h - 1);
                const int64_t cx = std::min(x0 + corner % 2, in.shape.w - 1);
                const float fy = corner / 2 ? sy - y0 : 1 - (sy - y0),
                            fx = corner % 2 ? sx - x0 : 1 - (sx - x0);
                kernels_.to_floats(pixel(in, cy, cx), channels, part.data());
                for (int64_t c = 0; c < channels; ++c) sum[c] += fy * fx * part[c];
            }
            kernels_.from_floats(sum.data(), out.channels, pixel(out, y, x));
        }
    }
}

void Executor::gap(const Op& op) {
    const Place& in = at(op.in[0]);
    float* out = vector(op.out);
    if (crew_.size == 1)
        kernels_.sum(pixel(in, 0), rows(in, in.shape.h), out);
    else
        gap_of_crew(in, out);
    const float scale = 1.0f / static_cast<float>(in.shape.h * in.shape.w);
    for (int64_t c = 0; c < in.shape.c; ++c) out[c] *= scale;
}

// Everyone sums the rows that it has written itself, since what others wrote is far from this core, and
// then adds up all sums in the same order. Room for two rounds: nobody is two barriers ahead of another.
void Executor::gap_of_crew(const Place& in, float* out) {
    float* sums = crew_.sums + (rounds_++ % 2) * crew_.size * crew_.sums_step;
    const auto [begin, end] = share(in.shape.h);
    kernels_.sum(pixel(in, begin), rows(in, end - begin), sums + crew_.rank * crew_.sums_step);
    sync();
    std::copy_n(sums, in.channels, out);
    for (int rank = 1; rank < crew_.size; ++rank)
        for (int64_t c = 0; c < in.channels; ++c) out[c] += sums[rank * crew_.sums_step + c];
}

void Executor::flatten(const Op& op) {
    const Place& in = at(op.in[0]);
    reading_ = true;
    float* out = vector(op.out);
    std::vector<float> channels(in.channels);
    for (int64_t y = 0; y < in.shape.h; ++y)
        for (int64_t x = 0; x < in.shape.w; ++x) {
            kernels_.to_floats(pixel(in, y, x), in.channels, channels.data());
            for (int64_t c = 0; c < in.shape.c; ++c) out[(c * in.shape.h + y) * in.shape.w + x] = channels[c];
        }
}

}  // namespace sidestep
