// What Python sees: a builder of programs, and the engine. The package around it reads plans and speaks to
// users.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sidestep {

namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ints = std::vector<int64_t>;

template <class T, class... Shape>
using Array = nb::ndarray<T, nb::numpy, Shape..., nb::c_contig, nb::device::cpu>;

// Collects a program op by op, in the order in which it runs.
class Builder {
  public:
    Builder(int64_t channels, std::vector<float> mean, std::vector<float> std, int64_t num_values) {
        program_.channels = channels;
        program_.mean = std::move(mean);
        program_.std = std::move(std);
        program_.num_values = num_values;
    }

    int64_t tensor(const Floats& array) {
        Tensor tensor;
        for (size_t i = 0; i < array.ndim(); ++i)
            tensor.shape.push_back(static_cast<int64_t>(array.shape(i)));
        tensor.data.assign(array.data(), array.data() + array.size());
        program_.tensors.push_back(std::move(tensor));
        return static_cast<int64_t>(program_.tensors.size()) - 1;
    }

    void op(const std::string& kind, Ints in, int64_t out, Ints ints, std::vector<float> floats,
            int64_t weight, int64_t bias) {
        Op op{kind_of(kind), std::move(in), out, std::move(ints), std::move(floats), weight, bias};
        if (in_choice_) {
            if (program_.steps.back().options.empty())
                throw PlanError("an op of a choice must be in an option");
            program_.steps.back().options.back().ops.push_back(std::move(op));
            return;
        }
        if (program_.steps.empty() || program_.steps.back().kind != StepKind::run)
            program_.steps.emplace_back();
        program_.steps.back().ops.push_back(std::move(op));
    }

    void choose(int64_t scores, Ints defines) {
        Step& step = program_.steps.emplace_back();
        step.kind = StepKind::choose;
        step.value = scores;
        step.defines = std::move(defines);
        ++program_.num_choices;
        in_choice_ = true;
    }

    void option(Ints results) {
        if (!in_choice_) throw PlanError("an option must be in a choice");
        program_.steps.back().options.emplace_back().results = std::move(results);
    }

    void end_choice() { in_choice_ = false; }

    void leave(int64_t logits, int64_t criterion, float threshold, float temperature) {
        Step& step = program_.steps.emplace_back();
        step.kind = StepKind::leave;
        step.value = logits;
        step.criterion = static_cast<Criterion>(criterion);
        step.threshold = threshold;
        step.temperature = temperature;
        ++program_.num_exits;
    }

    std::unique_ptr<Engine> build(int64_t output, const std::string& precision, const std::string& isa,
                                  int num_threads) const {
        Program program = program_;
        program.output = output;
        return std::make_unique<Engine>(std::move(program), precision, isa, num_threads);
    }

  private:
    Program program_;
    bool in_choice_ = false;
};

void run(Engine& engine, const Batch& batch, Array<float, nb::ndim<2>>& scores,
         Array<int64_t, nb::ndim<2>>& options, Array<int64_t, nb::ndim<1>>& exits) {
    const auto count = static_cast<size_t>(batch.count);
    if (scores.shape(0) != count || options.shape(0) != count || exits.shape(0) != count ||
        static_cast<int64_t>(scores.shape(1)) != engine.num_classes(batch.height, batch.width) ||
        static_cast<int64_t>(options.shape(1)) != engine.program().num_choices)
        throw PlanError("outputs do not fit the batch");
    nb::gil_scoped_release release;
    engine.run(batch, scores.data(), options.data(), exits.data());
}

void check_channels(const Engine& engine, size_t channels) {
    if (static_cast<int64_t>(channels) != engine.program().channels)
        throw PlanError("images must have " + std::to_string(engine.program().channels) + " channels, got " +
                        std::to_string(channels));
}

}  // namespace

NB_MODULE(_engine, module) {
    nb::exception<PlanError>(module, "PlanError", PyExc_ValueError);

    nb::class_<Engine>(module, "Engine")
        .def("run_planes",
             [](Engine& engine, const Array<const float, nb::ndim<4>>& images,
                Array<float, nb::ndim<2>> scores, Array<int64_t, nb::ndim<2>> options,
                Array<int64_t, nb::ndim<1>> exits) {
                 check_channels(engine, images.shape(1));
                 const Batch batch{images.data(), nullptr, static_cast<int64_t>(images.shape(0)),
                                   static_cast<int64_t>(images.shape(2)),
                                   static_cast<int64_t>(images.shape(3))};
                 run(engine, batch, scores, options, exits);
             })
        .def("run_bytes",
             [](Engine& engine, const Array<const uint8_t, nb::ndim<4>>& images,
                Array<float, nb::ndim<2>> scores, Array<int64_t, nb::ndim<2>> options,
                Array<int64_t, nb::ndim<1>> exits) {
                 check_channels(engine, images.shape(3));
                 const Batch batch{nullptr, images.data(), static_cast<int64_t>(images.shape(0)),
                                   static_cast<int64_t>(images.shape(1)),
                                   static_cast<int64_t>(images.shape(2))};
                 run(engine, batch, scores, options, exits);
             })
        .def("num_classes", &Engine::num_classes, "height"_a, "width"_a)
        .def("bytes_per_image", &Engine::bytes_per_image, "height"_a, "width"_a)
        .def_prop_ro("weight_bytes", &Engine::weight_bytes)
        .def_prop_ro("num_threads", &Engine::num_threads)
        .def_prop_ro("num_choices", [](const Engine& engine) { return engine.program().num_choices; })
        .def_prop_ro("num_exits", [](const Engine& engine) { return engine.program().num_exits; })
        .def_prop_ro("isa", [](const Engine& engine) { return std::string(engine.kernels().name); })
        .def_prop_ro("precision",
                     [](const Engine& engine) { return std::string(engine.kernels().precision); });

    nb::class_<Builder>(module, "Builder")
        .def(nb::init<int64_t, std::vector<float>, std::vector<float>, int64_t>(), "channels"_a, "mean"_a,
             "std"_a, "num_values"_a)
        .def("tensor", &Builder::tensor, "array"_a)
        .def("op", &Builder::op, "kind"_a, "inputs"_a, "out"_a, "ints"_a, "floats"_a, "weight"_a, "bias"_a)
        .def("choose", &Builder::choose, "scores"_a, "defines"_a)
        .def("option", &Builder::option, "results"_a)
        .def("end_choice", &Builder::end_choice)
        .def("leave", &Builder::leave, "logits"_a, "criterion"_a, "threshold"_a, "temperature"_a)
        .def("build", &Builder::build, "output"_a, "precision"_a, "isa"_a, "num_threads"_a);
}

}  // namespace sidestep
