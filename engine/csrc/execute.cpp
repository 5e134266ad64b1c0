#include "execute.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "executor.h"

namespace sidestep {

void Executor::run(std::span<const Job> jobs) {
    Jobs here;
    for (const Job& job : jobs) here.push_back(&job);
    start(here);
    const Program& program = network_.program;
    int64_t choices = 0, exits = 0;
    for (size_t i = 0; i < program.steps.size() && !here.empty(); ++i) {
        const Step& step = program.steps[i];
        if (step.kind == StepKind::run) all(step.ops, here);
        if (step.kind == StepKind::choose) choose(i, here, choices++);
        if (step.kind == StepKind::leave) leave(step, here, exits++);
    }
    for (const Job* job : here) finish(*job, program.output, exits);
}

void Executor::start(const Jobs& jobs) {
    for (const Job* job : jobs) {
        job_ = job;
        if (!crew_.rank) std::fill_n(job->result.options, network_.program.num_choices, int64_t{-1});
        load(job->image);
    }
}

void Executor::load(const Image& image) {
    const Place& to = at(0);
    const auto [c, h, w] = to.shape;
    const auto [begin, end] = share(h);
    for (int64_t y = begin; y < end; ++y) {
        if (image.planes)
            kernels_.from_planes(image.planes + y * w, h * w, c, w, pixel(to, y), to.channels);
        else
            kernels_.from_bytes(image.bytes + y * w * c, c, w, network_.scale.data(), network_.shift.data(),
                                pixel(to, y), to.channels);
    }
    sync();
}

void Executor::finish(const Job& job, int64_t scores, int64_t exit) {
    if (crew_.rank) return;
    job_ = &job;
    std::copy_n(vector(scores), at(scores).shape.c, job.result.scores);
    *job.result.exit = exit;
}

void Executor::choose(size_t index, const Jobs& jobs, int64_t choice) {
    const Step& step = network_.program.steps[index];
    std::vector<Jobs>& takers = takers_;  // kept, so that choosing allocates nothing
    takers.resize(std::max(takers.size(), step.options.size()));
    for (Jobs& jobs_of_option : takers) jobs_of_option.clear();
    for (const Job* job : jobs) {
        job_ = job;
        const float* scores = vector(step.value);
        const int64_t option = std::max_element(scores, scores + step.options.size()) - scores;
        takers[option].push_back(job);
        if (!crew_.rank) job->result.options[choice] = option;
    }
    look_ahead(index + 1);
    for (size_t option = 0; option < step.options.size(); ++option) {
        if (takers[option].empty()) continue;
        all(step.options[option].ops, takers[option]);
        for (const auto& [from, to] : network_.layout.copies[index][option])
            for (const Job* job : takers[option]) {
                job_ = job;
                copy(from, to);
            }
    }
}

void Executor::leave(const Step& step, Jobs& jobs, int64_t exit) {
    auto left = [&](const Job* job) {
        job_ = job;
        if (!leaves(step)) return false;
        finish(*job, step.value, exit);
        return true;
    };
    std::erase_if(jobs, left);
}

bool Executor::leaves(const Step& step) const {
    const int64_t n = at(step.value).shape.c;
    const float* logits = vector(step.value);
    const float top = *std::max_element(logits, logits + n);
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double z = (logits[i] - top) / step.temperature;
        sum += std::exp(z);
        weighted += z * std::exp(z);
    }
    if (step.criterion == Criterion::entropy) return std::log(sum) - weighted / sum <= step.threshold;
    if (step.criterion == Criterion::confidence) return 1 / sum >= step.threshold;
    double second = -INFINITY;
    bool seen = false;
    for (int64_t i = 0; i < n; ++i) {
        if (logits[i] == top && !seen)
            seen = true;
        else
            second = std::max<double>(second, logits[i]);
    }
    return (1 - std::exp((second - top) / step.temperature)) / sum >= step.threshold;
}

void Executor::all(const std::vector<Op>& ops, const Jobs& jobs) {
    for (const Op& op : ops) {
        if (op.kind == Kind::linear) {
            linear(op, jobs);
            continue;
        }
        for (const Job* job : jobs) {
            job_ = job;
            one(op);
        }
    }
}

void Executor::one(const Op& op) {
    // Others may still read the whole of a map whose place this op writes to, or still write rows that this
    // op reads. Global pooling reads this thread's own rows.
    const bool reads_rows = op.kind < Kind::gap || op.kind == Kind::flatten;
    if ((reading_ && at(op.out).shape.is_map()) || (writing_ && reads_rows)) sync();
    switch (op.kind) {
        case Kind::conv: {
            conv(op);
            if (!writing_) sync();
            return;
        }
        case Kind::max_pool:
        case Kind::avg_pool: pool(op); return sync();
        case Kind::pad: pad(op); return sync();
        case Kind::affine: {
            const Packed& p = network_.packed[op.index];
            affine(op, p.factors.data(), p.bias.data(), closing(op, 0));
            return sync();
        }
        case Kind::scale: affine(op, vector(op.in[1]), nullptr, {}); return sync();
        case Kind::relu: affine(op, nullptr, nullptr, {true, op.floats[0]}); return sync();
        case Kind::add: add(op); return sync();
        case Kind::concat: concat(op); return sync();
        case Kind::resize: resize(op); return sync();
        case Kind::gap: return gap(op);
        case Kind::flatten: return flatten(op);
        default: return vector_op(op);
    }
}

void Executor::copy(int64_t from, int64_t to) {
    const Place &a = at(from), &b = at(to);
    if (!a.shape.is_map()) {
        std::copy_n(vector(from), a.shape.c, vector(to));
        return;
    }
    if (reading_ || writing_) sync();
    const auto [begin, end] = share(a.shape.h);
    for (int64_t y = begin; y < end; ++y)
        std::memcpy(pixel(b, y), pixel(a, y), a.shape.w * a.channels * kernels_.entry_size);
    sync();
}

// Notes the weights of linear layers from a step on to the next choice, as far as this thread reads them.
void Executor::look_ahead(size_t index) {
    ahead_.clear();
    const auto& steps = network_.program.steps;
    for (; index < steps.size() && steps[index].kind == StepKind::run; ++index)
        for (const Op& op : steps[index].ops)
            if (op.kind == Kind::linear) {
                const auto weight = network_.packed[op.index].weight;
                const auto [begin, end] = linear_share(op);
                const size_t each = weight.size() / at(op.out).shape.c;
                if (begin < end) ahead_.add(weight.data() + begin * each, (end - begin) * each);
            }
}

void execute(const Network& network, const Crew& crew, std::span<const Job> jobs) {
    Executor(network, crew).run(jobs);
}

}  // namespace sidestep
