// What Python sees: the reader of programs, the table of operations, and the engine. The package around it
// reads plan files and speaks to users.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>

#include "plan/reader.h"
#include "run/engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sidestep {

namespace {

using Numbers = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

template <class T, class... Shape>
using Array = nb::ndarray<T, nb::numpy, Shape..., nb::c_contig, nb::device::cpu>;

// Steps nest less deeply than this.
constexpr int DEEPEST = 16;

Json json_of(nb::handle value, int depth = 0);

Json whole_of(nb::handle value) {
    int overflow = 0;
    const long long whole = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (!overflow) return {static_cast<int64_t>(whole)};
    return {overflow < 0 ? -INFINITY : INFINITY};
}

std::string text_of(nb::handle value) {
    std::string text;
    if (nb::try_cast(value, text)) return text;
    throw PlanError("names in steps must be Unicode text");
}

Json list_of(nb::list list, int depth) {
    JsonList values;
    for (nb::handle value : list) values.push_back(json_of(value, depth + 1));
    return {std::move(values)};
}

Json object_of(nb::dict dict, int depth) {
    JsonObject values;
    for (auto [name, value] : dict) values.emplace(text_of(name), json_of(value, depth + 1));
    return {std::move(values)};
}

Json json_of(nb::handle value, int depth) {
    if (depth > DEEPEST) throw PlanError("steps must not nest more than 16 deep");
    if (value.is_none()) return {};
    if (nb::isinstance<nb::bool_>(value)) return {nb::cast<bool>(value)};
    if (nb::isinstance<nb::int_>(value)) return whole_of(value);
    if (nb::isinstance<nb::float_>(value)) return {nb::cast<double>(value)};
    if (nb::isinstance<nb::str>(value)) return {text_of(value)};
    if (nb::isinstance<nb::list>(value)) return list_of(nb::borrow<nb::list>(value), depth);
    if (nb::isinstance<nb::dict>(value)) return object_of(nb::borrow<nb::dict>(value), depth);
    throw PlanError("steps must be JSON, got a " + nb::cast<std::string>(nb::inst_name(value)));
}

Tensor tensor_of(const std::string& name, const Numbers& array) {
    Tensor tensor;
    for (size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(static_cast<int64_t>(array.shape(i)));
    if (array.dtype() == nb::dtype<float>()) {
        const auto* data = static_cast<const float*>(array.data());
        tensor.data.assign(data, data + array.size());
        return tensor;
    }
    const bool is_signed = array.dtype() == nb::dtype<int8_t>();
    if (!is_signed && array.dtype() != nb::dtype<uint8_t>())
        throw PlanError("tensor '" + name + "' must be float32, int8 or uint8");
    tensor.type = is_signed ? TensorType::int8 : TensorType::uint8;
    const auto* bytes = static_cast<const uint8_t*>(array.data());
    tensor.bytes.assign(bytes, bytes + array.size());
    return tensor;
}

Program program_of(int64_t version, nb::handle steps, nb::handle output, int64_t channels,
                   std::vector<float> mean, std::vector<float> std,
                   const std::map<std::string, Numbers>& arrays) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, array] : arrays) tensors.emplace(name, tensor_of(name, array));
    return read_program(version, json_of(steps), json_of(output), {channels, std::move(mean), std::move(std)},
                        std::move(tensors));
}

// The names of every operation's fields, by its name.
std::map<std::string, std::vector<std::string>> operations() {
    std::map<std::string, std::vector<std::string>> all;
    each_row([&](const auto& row) {
        std::vector<std::string>& names = all[row.name];
        names.push_back("out");
        row.each_field([&](const auto& field) { names.push_back(field.name); });
    });
    return all;
}

// What callers give where the network shall not decide: options (B, choices) and exits (B); or thresholds
// (B, exits) by which it decides, and biases (B, choices) of its scores.
using GivenOptions = std::optional<Array<const int64_t, nb::ndim<2>>>;
using GivenExits = std::optional<Array<const int64_t, nb::ndim<1>>>;
using GivenThresholds = std::optional<Array<const float, nb::ndim<2>>>;
using GivenBiases = std::optional<Array<const float, nb::ndim<2>>>;

void check_path(const Program& program, const int64_t* options, int64_t exit) {
    int64_t choices = 0, exits = 0;
    for (const Step& step : program.steps) {
        if (std::holds_alternative<Exit>(step)) ++exits;
        const auto* choice = std::get_if<Choice>(&step);
        if (!choice) continue;
        const auto count = static_cast<int64_t>(choice->options.size());
        if (const int64_t option = options[choices++]; option < 0 || option >= count)
            throw PlanError("options of a path must be from 0 to " + std::to_string(count - 1) +
                            " at choice " + std::to_string(choices - 1) + ", got " + std::to_string(option));
    }
    if (exit < 0 || exit > exits)
        throw PlanError("exits of a path must be from 0 to " + std::to_string(exits) + ", got " +
                        std::to_string(exit));
}

