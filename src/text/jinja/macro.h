// `{% macro %}` and the caller of `{% call %}` as callable values.
//
// Level 3 (text). A macro runs in a scope of its own over the scope where it was written.
#pragma once

#include "text/jinja/interpreter.h"

namespace qw::jinja {

class MacroObject final : public Object {
 public:
  MacroObject(Interpreter& interpreter, std::string_view name, const Signature& signature,
              const Body& body, ScopePtr scope)
      : interpreter_(interpreter),
        name_(name),
        signature_(signature),
        body_(body),
        scope_(std::move(scope)) {}

  std::string_view type_name() const override { return "Macro"; }
  bool callable() const override { return true; }
  /// Binds the arguments as Jinja does: missing ones are undefined, superfluous ones go to varargs
  /// and kwargs if the body uses them and are a python error if not. Returns what the body wrote.
  Value call(Runtime& runtime, const Args& args) override;
  MarkedText repr(Runtime&) const override {
    return MarkedText(fmt::format("<Macro '{}'>", name_));
  }
  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override;

 private:
  void bind_parameters(const Args& args, const ScopePtr& scope);
  void bind_extras(const Args& args, const ScopePtr& scope);

  Interpreter& interpreter_;
  std::string_view name_;
  const Signature& signature_;
  const Body& body_;
  ScopePtr scope_;
};

}  // namespace qw::jinja
