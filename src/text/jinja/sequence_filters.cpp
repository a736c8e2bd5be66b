// Filters on sequences and dictionaries.
//
// Level 3 (text). Source: Jinja 3.1's built-in filters. map, select, reject and unique are lazy and
// can be walked once, as Python's generators.
#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

bool flag(const Value* value, bool otherwise) {
  return value == nullptr ? otherwise : truthy(*value);
}

int depth_of(const Args& args) {
  int deepest = 0;
  for (const Value& value : args.positional)
    deepest = std::max(deepest, value.depth());
  for (const auto& named : args.named)
    deepest = std::max(deepest, named.second.depth());
  return deepest;
}

/// "a.b.0" or an integer: the path that attribute= names. An undefined end gives `otherwise`.
Value by_path(Runtime& runtime, const Value& item, const Value& attribute, const Value* otherwise) {
  Value value = item;
  if (!attribute.is_string()) {
    value = get_item(runtime, item, attribute);
  } else {
    const std::string& path = attribute.as_str();
    for (size_t at = 0; at <= path.size();) {
      const size_t end = std::min(path.find('.', at), path.size());
      const std::string part = path.substr(at, end - at);
      Value key = Value::text(part);
      if (!part.empty() && part.size() < 10 &&
          std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        key = Value(static_cast<Int>(std::stol(part)));
      }
      value = get_item(runtime, value, key);
      at = end + 1;
    }
  }
  return value.is_undefined() && otherwise != nullptr ? *otherwise : value;
}

Value folded(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  return Value(value.as_text().derived(to_lower(value.as_str())));
}

/// What to sort or compare an item by: its attribute (several, with commas), case folded.
Value key_of(Runtime& runtime, const Value& item, const Value* attribute, bool case_sensitive,
             const Value* otherwise = nullptr) {
  if (attribute == nullptr || attribute->is_none()) return folded(item, case_sensitive);
  if (attribute->is_string() && attribute->as_str().find(',') != std::string::npos) {
    std::vector<Value> keys;
    const std::string comma = ",";
    for (const Value& part : split(runtime, attribute->as_text(), &comma, -1, false)) {
      keys.push_back(folded(by_path(runtime, item, part, otherwise), case_sensitive));
    }
    return Value::list(std::move(keys));
  }
  return folded(by_path(runtime, item, *attribute, otherwise), case_sensitive);
}

struct Keyed {
  Value key;
  Value item;
};

std::vector<Keyed> sorted_by_key(Runtime& runtime, std::vector<Keyed> items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    runtime.budget().step();
    return reverse ? less(b.key, a.key) : less(a.key, b.key);
  });
  return items;
}

Value items_of(std::vector<Keyed> keyed) {
  std::vector<Value> out;
  out.reserve(keyed.size());
  for (Keyed& k : keyed)
    out.push_back(std::move(k.item));
  return Value::list(std::move(out));
}

// ---- one value

Value default_filter(Runtime&, const Value& value, const Args& args) {
  const auto bound = args.bind("default", {"default_value", "boolean"});
  const bool use = value.is_undefined() || (flag(bound[1], false) && !truthy(value));
  if (!use) return value;
  return bound[0] != nullptr ? *bound[0] : Value(MarkedText());
}

Value length(Runtime&, const Value& value, const Args& args) {
  args.bind("length", {});
  return Value::of_size(length_of(value));
}

Value list(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("list", {});
  return Value::list(iterate(runtime, value));
}

Value first(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("first", {});
  if (const auto generator = value.object_as<Generator>()) {
    if (auto item = generator->next(runtime)) return std::move(*item);
  } else {
    const std::vector<Value> items = iterate(runtime, value);
    if (!items.empty()) return items.front();
  }
  return Value::undefined("No first item, sequence was empty.");
}

Value last(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("last", {});
  if (value.object_as<Generator>() != nullptr) python_error("'generator' object is not reversible");
  const std::vector<Value> items = iterate(runtime, value);
  if (!items.empty()) return items.back();
  return Value::undefined("No last item, sequence was empty.");
}

Value reverse(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("reverse", {});
  std::vector<Value> items = iterate(runtime, value);
  std::reverse(items.begin(), items.end());
  if (value.is_string()) return Value(join(runtime, MarkedText(), items, true));
  return make_object<Generator>(std::move(items));
}

Value attr(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("attr", 1, {"name"});
  const std::string name = to_text(runtime, *bound[0]).str();
  if (!value.is_dict()) return get_attribute(runtime, value, name);
  if (const auto method = find_method(value, name)) return *method;
  return Value::undefined(fmt::format("'dict object' has no attribute '{}'", name));
}