BatchPaths paths_of(const GivenOptions& options, const GivenExits& exits, const GivenThresholds& thresholds,
                    const GivenBiases& biases, const Program& program, int64_t count) {
    if (biases && (static_cast<int64_t>(biases->shape(0)) != count ||
                   static_cast<int64_t>(biases->shape(1)) != program.num_choices))
        throw PlanError("biases must be " + std::to_string(program.num_choices) +
                        " for every image, one for every choice");
    BatchPaths paths{.thresholds = thresholds ? thresholds->data() : nullptr,
                     .biases = biases ? biases->data() : nullptr};
    if (thresholds && (static_cast<int64_t>(thresholds->shape(0)) != count ||
                       static_cast<int64_t>(thresholds->shape(1)) != program.num_exits))
        throw PlanError("thresholds must be " + std::to_string(program.num_exits) +
                        " for every image, one for every exit but the last");
    if (!options && !exits) return paths;
    if (!options || !exits || static_cast<int64_t>(options->shape(0)) != count ||
        static_cast<int64_t>(options->shape(1)) != program.num_choices ||
        static_cast<int64_t>(exits->shape(0)) != count)
        throw PlanError("a path needs one option for every image and choice, and one exit for every image");
    for (int64_t i = 0; i < count; ++i)
        check_path(program, options->data() + i * program.num_choices, exits->data()[i]);
    paths.options = options->data();
    paths.exits = exits->data();
    return paths;
}

void run(Engine& engine, const Batch& batch, size_t channels, const BatchPaths& paths,
         const Array<float, nb::ndim<2>>& scores, const Array<int64_t, nb::ndim<2>>& options,
         const Array<int64_t, nb::ndim<1>>& exits, int done) {
    if (static_cast<int64_t>(channels) != engine.program().channels)
        throw PlanError("images must have " + std::to_string(engine.program().channels) + " channels, got " +
                        std::to_string(channels));
    const auto count = static_cast<size_t>(batch.count);
    nb::gil_scoped_release release;
    if (scores.shape(0) != count || options.shape(0) != count || exits.shape(0) != count ||
        static_cast<int64_t>(scores.shape(1)) != engine.num_classes(batch.height, batch.width) ||
        static_cast<int64_t>(options.shape(1)) != engine.program().num_choices)
        throw PlanError("outputs do not fit the batch");
    engine.run(batch, paths, {scores.data(), options.data(), exits.data(), done});
}

void run_planes(Engine& engine, const Array<const float, nb::ndim<4>>& images,
                const Array<float, nb::ndim<2>>& scores, const Array<int64_t, nb::ndim<2>>& options,
                const Array<int64_t, nb::ndim<1>>& exits, const GivenOptions& path_options,
                const GivenExits& path_exits, const GivenThresholds& thresholds, const GivenBiases& biases,
                int done) {
    const Batch batch{images.data(), nullptr, static_cast<int64_t>(images.shape(0)),
                      static_cast<int64_t>(images.shape(2)), static_cast<int64_t>(images.shape(3))};
    run(engine, batch, images.shape(1),
        paths_of(path_options, path_exits, thresholds, biases, engine.program(), batch.count), scores,
        options, exits, done);
}

void run_bytes(Engine& engine, const Array<const uint8_t, nb::ndim<4>>& images,
               const Array<float, nb::ndim<2>>& scores, const Array<int64_t, nb::ndim<2>>& options,
               const Array<int64_t, nb::ndim<1>>& exits, const GivenOptions& path_options,
               const GivenExits& path_exits, const GivenThresholds& thresholds, const GivenBiases& biases,
               int done) {
    const Batch batch{nullptr, images.data(), static_cast<int64_t>(images.shape(0)),
                      static_cast<int64_t>(images.shape(1)), static_cast<int64_t>(images.shape(2))};
    run(engine, batch, images.shape(3),
        paths_of(path_options, path_exits, thresholds, biases, engine.program(), batch.count), scores,
        options, exits, done);
}

}  // namespace

NB_MODULE(_engine, module) {
    nb::exception<PlanError>(module, "PlanError", PyExc_ValueError);

    nb::class_<Program>(module, "Program");
    module.attr("NEWEST_VERSION") = NEWEST_VERSION;
    module.def("read_program", &program_of, "version"_a, "steps"_a.none(), "output"_a.none(), "channels"_a,
               "mean"_a, "std"_a, "tensors"_a);
    module.def("operations", &operations);

    nb::class_<Engine>(module, "Engine")
        .def(nb::init<Program, const std::string&, const std::string&, int, int>(), "program"_a,
             "precision"_a, "isa"_a, "num_threads"_a, "num_cores"_a)
        .def("run_planes", &run_planes, "images"_a, "scores"_a, "options"_a, "exits"_a,
             "path_options"_a.none(), "path_exits"_a.none(), "thresholds"_a.none(), "biases"_a.none(),
             "done"_a)
        .def("run_bytes", &run_bytes, "images"_a, "scores"_a, "options"_a, "exits"_a, "path_options"_a.none(),
             "path_exits"_a.none(), "thresholds"_a.none(), "biases"_a.none(), "done"_a)
        // They wait for a call that is under way, during which other Python threads may go on.
        .def("num_classes", &Engine::num_classes, "height"_a, "width"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def("bytes_per_image", &Engine::bytes_per_image, "height"_a, "width"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("weight_bytes", &Engine::weight_bytes)
        .def_prop_ro("num_threads", &Engine::num_threads)
        .def_prop_ro("num_choices", [](const Engine& engine) { return engine.program().num_choices; })
        .def_prop_ro("quantized", &Engine::quantized)
        .def_prop_ro(
            "isa",
            [](const Engine& engine) {
                return std::string(engine.quantized() ? engine.byte_kernels().name : engine.kernels().name);
            })
        .def_prop_ro("precision",
                     [](const Engine& engine) { return std::string(engine.kernels().precision); });
}

}  // namespace sidestep
