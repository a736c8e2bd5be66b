// The values of the template language: Python's, as far as templates can see them.
//
// Level 3 (text). Values are immutable and shared (the sandbox forbids changing lists and
// dictionaries), so a value graph has no cycles. Things with behaviour or identity (functions,
// loops, namespaces, generators) are Objects.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja/marked_text.h"

namespace qw::jinja {

/// Wide enough for every integer of JSON (64 bits, either sign) and sums of them; past it
/// arithmetic raises an error, where Python would go on.
__extension__ typedef __int128 Int;

class Value;
class Object;
class Runtime;
struct List;
struct Dict;

/// An absent value: prints as nothing, is false and empty, and fails with `message` otherwise.
struct Undefined {
  std::shared_ptr<const std::string> message;
  bool security = false;  // the sandbox hid it: using it is a security error
};
struct None {};

class Value {
 public:
  using Data = std::variant<Undefined, None, bool, Int, double, std::shared_ptr<const MarkedText>,
                            std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                            std::shared_ptr<Object>>;

  Value() : data_(None{}) {}
  explicit Value(bool b) : data_(b) {}
  explicit Value(Int i) : data_(i) {}
  explicit Value(double d) : data_(d) {}
  explicit Value(MarkedText text) : data_(std::make_shared<const MarkedText>(std::move(text))) {}
  explicit Value(std::shared_ptr<Object> object) : data_(std::move(object)) {}
  explicit Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}

  static Value of_size(size_t n) { return Value(static_cast<Int>(n)); }
  /// Template text (not content).
  static Value text(std::string_view s) { return Value(MarkedText(std::string(s))); }
  static Value undefined(std::string message, bool security = false);
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  /// (grouper, list) of the filter groupby: a tuple with two named fields.
  static Value group(Value grouper, Value items);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<Int>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_string() const { return data_.index() == 5; }
  bool is_list() const { return data_.index() == 6; }
  bool is_dict() const { return data_.index() == 7; }
  bool is_object() const { return data_.index() == 8; }
  bool is_number() const { return is_bool() || is_int() || is_float(); }

  const Undefined& as_undefined() const { return std::get<Undefined>(data_); }
  bool as_bool() const { return std::get<bool>(data_); }
  const MarkedText& as_text() const { return *std::get<5>(data_); }
  const std::string& as_str() const { return as_text().str(); }
  const List& as_list() const { return *std::get<6>(data_); }
  const Dict& as_dict() const { return *std::get<7>(data_); }
  const std::shared_ptr<Object>& as_object() const { return std::get<8>(data_); }
  /// The object as a T, or null.
  template <typename T>
  std::shared_ptr<T> object_as() const {
    return is_object() ? std::dynamic_pointer_cast<T>(as_object()) : nullptr;
  }

  /// Bool and int as Python's int (True is 1); nothing for other types.
  std::optional<Int> as_int() const;
  /// Bool, int and float as a double.
  std::optional<double> as_double() const;
  /// Same object, as Python's `is`, as far as it can be told.
  bool same_as(const Value& other) const;
  /// Levels of lists and dictionaries in it; a scalar has 0.
  int depth() const;

 private:
  explicit Value(std::shared_ptr<const List> list) : data_(std::move(list)) {}
  Data data_;
};

struct List {
  enum class Kind { kList, kTuple, kGroup };
  std::vector<Value> items;
  Kind kind = Kind::kList;
  int depth = 1;
};

/// Keeps the order of insertion. Keys are compared as Python's == and hash do.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

  /// Adds or replaces (the key then keeps its place). An unhashable key is a python error.
  void set(Value key, Value value);
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;

 private:
  static constexpr size_t kIndexedFrom = 8;  // below it a scan is as fast
  std::optional<size_t> index_of(const Value& key) const;
  std::optional<size_t> index_of(std::string_view key) const;
  std::unordered_map<std::string, size_t> string_index_;
};

/// The arguments of a call.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// Positions and names matched with `names`; null where not given. Too many or unknown ones are a
  /// python error that names the `function`.
  std::vector<const Value*> bind(std::string_view function,
                                 std::initializer_list<std::string_view> names) const;
  /// Like bind; the first `required` must be given.
  std::vector<const Value*> bind(std::string_view function, size_t required,
                                 std::initializer_list<std::string_view> names) const;
};