Value items(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("items", {});
  if (value.is_undefined()) return make_object<Generator>(std::vector<Value>());
  if (!value.is_dict()) python_error("Can only get item pairs from a mapping.");
  std::vector<Value> pairs;
  runtime.budget().make_items(4 * value.as_dict().entries.size());
  for (const auto& [k, v] : value.as_dict().entries)
    pairs.push_back(Value::tuple({k, v}));
  return make_object<Generator>(std::move(pairs));
}

Value dictsort(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const std::string by = bound[1] != nullptr ? to_text(runtime, *bound[1]).str() : "key";
  if (by != "key" && by != "value")
    python_error("You can only sort by either \"key\" or \"value\"");
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_dict()) python_error("'{}' object has no attribute 'items'", type_name(value));
  std::vector<Keyed> keyed;
  for (const auto& [k, v] : value.as_dict().entries) {
    keyed.push_back({folded(by == "key" ? k : v, flag(bound[0], false)), Value::tuple({k, v})});
  }
  return items_of(sorted_by_key(runtime, std::move(keyed), flag(bound[2], false)));
}

// ---- whole sequences

Value join_filter(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("join", {"d", "attribute"});
  std::vector<Value> items = iterate(runtime, value);
  if (bound[1] != nullptr && !bound[1]->is_none()) {
    for (Value& item : items)
      item = by_path(runtime, item, *bound[1], nullptr);
  }
  const MarkedText separator = bound[0] != nullptr ? to_text(runtime, *bound[0]) : MarkedText();
  return Value(join(runtime, separator, items, /*any_type=*/true));
}

Value sort(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<Keyed> keyed;
  for (Value& item : iterate(runtime, value)) {
    Value key = key_of(runtime, item, bound[2], flag(bound[1], false));
    keyed.push_back({std::move(key), std::move(item)});
  }
  return items_of(sorted_by_key(runtime, std::move(keyed), flag(bound[0], false)));
}

template <bool largest>
Value extreme(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind(largest ? "max" : "min", {"case_sensitive", "attribute"});
  const std::vector<Value> items = iterate(runtime, value);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const auto key = [&](const Value& item) {
    return key_of(runtime, item, bound[1], flag(bound[0], false));
  };
  Value best = items[0];
  Value best_key = key(best);
  for (size_t i = 1; i < items.size(); ++i) {
    Value k = key(items[i]);
    if (largest ? less(best_key, k) : less(k, best_key)) {
      best = items[i];
      best_key = std::move(k);
    }
  }
  return best;
}

Value sum(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("sum", {"attribute", "start"});
  Value total = bound[1] != nullptr ? *bound[1] : Value(Int{0});
  if (total.is_string()) python_error("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : iterate(runtime, value)) {
    const bool by = bound[0] != nullptr && !bound[0]->is_none();
    total = binary(runtime, BinaryOp::kAdd, total,
                   by ? by_path(runtime, item, *bound[0], nullptr) : item);
  }
  return total;
}

Value unique(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("unique", {"case_sensitive", "attribute"});
  Dict seen;
  std::vector<Value> out;
  for (Value& item : iterate(runtime, value)) {
    const Value key = key_of(runtime, item, bound[1], flag(bound[0], false));
    if (!key.is_string()) runtime.budget().step(1 + seen.entries.size());
    if (seen.find(key) != nullptr) continue;
    seen.set(key, Value());
    out.push_back(std::move(item));
  }
  return make_object<Generator>(std::move(out));
}

Value groupby(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("groupby", 1, {"attribute", "default", "case_sensitive"});
  const bool case_sensitive = flag(bound[2], false);
  std::vector<Keyed> keyed;
  for (Value& item : iterate(runtime, value)) {
    Value key = key_of(runtime, item, bound[0], case_sensitive, bound[1]);
    keyed.push_back({std::move(key), std::move(item)});
  }
  keyed = sorted_by_key(runtime, std::move(keyed), false);
  std::vector<Value> groups;
  for (size_t i = 0; i < keyed.size();) {
    std::vector<Value> members;
    size_t j = i;
    for (; j < keyed.size() && equal(keyed[j].key, keyed[i].key); ++j)
      members.push_back(keyed[j].item);
    // Without case the group is named by its first member's own spelling.
    Value name = key_of(runtime, keyed[i].item, bound[0], true, bound[1]);
    groups.push_back(Value::group(std::move(name), Value::list(std::move(members))));
    i = j;
  }
  return Value::list(std::move(groups));
}

size_t checked_count(Runtime& runtime, const Value& value) {
  const auto n = value.as_int();
  if (!n || *n <= 0) python_error("a positive number of items is needed");
  const auto count = static_cast<size_t>(std::min<Int>(*n, Int{1} << 40));
  runtime.budget().make_items(count);
  return count;
}

