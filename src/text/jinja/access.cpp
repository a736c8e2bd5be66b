// Length, iteration, attributes, items, slices and calls (the second half of operators.h).
//
// Level 3 (text). Attribute before item for a dot and item before attribute for brackets, as
// Jinja's Environment.getattr and getitem do; what the immutable sandbox hides is an undefined
// value whose use is a security error.
#include <algorithm>
#include <array>

#include "text/jinja/format.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

std::vector<Value> characters(Runtime& runtime, const MarkedText& text) {
  std::vector<Value> out;
  runtime.budget().make_items(4 * count_chars(text.str()));
  const std::vector<size_t> offsets = char_offsets(text.str());
  out.reserve(offsets.size());
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    out.emplace_back(text.slice(offsets[i], offsets[i + 1]));
  }
  return out;
}

std::optional<std::vector<Value>> try_iterate(Runtime& runtime, const Value& value) {
  if (value.is_undefined()) return std::vector<Value>();
  if (value.is_string()) return characters(runtime, value.as_text());
  if (value.is_list()) {
    runtime.budget().make_items(value.as_list().items.size());
    return value.as_list().items;
  }
  if (value.is_dict()) {
    std::vector<Value> keys;
    runtime.budget().make_items(value.as_dict().entries.size());
    for (const auto& entry : value.as_dict().entries)
      keys.push_back(entry.first);
    return keys;
  }
  if (value.is_object()) return value.as_object()->items(runtime);
  return std::nullopt;
}

/// What the dot finds before it looks at keys: methods and fields of the type.
std::optional<Value> own_attribute(Runtime& runtime, const Value& value, std::string_view name) {
  const bool dunder = name.size() > 4 && name.starts_with("__") && name.ends_with("__");
  if (dunder || is_mutating_method(value, name)) {
    return Value::undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(value)),
        /*security=*/true);
  }
  if (value.is_object()) return value.as_object()->attribute(runtime, name);
  if (value.is_list() && value.as_list().kind == List::Kind::kGroup) {
    if (name == "grouper") return value.as_list().items[0];
    if (name == "list") return value.as_list().items[1];
  }
  return find_method(value, name);
}

Value missing(const Value& value, std::string_view what, bool is_attribute) {
  if (is_attribute) {
    return Value::undefined(
        fmt::format("'{} object' has no attribute '{}'", type_name(value), what));
  }
  return Value::undefined(fmt::format("{} object has no element {}", type_name(value), what));
}

std::optional<Value> item_at(const Value& value, Int index) {
  if (value.is_object()) return value.as_object()->item(index);
  if (value.is_list()) {
    const auto& items = value.as_list().items;
    const auto size = static_cast<Int>(items.size());
    if (index < 0) index += size;
    if (index < 0 || index >= size) return std::nullopt;
    return items[static_cast<size_t>(index)];
  }
  if (!value.is_string()) return std::nullopt;
  const MarkedText& text = value.as_text();
  const auto bytes = static_cast<Int>(text.size());
  if (index >= bytes || index < -bytes) return std::nullopt;
  if (index < 0) index += static_cast<Int>(count_chars(text.str()));
  if (index < 0) return std::nullopt;
  const size_t begin = byte_of_char(text.str(), static_cast<size_t>(index));
  if (begin == text.size()) return std::nullopt;
  size_t length = 0;
  code_point_at(text.str(), begin, &length);
  return Value(text.slice(begin, begin + length));
}

/// obj[key] without the attribute that brackets fall back to; nothing where Python has an error.
std::optional<Value> own_item(Runtime& runtime, const Value& value, const Value& key) {
  if (value.is_dict()) {
    if (key.is_list() || key.is_dict()) return std::nullopt;
    const Value* found = value.as_dict().find(key);
    return found != nullptr ? std::optional<Value>(*found) : std::nullopt;
  }
  const auto index = key.as_int();
  if (!index) return std::nullopt;
  if (value.is_string()) runtime.budget().step(1 + value.as_text().size() / 64);
  return item_at(value, *index);
}

}  // namespace

void charge_walk(const Value& value) {
  // Decoding and looking up each character takes up to 15 ns, a step about 50.
  constexpr size_t kBytesPerStep = 8;
  if (value.is_string()) Budget::charge(value.as_text().size() / kBytesPerStep);
}

size_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) return count_chars(value.as_str());
  if (value.is_list()) return value.as_list().items.size();
  if (value.is_dict()) return value.as_dict().entries.size();
  if (value.is_object()) {
    if (const auto length = value.as_object()->length()) return *length;
  }
  python_error("object of type '{}' has no len()", type_name(value));
}

std::vector<Value> iterate(Runtime& runtime, const Value& value) {
  auto items = try_iterate(runtime, value);
  if (!items) python_error("'{}' object is not iterable", type_name(value));
  return std::move(*items);
}