class Object {
 public:
  virtual ~Object() = default;
  /// Python's type name, for messages.
  virtual std::string_view type_name() const = 0;
  virtual bool callable() const { return false; }
  virtual Value call(Runtime& runtime, const Args& args);
  virtual std::optional<Value> attribute(Runtime&, std::string_view) { return std::nullopt; }
  /// The values iteration gives; nothing if it is not iterable. May consume the object.
  virtual std::optional<std::vector<Value>> items(Runtime&) { return std::nullopt; }
  virtual bool iterable() const { return length().has_value(); }
  virtual std::optional<size_t> length() const { return std::nullopt; }
  /// obj[i] for an index already known to be an integer.
  virtual std::optional<Value> item(Int) const { return std::nullopt; }
  virtual bool truthy() const { return length().value_or(1) != 0; }
  virtual int depth() const { return 0; }
  /// Lets go of the values held, to break cycles (see Runtime::own).
  virtual void release() {}
  virtual MarkedText repr(Runtime& runtime) const;
};

/// A native function or bound method.
class Function final : public Object {
 public:
  using Body = std::function<Value(Runtime&, const Args&)>;
  /// `captured_depth`: the depth of the values the body keeps alive.
  Function(std::string name, Body body, int captured_depth = 0)
      : name_(std::move(name)), body_(std::move(body)), depth_(captured_depth) {}
  std::string_view type_name() const override { return "function"; }
  bool callable() const override { return true; }
  Value call(Runtime& runtime, const Args& args) override { return body_(runtime, args); }
  int depth() const override { return depth_; }
  MarkedText repr(Runtime&) const override { return MarkedText("<function " + name_ + ">"); }

 private:
  std::string name_;
  Body body_;
  int depth_;
};

/// `namespace(...)`: the one thing a template may change.
class Namespace final : public Object {
 public:
  std::string_view type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(Runtime&, std::string_view name) override;
  MarkedText repr(Runtime& runtime) const override;
  void set(std::string_view name, Value value);
  void release() override { fields_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> fields_;
};

/// range(start, stop, step): at most 100000 long.
class Range final : public Object {
 public:
  Range(Int start, Int stop, Int step, size_t size)
      : start_(start), stop_(stop), step_(step), size_(size) {}
  std::string_view type_name() const override { return "range"; }
  std::optional<std::vector<Value>> items(Runtime& runtime) override;
  std::optional<size_t> length() const override { return size_; }
  std::optional<Value> item(Int index) const override;
  MarkedText repr(Runtime& runtime) const override;

 private:
  Int start_, stop_, step_;
  size_t size_;
};

/// What keys(), values() and items() of a dictionary give: iterable, with a length, no indexing.
class DictView final : public Object {
 public:
  DictView(std::string_view name, std::vector<Value> items);
  std::string_view type_name() const override { return name_; }
  std::optional<std::vector<Value>> items(Runtime&) override { return items_; }
  std::optional<size_t> length() const override { return items_.size(); }
  int depth() const override { return depth_; }
  MarkedText repr(Runtime& runtime) const override;

 private:
  std::string_view name_;
  std::vector<Value> items_;
  int depth_;
};

/// A lazy sequence that can be walked once (map, select, unique and so on). Always true, no length.
class Generator final : public Object {
 public:
  /// What becomes of one source item: a value, or nothing to leave it out.
  using Step = std::function<std::optional<Value>(Runtime&, const Value&)>;
  /// `captured_depth`: the depth of the values that `step` keeps alive.
  explicit Generator(std::vector<Value> source, Step step = nullptr, int captured_depth = 0);
  std::string_view type_name() const override { return "generator"; }
  std::optional<Value> next(Runtime& runtime);
  std::optional<std::vector<Value>> items(Runtime& runtime) override;
  bool iterable() const override { return true; }
  bool truthy() const override { return true; }
  int depth() const override { return depth_; }

 private:
  std::vector<Value> source_;
  size_t next_ = 0;
  Step step_;
  int depth_;
};

template <typename T, typename... A>
Value make_object(A&&... args) {
  return Value(std::shared_ptr<Object>(std::make_shared<T>(std::forward<A>(args)...)));
}

/// Builds a dictionary value.
Value make_dict(Dict dict);

/// 1 + the deepest of `items`; nesting past 400 levels is a limit error (so that recursion over
/// values, and their destruction, stays within the stack).
int container_depth(const std::vector<Value>& items);

}  // namespace qw::jinja
