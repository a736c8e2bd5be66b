// The expression half of the grammar, and the token cursor both halves use.
//
// Level 3 (text). Internal to the parser (expression_parser.cpp, parser.cpp).
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace qw::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  // ---- tokens
  const Token& current() const { return tokens_[at_]; }
  const Token& peek() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token next();
  bool skip_name(std::string_view name);
  bool skip_op(std::string_view op);
  void expect_op(std::string_view op);
  std::string expect_name();
  void expect_keyword(std::string_view name);
  void expect_block_end();
  [[noreturn]] void unexpected(std::string_view wanted) const;

  // ---- expressions, loosest first
  ExprPtr expression(bool with_condition = true);
  /// One expression or, with commas, a tuple. `stop` names a keyword that also ends it.
  ExprPtr tuple(bool with_condition = true, bool parenthesised = false, std::string_view stop = {});
  /// `name(args)|name(args)` applied to `value` (null: to a block's text).
  ExprPtr filter_chain(ExprPtr value, bool inline_start);
  ExprPtr postfix(ExprPtr value);

  /// Throws the first unknown filter or test that was not inside a condition.
  void check_unknown();

  /// One level of recursion, while it lives.
  class Nested {
   public:
    explicit Nested(ExpressionParser& parser);
    ~Nested() { --parser_.nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    ExpressionParser& parser_;
  };

  struct MacroUses {
    bool varargs = false, kwargs = false, caller = false;
  };
  std::vector<MacroUses> macros_;  // the macros being parsed, outermost first
  struct Unknown {
    int line;
    std::string message;
  };
  std::vector<Unknown> unknown_;

 private:
  template <typename Node>
  ExprPtr make(int line, Node node, std::initializer_list<const Expr*> children);
  static int depth_of(const CallArgs& args);
  void deepen(Expr& expr, int child_depth) const;

  ExprPtr conditional();
  ExprPtr logic_or();
  ExprPtr logic_and();
  ExprPtr logic_not();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filter = true);
  ExprPtr primary();
  ExprPtr list_literal();
  ExprPtr dict_literal();
  ExprPtr string_literal();
  ExprPtr filters_and_tests(ExprPtr value);
  ExprPtr test(ExprPtr value);
  ExprPtr subscript(ExprPtr value);
  ExprPtr call(ExprPtr callee);
  CallArgs call_args();
  std::string dotted_name();
  bool ends_tuple(std::string_view stop) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace qw::jinja
