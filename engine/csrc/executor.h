// The parts of execute.cpp: what runs where, operations on maps, operations on vectors.
#pragma once

#include <utility>
#include <vector>

#include "execute.h"

namespace sidestep {

class Executor {
  public:
    Executor(const Network& network, const Crew& crew)
        : network_(network), kernels_(network.kernels), crew_(crew), places_(network.layout.places) {}

    void run(std::span<const Job> jobs);

  private:
    using Jobs = std::vector<const Job*>;

    const Place& at(int64_t id) const { return places_[id]; }
    float* vector(int64_t id) const { return (at(id).joint ? job_->joint : job_->vectors) + at(id).offset; }
    // The pixel (y, x) of a map.
    std::byte* pixel(const Place& p, int64_t y, int64_t x = 0) const {
        return job_->maps + (p.offset + p.first + y * p.row_step + x * p.channels) * kernels_.entry_size;
    }
    // This thread's rows out of a number of rows.
    std::pair<int64_t, int64_t> share(int64_t rows) const {
        return {rows * crew_.rank / crew_.size, rows * (crew_.rank + 1) / crew_.size};
    }
    // What a thread computes of a convolution: rows of the output and blocks of its channels; either all rows
    // or all blocks.
    struct Share {
        std::pair<int64_t, int64_t> rows, blocks;
        bool by_rows;
    };
    Share share(const Packed& packed, const Place& in, const Place& out) const;
    void sync() {
        if (crew_.barrier) crew_.barrier->wait();
        reading_ = writing_ = false;
    }
    static Relu closing(const Op& op, size_t i) { return {op.ints[i] != 0, op.floats[0]}; }
    Rows rows(const Place& p, int64_t count) const { return {count, p.shape.w, p.channels, p.row_step}; }

    // execute.cpp
    void start(const Jobs& jobs);
    void load(const Image& image);
    void finish(const Job& job, int64_t scores, int64_t exit);
    void choose(size_t index, const Jobs& jobs, int64_t choice);
    void leave(const Step& step, Jobs& jobs, int64_t exit);
    bool leaves(const Step& step) const;
    void all(const std::vector<Op>& ops, const Jobs& jobs);
    void one(const Op& op);
    void copy(int64_t from, int64_t to);
    void look_ahead(size_t index);

    // map_ops.cpp: every thread of a crew makes its rows; a convolution sets writing_, or wants a barrier
    void conv(const Op& op);
    void winograd(const Op& op, const Packed& packed);
    void pool(const Op& op);
    void pad(const Op& op);
    void affine(const Op& op, const float* weight, const float* bias, Relu relu);
    void add(const Op& op);
    void concat(const Op& op);
    void resize(const Op& op);
    void gap(const Op& op);
    void gap_of_crew(const Place& in, float* out);
    void flatten(const Op& op);

    // vector_ops.cpp: every thread of a crew makes all entries, but a share of those of joint vectors
    void linear(const Op& op, const Jobs& jobs);
    std::pair<int64_t, int64_t> linear_share(const Op& op) const;
    void vector_op(const Op& op);
    void gather(const Op& op, float* out);
    template <class F>
    void join(const Op& op, const F& f);

    const Network& network_;
    const Kernels& kernels_;
    const Crew& crew_;
    const std::vector<Place>& places_;
    const Job* job_ = nullptr;
    std::vector<Jobs> takers_;  // of every option of a choice
    Ahead ahead_;
    int64_t rounds_ = 0;
    // What has happened since the last barrier, the same for every thread that shares the image: maps were
    // read as a whole; rows of a map were written that only their thread may read yet.
    bool reading_ = false, writing_ = false;
};

}  // namespace sidestep
