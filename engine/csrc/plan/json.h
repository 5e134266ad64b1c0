// Values of a plan's JSON, as the Python package hands them over.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "plan/error.h"

namespace sidestep {

struct Json;
using JsonList = std::vector<Json>;
using JsonObject = std::map<std::string, Json>;

// Whole numbers beyond 64 bits are doubles, and infinite beyond those.
struct Json {
    std::variant<std::monostate, bool, int64_t, double, std::string, JsonList, JsonObject> value;

    bool is_null() const { return std::holds_alternative<std::monostate>(value); }
    // Null where it is another type.
    template <class T>
    const T* as() const {
        return std::get_if<T>(&value);
    }
    // For messages.
    std::string text() const;
};

// Returns the entry of an object, null where there is none.
const Json& entry_of(const JsonObject& object, const std::string& name);

// Return what a value holds, or throw PlanError with the name that the value has in the plan.
const JsonList& as_list(const Json& value, const std::string& name);
const JsonObject& as_object(const Json& value, const std::string& name);
int64_t as_id(const Json& value);
std::vector<int64_t> as_ids(const Json& value, const std::string& name);
// A number that a float holds.
float as_number(const Json& value, const std::string& name);

}  // namespace sidestep
