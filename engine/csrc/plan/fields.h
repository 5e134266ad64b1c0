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

enum class TensorType : uint8_t { float32, int8, uint8 };

struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> data;     // of float32
    std::vector<uint8_t> bytes;  // of uint8, and of int8 as two's complements
    TensorType type = TensorType::float32;
};
using TensorIds = std::map<std::string, int64_t>;

// The fields of operations that plans of older versions lack, where they would not be read, and the version
// that they came with.
inline constexpr std::array<std::pair<const char*, int64_t>, 14> NEW_FIELDS{{{"same", 2},
                                                                             {"activation", 2},
                                                                             {"interpolation", 2},
                                                                             {"antialias", 2},
                                                                             {"scale", 3},
                                                                             {"zero", 3},
                                                                             {"weight_scale", 3},
                                                                             {"in_scale", 3},
                                                                             {"in_zero", 3},
                                                                             {"table", 3},
                                                                             {"inner_scale", 3},
                                                                             {"inner_zero", 3},
                                                                             {"first", 4},
                                                                             {"rows", 4}}};

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
    // Nothing of the input counts but its size.
    SIZE_ONLY = 8,
};

int64_t read_value(const Json& value, const char* name);
int64_t read_tensor(const FieldSource& from, const char* name, bool required);
constexpr int64_t LARGEST_SETTING = 1 << 16;
int64_t read_whole(const Json& value, const char* name, int64_t least, std::optional<int64_t> fallback,
                   int64_t most = LARGEST_SETTING);
bool read_flag(const Json& value, const char* name);
float read_number(const Json& value, const char* name, std::optional<float> fallback);
const JsonList& read_list(const Json& value, const char* name);
[[noreturn]] void unknown_choice(const Json& value, const char* name, const std::string& known);

void check_weight(const std::vector<Tensor>& tensors, int64_t weight, size_t dimensions, bool may_be_int8);
void check_bias(const std::vector<Tensor>& tensors, int64_t bias, int64_t weight);
void check_table(const std::vector<Tensor>& tensors, int64_t table);

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

// A tensor that must be there, of float32, or of int8 too.
template <class Op>
struct Weight {
    const char* name;
    int64_t Op::* member;
    size_t dimensions;
    bool may_be_int8 = false;

    void read(const FieldSource& from, Op& op) const { op.*member = read_tensor(from, name, true); }
    void check(const std::vector<Tensor>& tensors, const Op& op) const {
        check_weight(tensors, op.*member, dimensions, may_be_int8);
    }
};
template <class Op>
Weight(const char*, int64_t Op::*, size_t, bool = false) -> Weight<Op>;

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

// A tensor of one byte for every byte, or none.
template <class Op>
struct Table {
    const char* name;
    int64_t Op::* member;

    void read(const FieldSource& from, Op& op) const { op.*member = read_tensor(from, name, false); }
    void check(const std::vector<Tensor>& tensors, const Op& op) const { check_table(tensors, op.*member); }
};
template <class Op>
Table(const char*, int64_t Op::*) -> Table<Op>;

// A whole number from `least` to `most`.
template <class Op>
struct Whole {
    const char* name;
    int64_t Op::* member;
    int64_t least;
    std::optional<int64_t> fallback = std::nullopt;
    int64_t most = LARGEST_SETTING;

    void read(const FieldSource& from, Op& op) const {
        op.*member = read_whole(from.at(name), name, least, fallback, most);
    }
};
template <class Op>
Whole(const char*, int64_t Op::*, int64_t, std::optional<int64_t> = {}, int64_t = LARGEST_SETTING)
    -> Whole<Op>;

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
