// The global functions: range, dict, namespace, joiner, cycler, raise_exception, strftime_now.
//
// Level 3 (text). Source: Jinja 3.1's default namespace and its sandbox (which caps range at
// 100000), and the two functions that Transformers adds.
#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/operators.h"

namespace qw::jinja {
namespace {

Int integer_of(std::string_view function, const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  const auto i = value.as_int();
  if (!i)
    python_error("{}: '{}' object cannot be interpreted as an integer", function, type_name(value));
  return *i;
}

Value range(Runtime&, const Args& args) {
  constexpr Int kMaxRange = 100'000;
  constexpr Int kMaxBound = Int{1} << 100;  // so that the arithmetic below cannot overflow
  const auto bound = args.bind("range", 1, {"start", "stop", "step"});
  const bool one = bound[1] == nullptr;
  const Int start = one ? 0 : integer_of("range", *bound[0]);
  const Int stop = integer_of("range", one ? *bound[0] : *bound[1]);
  const Int step = bound[2] != nullptr ? integer_of("range", *bound[2]) : 1;
  if (step == 0) python_error("range() arg 3 must not be zero");
  for (const Int v : {start, stop, step}) {
    if (v > kMaxBound || v < -kMaxBound) python_error("range() argument too large");
  }
  const Int span = step > 0 ? stop - start : start - stop;
  const Int stride = step > 0 ? step : -step;
  const Int size = span <= 0 ? 0 : (span + stride - 1) / stride;
  if (size > kMaxRange) {
    python_error("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", kMaxRange);
  }
  return make_object<Range>(start, stop, step, static_cast<size_t>(size));
}

/// dict(mapping or pairs, key=value...): the fields in order.
Dict fields_of(Runtime& runtime, std::string_view function, const Args& args) {
  Dict dict;
  if (args.positional.size() > 1) python_error("{} expected at most 1 argument", function);
  if (!args.positional.empty()) {
    const Value& from = args.positional[0];
    if (from.is_dict()) {
      dict = from.as_dict();
    } else {
      for (const Value& pair : iterate(runtime, from)) {
        const std::vector<Value> parts = iterate(runtime, pair);
        if (parts.size() != 2)
          python_error("dictionary update sequence element has the wrong length");
        runtime.budget().step(1 + dict.entries.size() / 8);
        dict.set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [key, value] : args.named)
    dict.set(Value::text(key), value);
  return dict;
}

Value make_dictionary(Runtime& runtime, const Args& args) {
  return make_dict(fields_of(runtime, "dict", args));
}

Value make_namespace(Runtime& runtime, const Args& args) {
  auto space = std::make_shared<Namespace>();
  for (const auto& [key, value] : fields_of(runtime, "namespace", args).entries) {
    if (key.is_string()) space->set(key.as_str(), value);
  }
  runtime.own(space);
  return Value(std::shared_ptr<Object>(space));
}

/// Empty the first time, then the separator.
class Joiner final : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string_view type_name() const override { return "Joiner"; }
  bool callable() const override { return true; }
  int depth() const override { return separator_.depth(); }
  Value call(Runtime&, const Args& args) override {
    args.bind("joiner", {});
    if (used_) return separator_;
    used_ = true;
    return Value(MarkedText());
  }

 private:
  Value separator_;
  bool used_ = false;
};

Value make_joiner(Runtime&, const Args& args) {
  const auto bound = args.bind("joiner", {"sep"});
  return make_object<Joiner>(bound[0] != nullptr ? *bound[0] : Value::text(", "));
}

class Cycler final : public Object, public std::enable_shared_from_this<Cycler> {
 public:
  explicit Cycler(std::vector<Value> items)
      : items_(std::move(items)), depth_(container_depth(items_)) {}
  std::string_view type_name() const override { return "Cycler"; }
  int depth() const override { return depth_; }

  std::optional<Value> attribute(Runtime&, std::string_view name) override {
    if (name == "current") return items_[at_];
    if (name != "next" && name != "reset") return std::nullopt;
    const bool reset = name == "reset";
    return make_object<Function>(
        std::string(name),
        [self = shared_from_this(), reset](Runtime&, const Args& args) {
          args.bind("cycler", {});
          const Value current = self->items_[self->at_];
          self->at_ = reset ? 0 : (self->at_ + 1) % self->items_.size();
          return reset ? Value() : current;
        },
        depth_);
  }

 private:
  std::vector<Value> items_;
  size_t at_ = 0;
  int depth_;
};

Value make_cycler(Runtime&, const Args& args) {
  if (args.positional.empty()) python_error("at least one item has to be provided");
  return make_object<Cycler>(args.positional);
}

Value raise_exception(Runtime& runtime, const Args& args) {
  const auto bound = args.bind("raise_exception", 1, {"message"});
  throw TemplateError(TemplateErrorKind::kRaiseException, to_text(runtime, *bound[0]).str(), 0);
}

Value strftime_now(Runtime& runtime, const Args& args) {
  const auto bound = args.bind("strftime_now", 1, {"format"});
  if (bound[0]->is_undefined()) fail_undefined(*bound[0]);
  if (!bound[0]->is_string())
    python_error("strftime() argument 1 must be str, not {}", type_name(*bound[0]));
  const MarkedText& format = bound[0]->as_text();
  return Value(format.derived(format_time(runtime.now(), format.str())));
}

}  // namespace

const std::vector<std::pair<std::string_view, Value>>& global_functions() {
  static const std::vector<std::pair<std::string_view, Value>> functions = [] {
    const std::pair<std::string_view, Value (*)(Runtime&, const Args&)> bodies[] = {
        {"range", range},
        {"dict", make_dictionary},
        {"namespace", make_namespace},
        {"joiner", make_joiner},
        {"cycler", make_cycler},
        {"raise_exception", raise_exception},
        {"strftime_now", strftime_now}};
    std::vector<std::pair<std::string_view, Value>> out;
    for (const auto& [name, body] : bodies)
      out.emplace_back(name, make_object<Function>(std::string(name), body));
    return out;
  }();
  return functions;
}

}  // namespace qw::jinja
