#include "text/jinja/value.h"

#include <algorithm>

#include "text/jinja/format.h"
#include "text/jinja/operators.h"
#include "text/jinja/runtime.h"

namespace qw::jinja {
namespace {

int nested(int inner) {
  constexpr int kMaxValueDepth = 400;
  if (inner >= kMaxValueDepth) {
    raise(TemplateErrorKind::kLimit, "a value nests deeper than {} levels", kMaxValueDepth);
  }
  return inner + 1;
}

std::shared_ptr<const List> make_list(std::vector<Value> items, List::Kind kind) {
  auto list = std::make_shared<List>();
  list->depth = container_depth(items);
  list->items = std::move(items);
  list->kind = kind;
  return list;
}

}  // namespace

int container_depth(const std::vector<Value>& items) {
  int deepest = 0;
  for (const Value& item : items)
    deepest = std::max(deepest, item.depth());
  return nested(deepest);
}

Value Value::undefined(std::string message, bool security) {
  Value value;
  value.data_ = Undefined{std::make_shared<const std::string>(std::move(message)), security};
  return value;
}

Value Value::list(std::vector<Value> items) {
  return Value(make_list(std::move(items), List::Kind::kList));
}

Value Value::tuple(std::vector<Value> items) {
  return Value(make_list(std::move(items), List::Kind::kTuple));
}

Value Value::group(Value grouper, Value items) {
  return Value(make_list({std::move(grouper), std::move(items)}, List::Kind::kGroup));
}

std::optional<Int> Value::as_int() const {
  if (is_bool()) return Int{as_bool()};
  if (is_int()) return std::get<Int>(data_);
  return std::nullopt;
}

std::optional<double> Value::as_double() const {
  if (is_float()) return std::get<double>(data_);
  const auto i = as_int();
  return i ? std::optional<double>(static_cast<double>(*i)) : std::nullopt;
}

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_list()) return std::get<6>(data_) == std::get<6>(other.data_);
  if (is_dict()) return std::get<7>(data_) == std::get<7>(other.data_);
  if (is_object()) return as_object() == other.as_object();
  if (is_undefined()) return as_undefined().message == other.as_undefined().message;
  return equal(*this, other);
}

int Value::depth() const {
  if (is_list()) return as_list().depth;
  if (is_dict()) return as_dict().depth;
  if (is_object()) return as_object()->depth();
  return 0;
}

// ---- dictionaries

std::optional<size_t> Dict::index_of(std::string_view key) const {
  Budget::charge(key.size() / 64);
  if (entries.size() >= kIndexedFrom) {
    const auto found = string_index_.find(std::string(key));
    return found == string_index_.end() ? std::nullopt : std::optional<size_t>(found->second);
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].first.is_string() && entries[i].first.as_str() == key) return i;
  }
  return std::nullopt;
}

std::optional<size_t> Dict::index_of(const Value& key) const {
  if (key.is_string()) return index_of(key.as_str());
  Budget::charge(entries.size() / 8);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (equal(entries[i].first, key)) return i;
  }
  return std::nullopt;
}

namespace {

void check_hashable(const Value& key) {
  if (key.is_dict() || (key.is_list() && key.as_list().kind == List::Kind::kList)) {
    python_error("unhashable type: '{}'", type_name(key));
  }
  if (key.is_list()) {
    Budget::charge(key.as_list().items.size());
    for (const Value& item : key.as_list().items)
      check_hashable(item);
  }
}

}  // namespace

void Dict::set(Value key, Value value) {
  check_hashable(key);
  depth = std::max(depth, nested(std::max(key.depth(), value.depth())));
  if (const auto at = index_of(key)) {
    entries[*at].second = std::move(value);
    return;
  }
  const size_t at = entries.size();
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() == kIndexedFrom) {
    for (size_t i = 0; i < entries.size(); ++i) {
      if (entries[i].first.is_string()) string_index_.emplace(entries[i].first.as_str(), i);
    }
  } else if (entries.size() > kIndexedFrom && entries[at].first.is_string()) {
    string_index_.emplace(entries[at].first.as_str(), at);
  }
}

const Value* Dict::find(const Value& key) const {
  check_hashable(key);
  const auto at = index_of(key);
  return at ? &entries[*at].second : nullptr;
}

