#include "plan/json.h"

#include <cmath>
#include <sstream>

namespace sidestep {

namespace {

// Ids and settings beyond this are refused, so that no sum of a few of them overflows.
constexpr int64_t LARGEST = int64_t{1} << 31;
constexpr double LARGEST_FLOAT = 3.4e38;

std::string text_of(std::monostate) {
    return "nothing";
}
std::string text_of(bool value) {
    return value ? "true" : "false";
}
std::string text_of(const std::string& value) {
    return "'" + value + "'";
}
std::string text_of(const JsonList&) {
    return "a list";
}
std::string text_of(const JsonObject&) {
    return "an object";
}
template <class Number>
std::string text_of(Number value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

}  // namespace

std::string Json::text() const {
    return std::visit([](const auto& held) { return text_of(held); }, value);
}

const Json& entry_of(const JsonObject& object, const std::string& name) {
    static const Json nothing;
    const auto found = object.find(name);
    return found == object.end() ? nothing : found->second;
}

const JsonList& as_list(const Json& value, const std::string& name) {
    if (const auto* list = value.as<JsonList>()) return *list;
    throw PlanError(name + " must be a list, got " + value.text());
}

const JsonObject& as_object(const Json& value, const std::string& name) {
    if (const auto* object = value.as<JsonObject>()) return *object;
    throw PlanError(name + " must be an object, got " + value.text());
}

int64_t as_id(const Json& value) {
    const auto* id = value.as<int64_t>();
    if (id && *id >= -LARGEST && *id <= LARGEST) return *id;
    throw PlanError("a value must be a whole number, got " + value.text());
}

std::vector<int64_t> as_ids(const Json& value, const std::string& name) {
    std::vector<int64_t> ids;
    for (const Json& id : as_list(value, name)) ids.push_back(as_id(id));
    return ids;
}

float as_number(const Json& value, const std::string& name) {
    const auto* whole = value.as<int64_t>();
    const auto* real = value.as<double>();
    const double number = whole ? static_cast<double>(*whole) : real ? *real : INFINITY;
    if (std::abs(number) <= LARGEST_FLOAT) return static_cast<float>(number);
    throw PlanError(name + " must be a number, got " + value.text());
}

}  // namespace sidestep
