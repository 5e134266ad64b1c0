// Descriptions of operations' fields: how each is read from a plan, and what of it is checked. A description
// that fails throws PlanError with what follows "op NAME that makes value N".
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "plan/json.h"

namespace sidestep {

// The id of a value or tensor that an operation does without; no plan can hold it.
constexpr int64_t NONE = std::numeric_limits<int64_t>::min();

struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> data;
};
using TensorIds = std::map<std::string, int64_t>;

// What plans of version 1 lack among the fields of operations: they would not be read.
inline constexpr std::array NEW_FIELDS{"same", "activation", "interpolation", "antialias"};

// Where fields are read from.
struct FieldSource {
    const JsonObject& object;
    const TensorIds& tensors;

    const Json& at(const char* name) const { return entry_of(object, name); }
};

// What an input has to be.
enum class Form : uint8_t { map, vector };

// What else is known of an input.
enum InputFlags : unsigned {
    OPTIONAL = 1,
    // The output may lie where the input lies: each pixel is read before it is written, and never again.
    IN_PLACE = 2,
    // Threads that share an image read only the rows of the input that they have made.
    OWN_ROWS = 4,
};

int64_t read_value(const Json& value, const char* name);
int64_t read_tensor(const FieldSource& from, const char* name, bool required);
int64_t read_whole(const Json& value, const char* name, int64_t least, std::optional<int64_t> fallback);
bool read_flag(const Json& value, const char* name);
float read_number(const Json& value, const char* name, std::optional<float> fallback);
const JsonList& read_list(const Json& value, const char* name);
[[noreturn]] void unknown_choice(const Json& value, const char* name, const std::string& known);

void check_weight(const std::vector<Tensor>& tensors, int64_t weight, size_t dimensions);
void check_bias(const std::vector<Tensor>& tensors, int64_t bias, int64_t weight);

// The id of a value.
template <class Op>
struct Input {
    const char* name;
    int64_t Op::* member;
    Form form;
    unsigned flags = 0;

    void read(const FieldSource& from, Op& op) const {
        const Json& value = from.at(name);
        op.*member = value.is_null() && (flags & OPTIONAL) ? NONE : read_value(value, name);
    }
    // Calls visit(id, form, flags) for every value that is read.
    template <class Visit>
    void each_input(const Op& op, const Visit& visit) const {
        if (op.*member != NONE) visit(op.*member, form, flags);
    }
    constexpr bool reads_rows_of_others() const { return form == Form::map && !(flags & OWN_ROWS); }
};
template <class Op>
Input(const char*, int64_t Op::*, Form, unsigned = 0) -> Input<Op>;

// A list of two ids.
template <class Op>
struct InputPair {
    const char* name;
    int64_t Op::* first;
    Form first_form;
    int64_t Op::* second;
    Form second_form;
    unsigned flags = 0;

    void read(const FieldSource& from, Op& op) const {
        const JsonList& list = read_list(from.at(name), name);
        if (list.size() != 2) throw PlanError("has " + std::to_string(list.size()) + " inputs, it needs 2");
        op.*first = read_value(list[0], name);
        op.*second = read_value(list[1], name);
    }
    template <class Visit>
    void each_input(const Op& op, const Visit& visit) const {
        visit(op.*first, first_form, flags);
        visit(op.*second, second_form, flags);
    }
    constexpr bool reads_rows_of_others() const {
        return (first_form == Form::map || second_form == Form::map) && !(flags & OWN_ROWS);
    }
};

template <class Op>
InputPair(const char*, int64_t Op::*, Form, int64_t Op::*, Form, unsigned = 0) -> InputPair<Op>;

// A list of ids, at least one.
template <class Op>
struct InputList {
    const char* name;
    std::vector<int64_t> Op::* member;
    Form form;

    void read(const FieldSource& from, Op& op) const {
        for (const Json& value : read_list(from.at(name), name))
            (op.*member).push_back(read_value(value, name));
        if ((op.*member).empty()) throw PlanError("has 0 inputs, it needs at least 1");
    }
    template <class Visit>
    void each_input(const Op& op, const Visit& visit) const {
        for (int64_t id : op.*member) visit(id, form, 0u);
    }
    constexpr bool reads_rows_of_others() const { return form == Form::map; }
};
template <class Op>
InputList(const char*, std::vector<int64_t> Op::*, Form) -> InputList<Op>;