Value batch(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("batch", 1, {"linecount", "fill_with"});
  const size_t size = checked_count(runtime, *bound[0]);
  std::vector<Value> rows;
  std::vector<Value> row;
  for (Value& item : iterate(runtime, value)) {
    row.push_back(std::move(item));
    if (row.size() == size) rows.push_back(Value::list(std::exchange(row, {})));
  }
  if (!row.empty()) {
    if (bound[1] != nullptr && !bound[1]->is_none()) row.resize(size, *bound[1]);
    rows.push_back(Value::list(std::move(row)));
  }
  return make_object<Generator>(std::move(rows));
}

Value slice(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("slice", 1, {"slices", "fill_with"});
  const size_t slices = checked_count(runtime, *bound[0]);
  const std::vector<Value> items = iterate(runtime, value);
  const size_t each = items.size() / slices;
  const size_t longer = items.size() % slices;
  std::vector<Value> rows;
  size_t at = 0;
  for (size_t i = 0; i < slices; ++i) {
    const size_t n = each + (i < longer ? 1 : 0);
    const auto from = items.begin() + static_cast<std::ptrdiff_t>(at);
    std::vector<Value> row(from, from + static_cast<std::ptrdiff_t>(n));
    if (bound[1] != nullptr && !bound[1]->is_none() && i >= longer) row.push_back(*bound[1]);
    rows.push_back(Value::list(std::move(row)));
    at += n;
  }
  return make_object<Generator>(std::move(rows));
}

// ---- map and select

Value map(Runtime& runtime, const Value& value, const Args& args) {
  const int captured = depth_of(args);
  if (args.positional.empty()) {
    const auto bound = args.bind("map", {"filter", "attribute", "default"});
    if (bound[1] == nullptr) python_error("map requires a filter argument");
    const std::optional<Value> otherwise =
        bound[2] != nullptr ? std::optional<Value>(*bound[2]) : std::nullopt;
    return make_object<Generator>(
        iterate(runtime, value),
        [attribute = *bound[1], otherwise](Runtime& r, const Value& item) -> std::optional<Value> {
          return by_path(r, item, attribute, otherwise ? &*otherwise : nullptr);
        },
        captured);
  }
  Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  return make_object<Generator>(
      iterate(runtime, value),
      [name = to_text(runtime, args.positional[0]).str(), rest](Runtime& r, const Value& item)
          -> std::optional<Value> { return apply_filter(r, name, item, rest); },
      captured);
}

/// select, reject (by_attribute: selectattr, rejectattr): keeps what tests as `wanted`.
template <bool by_attribute, bool wanted>
Value select(Runtime& runtime, const Value& value, const Args& args) {
  const size_t skip = by_attribute ? 1 : 0;
  if (args.positional.size() < skip) python_error("Missing parameter for attribute name");
  const bool has_test = args.positional.size() > skip;
  const std::string name = has_test ? to_text(runtime, args.positional[skip]).str() : "";
  Args rest;
  if (has_test) {
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(skip) + 1,
                           args.positional.end());
  }
  rest.named = args.named;
  const Value attribute = by_attribute ? args.positional[0] : Value();
  return make_object<Generator>(
      iterate(runtime, value),
      [=](Runtime& r, const Value& item) -> std::optional<Value> {
        const Value subject = by_attribute ? by_path(r, item, attribute, nullptr) : item;
        const bool yes = has_test ? apply_test(r, name, subject, rest) : truthy(subject);
        return yes == wanted ? std::optional<Value>(item) : std::nullopt;
      },
      depth_of(args));
}

}  // namespace

const std::vector<NamedFilter>& sequence_filters() {
  static const std::vector<NamedFilter> filters = {
      {"default", default_filter},
      {"d", default_filter},
      {"length", length},
      {"count", length},
      {"list", list},
      {"first", first},
      {"last", last},
      {"reverse", reverse},
      {"attr", attr},
      {"items", items},
      {"dictsort", dictsort},
      {"join", join_filter},
      {"sort", sort},
      {"max", extreme<true>},
      {"min", extreme<false>},
      {"sum", sum},
      {"unique", unique},
      {"groupby", groupby},
      {"batch", batch},
      {"slice", slice},
      {"map", map},
      {"select", select<false, true>},
      {"reject", select<false, false>},
      {"selectattr", select<true, true>},
      {"rejectattr", select<true, false>},
  };
  return filters;
}

Filter find_filter(std::string_view name) {
  for (const auto* table : {&string_filters(), &sequence_filters()}) {
    for (const NamedFilter& filter : *table) {
      if (filter.name == name) return filter.body;
    }
  }
  return nullptr;
}

Value apply_filter(Runtime& runtime, std::string_view name, const Value& value, const Args& args) {
  const Filter filter = find_filter(name);
  if (filter == nullptr) python_error("No filter named '{}' found.", name);
  charge_walk(value);
  Value result = filter(runtime, value, args);
  if (result.is_string()) runtime.budget().make_bytes(result.as_text().size());
  return result;
}

}  // namespace qw::jinja
