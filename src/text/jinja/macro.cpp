#include "text/jinja/macro.h"

#include <algorithm>

namespace qw::jinja {

std::optional<Value> MacroObject::attribute(Runtime&, std::string_view name) {
  if (name == "name") return Value::text(name_);
  if (name != "arguments") return std::nullopt;
  std::vector<Value> names;
  for (const std::string& parameter : signature_.names)
    names.push_back(Value::text(parameter));
  return Value::tuple(std::move(names));
}

Value MacroObject::call(Runtime&, const Args& args) {
  const ScopePtr scope = interpreter_.enter(scope_);
  bind_extras(args, scope);
  bind_parameters(args, scope);
  return Value(interpreter_.capture(body_, scope));
}

void MacroObject::bind_parameters(const Args& args, const ScopePtr& scope) {
  for (size_t i = 0; i < signature_.names.size(); ++i) {
    const std::string& name = signature_.names[i];
    const auto named = std::find_if(args.named.begin(), args.named.end(),
                                    [&](const auto& arg) { return arg.first == name; });
    if (i < args.positional.size()) {
      if (named != args.named.end()) {
        python_error("macro '{}' got multiple values for argument '{}'", name_, name);
      }
      scope->set(name, args.positional[i]);
    } else if (named != args.named.end()) {
      scope->set(name, named->second);
    } else if (signature_.defaults[i]) {
      scope->set(name, interpreter_.evaluate(*signature_.defaults[i], scope));
    } else {
      scope->set(name, Value::undefined(fmt::format("parameter '{}' was not provided", name)));
    }
  }
}

void MacroObject::bind_extras(const Args& args, const ScopePtr& scope) {
  const size_t n = signature_.names.size();
  std::vector<Value> extra;
  if (args.positional.size() > n) {
    extra.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(n), args.positional.end());
  }
  if (signature_.uses_varargs) {
    scope->set("varargs", Value::tuple(std::move(extra)));
  } else if (!extra.empty()) {
    python_error("macro '{}' takes not more than {} argument(s)", name_, n);
  }
  Dict kwargs;
  Value caller = Value::undefined("No caller defined");
  for (const auto& [name, value] : args.named) {
    const auto& names = signature_.names;
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    if (name == "caller" && signature_.uses_caller) {
      caller = value;
    } else {
      if (!signature_.uses_kwargs) {
        python_error("macro '{}' takes no keyword argument '{}'", name_, name);
      }
      kwargs.set(Value::text(name), value);
    }
  }
  if (signature_.uses_kwargs) scope->set("kwargs", make_dict(std::move(kwargs)));
  if (signature_.uses_caller) scope->set("caller", std::move(caller));
}

}  // namespace qw::jinja