// A tensor that must be there.
template <class Op>
struct Weight {
    const char* name;
    int64_t Op::* member;
    size_t dimensions;

    void read(const FieldSource& from, Op& op) const { op.*member = read_tensor(from, name, true); }
    void check(const std::vector<Tensor>& tensors, const Op& op) const {
        check_weight(tensors, op.*member, dimensions);
    }
};
template <class Op>
Weight(const char*, int64_t Op::*, size_t) -> Weight<Op>;

// A tensor with one number for every output of the weight.
template <class Op>
struct Bias {
    const char* name;
    int64_t Op::* member;
    int64_t Op::* weight;
    bool required = false;

    void read(const FieldSource& from, Op& op) const { op.*member = read_tensor(from, name, required); }
    void check(const std::vector<Tensor>& tensors, const Op& op) const {
        check_bias(tensors, op.*member, op.*weight);
    }
};
template <class Op>
Bias(const char*, int64_t Op::*, int64_t Op::*, bool = false) -> Bias<Op>;

// A whole number from `least` to 65536.
template <class Op>
struct Whole {
    const char* name;
    int64_t Op::* member;
    int64_t least;
    std::optional<int64_t> fallback = std::nullopt;

    void read(const FieldSource& from, Op& op) const {
        op.*member = read_whole(from.at(name), name, least, fallback);
    }
};
template <class Op>
Whole(const char*, int64_t Op::*, int64_t, std::optional<int64_t> = {}) -> Whole<Op>;

// A list of whole numbers.
template <class Op>
struct WholeList {
    const char* name;
    std::vector<int64_t> Op::* member;

    void read(const FieldSource& from, Op& op) const {
        for (const Json& value : read_list(from.at(name), name))
            (op.*member).push_back(read_value(value, name));
    }
};
template <class Op>
WholeList(const char*, std::vector<int64_t> Op::*) -> WholeList<Op>;

// Height and width, 0 x 0 where they are left out.
template <class Op>
struct Size {
    const char* name;
    int64_t Op::* height;
    int64_t Op::* width;

    void read(const FieldSource& from, Op& op) const {
        if (from.at(name).is_null()) return;
        const JsonList& list = read_list(from.at(name), name);
        if (list.size() != 2) throw PlanError("must have height and width as its " + std::string(name));
        op.*height = read_whole(list[0], name, 1, {});
        op.*width = read_whole(list[1], name, 1, {});
    }
};
template <class Op>
Size(const char*, int64_t Op::*, int64_t Op::*) -> Size<Op>;

// True or false; false where it is left out.
template <class Op>
struct Flag {
    const char* name;
    bool Op::* member;

    void read(const FieldSource& from, Op& op) const { op.*member = read_flag(from.at(name), name); }
};
template <class Op>
Flag(const char*, bool Op::*) -> Flag<Op>;

// A number.
template <class Op>
struct Number {
    const char* name;
    float Op::* member;
    std::optional<float> fallback = std::nullopt;

    void read(const FieldSource& from, Op& op) const {
        op.*member = read_number(from.at(name), name, fallback);
    }
};
template <class Op>
Number(const char*, float Op::*, std::optional<float> = {}) -> Number<Op>;

template <class Enum, size_t COUNT>
using Names = std::array<std::pair<const char*, Enum>, COUNT>;

// One of some names.
template <class Op, class Enum, size_t COUNT>
struct OneOf {
    const char* name;
    Enum Op::* member;
    const Names<Enum, COUNT>& names;
    std::optional<Enum> fallback = std::nullopt;

    void read(const FieldSource& from, Op& op) const {
        if (from.at(name).is_null() && fallback) {
            op.*member = *fallback;
            return;
        }
        std::string known;
        for (const auto& [text, value] : names) {
            const auto* given = from.at(name).template as<std::string>();
            if (given && *given == text) {
                op.*member = value;
                return;
            }
            known += (known.empty() ? "" : ", ") + std::string(text);
        }
        unknown_choice(from.at(name), name, known);
    }
};
template <class Op, class Enum, size_t COUNT>
OneOf(const char*, Enum Op::*, const Names<Enum, COUNT>&, std::optional<std::type_identity_t<Enum>> = {})
    -> OneOf<Op, Enum, COUNT>;

}  // namespace sidestep
