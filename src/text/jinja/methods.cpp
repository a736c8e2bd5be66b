#include "text/jinja/methods.h"

#include <algorithm>
#include <array>

#include "text/jinja/operators.h"

namespace qw::jinja {
namespace {

using Method = Value (*)(Runtime&, const Value& self, const Args&);

struct NamedMethod {
  std::string_view name;
  Method body;
};

constexpr std::array<std::string_view, 8> kListMutators{"append", "clear",   "extend", "insert",
                                                        "pop",    "reverse", "remove", "sort"};
constexpr std::array<std::string_view, 5> kDictMutators{"clear", "pop", "popitem", "setdefault",
                                                        "update"};

Value dict_get(Runtime&, const Value& self, const Args& args) {
  const auto bound = args.bind("get", 1, {"key", "default"});
  const Value* found = self.as_dict().find(*bound[0]);
  if (found != nullptr) return *found;
  return bound[1] != nullptr ? *bound[1] : Value();
}

Value dict_view(Runtime& runtime, const Value& self, const Args& args, std::string_view name,
                Value (*pick)(const std::pair<Value, Value>&)) {
  args.bind(name, {});
  std::vector<Value> items;
  runtime.budget().make_items(self.as_dict().entries.size());
  for (const auto& entry : self.as_dict().entries)
    items.push_back(pick(entry));
  return make_object<DictView>(name, std::move(items));
}

Value dict_items(Runtime& runtime, const Value& self, const Args& args) {
  return dict_view(runtime, self, args, "dict_items", [](const auto& e) {
    return Value::tuple({e.first, e.second});
  });
}

Value dict_keys(Runtime& runtime, const Value& self, const Args& args) {
  return dict_view(runtime, self, args, "dict_keys", [](const auto& e) { return e.first; });
}

Value dict_values(Runtime& runtime, const Value& self, const Args& args) {
  return dict_view(runtime, self, args, "dict_values", [](const auto& e) { return e.second; });
}

Value copy_self(Runtime&, const Value& self, const Args& args) {
  args.bind("copy", {});
  return self;  // values never change, so the object itself is as good as a copy
}

Value list_count(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("count", 1, {"value"});
  const auto& items = self.as_list().items;
  runtime.budget().step(items.size());
  return Value(static_cast<Int>(std::count_if(
      items.begin(), items.end(), [&](const Value& item) { return equal(item, *bound[0]); })));
}

Value list_index(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("index", 1, {"value"});
  const auto& items = self.as_list().items;
  runtime.budget().step(items.size());
  const auto found = std::find_if(items.begin(), items.end(),
                                  [&](const Value& item) { return equal(item, *bound[0]); });
  if (found == items.end()) python_error("the value is not in the list");
  return Value(static_cast<Int>(found - items.begin()));
}

constexpr std::array<NamedMethod, 5> kDictMethods{{{"get", dict_get},
                                                   {"items", dict_items},
                                                   {"keys", dict_keys},
                                                   {"values", dict_values},
                                                   {"copy", copy_self}}};
constexpr std::array<NamedMethod, 3> kListMethods{
    {{"count", list_count}, {"index", list_index}, {"copy", copy_self}}};

template <size_t N>
Method find_in(const std::array<NamedMethod, N>& methods, std::string_view name) {
  const auto found = std::find_if(methods.begin(), methods.end(),
                                  [&](const NamedMethod& method) { return method.name == name; });
  return found == methods.end() ? nullptr : found->body;
}

template <size_t N>
bool among(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

bool is_mutating_method(const Value& value, std::string_view name) {
  if (value.is_list() && value.as_list().kind == List::Kind::kList)
    return among(kListMutators, name);
  return value.is_dict() && among(kDictMutators, name);
}

std::optional<Value> find_method(const Value& value, std::string_view name) {
  Method method = nullptr;
  if (value.is_string()) method = find_string_method(name);
  if (value.is_dict()) method = find_in(kDictMethods, name);
  if (value.is_list()) {
    const bool is_list = value.as_list().kind == List::Kind::kList;
    if (is_list || name != "copy") method = find_in(kListMethods, name);
  }
  if (method == nullptr) return std::nullopt;
  return make_object<Function>(
      std::string(name),
      [method, value](Runtime& runtime, const Args& args) {
        charge_walk(value);
        return method(runtime, value, args);
      },
      value.depth());
}

}  // namespace qw::jinja
