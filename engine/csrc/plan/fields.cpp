#include "plan/fields.h"

namespace sidestep {

namespace {

// "a stride", "an align_corners".
std::string with_article(const std::string& name) {
    return (std::string("aeio").find(name[0]) == std::string::npos ? "a " : "an ") + name;
}

}  // namespace

int64_t read_value(const Json& value, const char* name) {
    try {
        return as_id(value);
    } catch (const PlanError&) {
        throw PlanError("must have whole numbers as its " + std::string(name) + ", got " + value.text());
    }
}

int64_t read_tensor(const FieldSource& from, const char* name, bool required) {
    const Json& value = from.at(name);
    if (value.is_null()) {
        if (required) throw PlanError("lacks a tensor, its " + std::string(name));
        return NONE;
    }
    const auto* key = value.as<std::string>();
    const auto found = key ? from.tensors.find(*key) : from.tensors.end();
    if (found != from.tensors.end()) return found->second;
    throw PlanError("has a " + std::string(name) + ", tensor " + value.text() + ", that is not in the plan");
}

int64_t read_whole(const Json& value, const char* name, int64_t least, std::optional<int64_t> fallback,
                   int64_t most) {
    if (value.is_null() && fallback) return *fallback;
    const auto* whole = value.as<int64_t>();
    if (whole && *whole >= least && *whole <= most) return *whole;
    throw PlanError("must have " + with_article(name) + " of at least " + std::to_string(least) +
                    ", a whole number up to " + std::to_string(most) + ", got " + value.text());
}

bool read_flag(const Json& value, const char* name) {
    if (value.is_null()) return false;
    if (const auto* flag = value.as<bool>()) return *flag;
    throw PlanError("must have true or false as its " + std::string(name) + ", got " + value.text());
}

float read_number(const Json& value, const char* name, std::optional<float> fallback) {
    if (value.is_null() && fallback) return *fallback;
    try {
        return as_number(value, name);
    } catch (const PlanError&) {
        throw PlanError("must have a number as its " + std::string(name) + ", got " + value.text());
    }
}

const JsonList& read_list(const Json& value, const char* name) {
    if (const auto* list = value.as<JsonList>()) return *list;
    throw PlanError("must have a list as its " + std::string(name) + ", got " + value.text());
}

void unknown_choice(const Json& value, const char* name, const std::string& known) {
    throw PlanError("cannot be run: " + std::string(name) + " must be one of " + known + ", got " +
                    value.text());
}

void check_weight(const std::vector<Tensor>& tensors, int64_t weight, size_t dimensions, bool may_be_int8) {
    const auto& [shape, data, bytes, type] = tensors[weight];
    if (type != TensorType::float32 && !(may_be_int8 && type == TensorType::int8))
        throw PlanError(std::string("needs a weight of float32") + (may_be_int8 ? " or int8" : ""));
    if (shape.size() != dimensions)
        throw PlanError("needs a weight of " + std::to_string(dimensions) + " dimensions");
    for (int64_t size : shape)
        if (size < 1) throw PlanError("has an empty weight");
}

void check_bias(const std::vector<Tensor>& tensors, int64_t bias, int64_t weight) {
    if (bias == NONE) return;
    const auto& shape = tensors[bias].shape;
    if (shape.size() != 1 || shape[0] != tensors[weight].shape[0])
        throw PlanError("has a bias that does not fit its weight");
    if (tensors[bias].type != TensorType::float32) throw PlanError("needs a bias of float32");
}

void check_table(const std::vector<Tensor>& tensors, int64_t table) {
    if (table == NONE) return;
    if (tensors[table].type != TensorType::uint8 || tensors[table].bytes.size() != 256)
        throw PlanError("needs a table of 256 numbers of uint8");
}

}  // namespace sidestep