const Value* Dict::find(std::string_view key) const {
  const auto at = index_of(key);
  return at ? &entries[*at].second : nullptr;
}

Value make_dict(Dict dict) {
  return Value(std::make_shared<const Dict>(std::move(dict)));
}

// ---- arguments

std::vector<const Value*> Args::bind(std::string_view function,
                                     std::initializer_list<std::string_view> names) const {
  return bind(function, 0, names);
}

std::vector<const Value*> Args::bind(std::string_view function, size_t required,
                                     std::initializer_list<std::string_view> names) const {
  if (positional.size() > names.size()) {
    python_error("{}() takes at most {} arguments ({} given)", function, names.size(),
                 positional.size());
  }
  std::vector<const Value*> bound(names.size(), nullptr);
  for (size_t i = 0; i < positional.size(); ++i)
    bound[i] = &positional[i];
  for (const auto& [name, value] : named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      python_error("{}() got an unexpected keyword argument '{}'", function, name);
    }
    const Value*& slot = bound[static_cast<size_t>(found - names.begin())];
    if (slot != nullptr) python_error("{}() got multiple values for argument '{}'", function, name);
    slot = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (bound[i] == nullptr) {
      python_error("{}() missing a required argument: '{}'", function, names.begin()[i]);
    }
  }
  return bound;
}

// ---- objects

Value Object::call(Runtime&, const Args&) {
  python_error("'{}' object is not callable", type_name());
}

MarkedText Object::repr(Runtime&) const {
  return MarkedText(fmt::format("<{} object>", type_name()));
}

std::optional<Value> Namespace::attribute(Runtime&, std::string_view name) {
  Budget::charge(fields_.size() / 8);
  for (const auto& [key, value] : fields_) {
    if (key == name) return value;
  }
  return std::nullopt;
}

void Namespace::set(std::string_view name, Value value) {
  Budget::charge(fields_.size() / 8);
  for (auto& [key, old] : fields_) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  fields_.emplace_back(name, std::move(value));
}

MarkedText Namespace::repr(Runtime& runtime) const {
  const Budget::Level level(runtime.budget());  // besides append_repr's: its frame is large
  Dict fields;
  for (const auto& [key, value] : fields_)
    fields.set(Value::text(key), value);
  MarkedText out("<Namespace ");
  out.append(jinja::repr(runtime, make_dict(std::move(fields))));
  out.append(">");
  return out;
}

std::optional<std::vector<Value>> Range::items(Runtime& runtime) {
  runtime.budget().make_items(size_);
  std::vector<Value> out;
  out.reserve(size_);
  for (size_t i = 0; i < size_; ++i)
    out.emplace_back(start_ + static_cast<Int>(i) * step_);
  return out;
}

std::optional<Value> Range::item(Int index) const {
  const auto size = static_cast<Int>(size_);
  if (index < 0) index += size;
  if (index < 0 || index >= size) return std::nullopt;
  return Value(start_ + index * step_);
}

MarkedText Range::repr(Runtime&) const {
  const std::string bounds = "range(" + int_to_string(start_) + ", " + int_to_string(stop_);
  return MarkedText(bounds + (step_ == 1 ? ")" : ", " + int_to_string(step_) + ")"));
}

DictView::DictView(std::string_view name, std::vector<Value> items)
    : name_(name), items_(std::move(items)), depth_(container_depth(items_)) {}

MarkedText DictView::repr(Runtime& runtime) const {
  MarkedText out(std::string(name_) + "(");
  out.append(jinja::repr(runtime, Value::list(items_)));
  out.append(")");
  return out;
}

Generator::Generator(std::vector<Value> source, Step step, int captured_depth)
    : source_(std::move(source)),
      step_(std::move(step)),
      depth_(std::max(container_depth(source_), nested(captured_depth))) {}

std::optional<Value> Generator::next(Runtime& runtime) {
  while (next_ < source_.size()) {
    runtime.budget().step();
    const Value item = source_[next_++];
    if (!step_) return item;
    if (auto made = step_(runtime, item)) return made;
  }
  return std::nullopt;
}

std::optional<std::vector<Value>> Generator::items(Runtime& runtime) {
  std::vector<Value> out;
  while (auto value = next(runtime))
    out.push_back(std::move(*value));
  return out;
}

}  // namespace qw::jinja
