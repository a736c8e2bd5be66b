// The syntax tree of a template: immutable once parsed, shared by all renderings.
//
// Level 3 (text). Expressions and statements are variants of small structs; the interpreter has one
// overload per struct.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/value.h"

namespace qw::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<Stmt>;

// ---- expressions

struct CallArgs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star;         // *args
  ExprPtr double_star;  // **kwargs
};

struct Literal {
  Value value;
};
struct NameRef {
  std::string name;
};
struct Sequence {
  std::vector<ExprPtr> items;
  bool tuple;
};
struct Mapping {
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};
struct Attribute {
  ExprPtr object;
  std::string name;
};
struct Subscript {
  ExprPtr object, key;
};
struct Slice {
  ExprPtr object, start, stop, step;
};  // bounds may be null
struct Call {
  ExprPtr callee;
  CallArgs args;
};
/// value is null in `{% filter %}` and `{% set %}` blocks; body is null for an unknown filter
/// inside a condition, which only fails when it is reached.
struct FilterCall {
  ExprPtr value;
  std::string name;
  Filter body;
  CallArgs args;
};
struct TestCall {
  ExprPtr value;
  std::string name;
  Test body;
  CallArgs args;
};
enum class UnaryOp { kNot, kNegate, kPlus };
struct Unary {
  UnaryOp op;
  ExprPtr operand;
};
struct Binary {
  BinaryOp op;
  ExprPtr left, right;
};
struct Concat {
  std::vector<ExprPtr> parts;
};
enum class CompareOp { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };
struct Compare {
  ExprPtr first;
  std::vector<std::pair<CompareOp, ExprPtr>> rest;
};
struct Logic {
  bool is_and;
  ExprPtr left, right;
};
struct Conditional {
  ExprPtr test, then, otherwise;
};  // otherwise may be null

struct Expr {
  int line = 0;
  int depth = 1;  // of the tree below: bounds the recursion over it
  std::variant<Literal, NameRef, Sequence, Mapping, Attribute, Subscript, Slice, Call, FilterCall,
               TestCall, Unary, Binary, Concat, Compare, Logic, Conditional>
      node;
};

// ---- statements

/// What `for` and `set` assign to: a name, a field of a namespace, or several of them.
struct Target {
  std::string name;
  std::string field;          // of the namespace `name`, if not empty
  std::vector<Target> parts;  // if not empty: unpack
};

struct Signature {
  std::vector<std::string> names;
  std::vector<ExprPtr> defaults;  // aligned with names; null where there is none
  bool uses_varargs = false;
  bool uses_kwargs = false;
  bool uses_caller = false;
};

struct Text {
  std::string text;
};
struct Emit {
  ExprPtr value;
};
struct If {
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExprPtr iterable, filter;
  Body body, otherwise;
  bool recursive;
};
struct Set {
  Target target;
  ExprPtr value;
};
struct SetBlock {
  Target target;
  ExprPtr filter;
  Body body;
};
struct With {
  std::vector<std::pair<Target, ExprPtr>> bindings;
  Body body;
};
struct Macro {
  std::string name;
  Signature signature;
  Body body;
};
struct CallBlock {
  Signature signature;
  ExprPtr call;
  Body body;
};
struct FilterBlock {
  ExprPtr filter;
  Body body;
};
struct Generation {
  Body body;
};
struct Scoped {
  Body body;
};                // `{% block %}`: only a scope here
struct Refused {  // include, import, extends: an error if it is reached, for want of a loader
  std::string tag;
};
struct Break {};
struct Continue {};

struct Stmt {
  int line = 0;
  std::variant<Text, Emit, If, For, Set, SetBlock, With, Macro, CallBlock, FilterBlock, Generation,
               Scoped, Refused, Break, Continue>
      node;
};

}  // namespace qw::jinja