bool is_iterable(Runtime&, const Value& value) {
  if (value.is_object()) return value.as_object()->iterable();
  return !value.is_none() && !value.is_number();
}

Value get_attribute(Runtime& runtime, const Value& value, std::string_view name) {
  if (value.is_undefined()) fail_undefined(value);
  if (auto found = own_attribute(runtime, value, name)) return std::move(*found);
  if (value.is_dict()) {
    if (const Value* found = value.as_dict().find(name)) return *found;
  }
  return missing(value, name, true);
}

Value get_item(Runtime& runtime, const Value& value, const Value& key) {
  if (value.is_undefined()) fail_undefined(value);
  if (auto found = own_item(runtime, value, key)) return std::move(*found);
  if (key.is_string()) {
    if (auto found = own_attribute(runtime, value, key.as_str())) return std::move(*found);
    return missing(value, key.as_str(), true);
  }
  if (key.is_int() || key.is_bool()) return missing(value, int_to_string(*key.as_int()), false);
  return missing(value, type_name(key), false);
}

namespace {

struct SliceBounds {
  Int start, step;
  size_t count;
};

std::optional<Int> bound_of(const Value& value) {
  if (value.is_none()) return std::nullopt;
  const auto bound = value.as_int();
  if (!bound) {
    python_error("slice indices must be integers or None or have an __index__ method");
  }
  return std::clamp<Int>(*bound, -(Int{1} << 62), Int{1} << 62);
}

/// As Python's slice.indices(size).
SliceBounds slice_bounds(Int size, const Value& start, const Value& stop, const Value& step) {
  const Int by = bound_of(step).value_or(1);
  if (by == 0) python_error("slice step cannot be zero");
  const Int low = by > 0 ? 0 : -1;
  const Int high = by > 0 ? size : size - 1;
  const auto clip = [&](std::optional<Int> bound, Int otherwise) {
    if (!bound) return otherwise;
    return std::clamp<Int>(*bound < 0 ? *bound + size : *bound, low, high);
  };
  const Int from = clip(bound_of(start), by > 0 ? low : high);
  const Int to = clip(bound_of(stop), by > 0 ? high : low);
  const Int span = by > 0 ? to - from : from - to;
  const Int stride = by > 0 ? by : -by;
  return {from, by, span <= 0 ? 0 : static_cast<size_t>((span + stride - 1) / stride)};
}

Value slice_text(Runtime& runtime, const MarkedText& text, const Value& start, const Value& stop,
                 const Value& step) {
  runtime.budget().make_bytes(2 * text.size());
  const std::vector<size_t> offsets = char_offsets(text.str());
  const auto bounds = slice_bounds(static_cast<Int>(offsets.size() - 1), start, stop, step);
  if (bounds.count == 0) return Value(MarkedText());
  if (bounds.step == 1) {
    const auto first = static_cast<size_t>(bounds.start);
    return Value(text.slice(offsets[first], offsets[first + bounds.count]));
  }
  MarkedText out;
  runtime.budget().step(bounds.count);
  for (size_t i = 0; i < bounds.count; ++i) {
    const auto at = static_cast<size_t>(bounds.start + static_cast<Int>(i) * bounds.step);
    out.append_slice(text, offsets[at], offsets[at + 1]);
  }
  return Value(std::move(out));
}

}  // namespace

Value get_slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
                const Value& step) {
  if (value.is_undefined()) fail_undefined(value);
  for (const Value* bound : {&start, &stop, &step}) {
    if (bound->is_undefined()) fail_undefined(*bound);
  }
  if (value.is_string()) return slice_text(runtime, value.as_text(), start, stop, step);
  const bool is_range = value.object_as<Range>() != nullptr;
  if (!value.is_list() && !is_range) {
    return missing(value, "slice", false);  // Jinja swallows the TypeError
  }
  const std::vector<Value> items = iterate(runtime, value);
  const auto bounds = slice_bounds(static_cast<Int>(items.size()), start, stop, step);
  std::vector<Value> out;
  out.reserve(bounds.count);
  for (size_t i = 0; i < bounds.count; ++i) {
    out.push_back(items[static_cast<size_t>(bounds.start + static_cast<Int>(i) * bounds.step)]);
  }
  const bool tuple = value.is_list() && value.as_list().kind != List::Kind::kList;
  return tuple ? Value::tuple(std::move(out)) : Value::list(std::move(out));
}

Value call_value(Runtime& runtime, const Value& callee, const Args& args) {
  if (callee.is_undefined()) fail_undefined(callee);
  if (!callee.is_object() || !callee.as_object()->callable()) {
    python_error("'{}' object is not callable", type_name(callee));
  }
  const Budget::Level level(runtime.budget());
  Value result = callee.as_object()->call(runtime, args);
  if (result.is_string()) runtime.budget().make_bytes(result.as_text().size());
  return result;
}

}  // namespace qw::jinja
