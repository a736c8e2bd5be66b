#include "text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>

#include "text/jinja/expression_parser.h"

namespace qw::jinja {
namespace {

class Parser final : public ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(tokenize(source)) {}

  Body run() {
    Body body = statements({});
    if (current().kind != TokenKind::kEnd) {
      syntax_error(current().line, "Encountered unknown tag '{}'.", current().text);
    }
    check_unknown();
    return body;
  }

 private:
  using Ends = std::initializer_list<std::string_view>;

  /// Statements up to one of the tags `ends` (not consumed; the cursor is on its name), or to the
  /// end of the template when `ends` is empty.
  Body statements(Ends ends) {
    const Nested nested(*this);
    Body body;
    const int begin_line = current().line;
    while (current().kind != TokenKind::kEnd) {
      const Token token = next();
      if (token.kind == TokenKind::kData) {
        body.push_back({token.line, Text{token.text}});
      } else if (token.kind == TokenKind::kVariableBegin) {
        body.push_back({token.line, Emit{tuple()}});
        if (current().kind != TokenKind::kVariableEnd) unexpected("token 'end of print statement'");
        next();
      } else {
        if (current().kind != TokenKind::kName) unexpected("a tag name");
        if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return body;
        body.push_back(statement());
      }
    }
    if (ends.size() > 0) {
      syntax_error(current().line,
                   "Unexpected end of template. Looking for the tag '{}' of the block of line {}.",
                   *(ends.end() - 1), begin_line);
    }
    return body;
  }

  /// The body of a block up to its `end` tag, which is consumed.
  Body block_body(std::string_view end) {
    expect_block_end();
    Body body = statements({end});
    next();
    if (end == "endblock" && current().kind == TokenKind::kName) next();
    expect_block_end();
    return body;
  }

  /// A body that Jinja compiles to a function of its own: loop controls do not reach out of it, and
  /// unknown names in it are errors even inside a condition.
  template <typename F>
  auto isolated(F parse) {
    const bool outer_loop = std::exchange(in_loop_, false);
    auto result = hard(parse);
    in_loop_ = outer_loop;
    return result;
  }

  /// Parses with unknown filters and tests as errors, whatever the surroundings.
  template <typename F>
  auto hard(F parse) {
    std::vector<Unknown> outer = std::exchange(unknown_, {});
    auto result = parse();
    check_unknown();
    unknown_ = std::move(outer);
    return result;
  }

  Stmt statement() {
    const Token tag = next();
    const int line = tag.line;
    const std::string& name = tag.text;
    if (name == "if") return {line, if_statement()};
    if (name == "for") return {line, hard([&] { return for_statement(); })};
    if (name == "set") return set_statement(line);
    if (name == "with") return {line, hard([&] { return with_statement(); })};
    if (name == "macro") return {line, isolated([&] { return macro_statement(); })};
    if (name == "call") return {line, isolated([&] { return call_block(); })};
    if (name == "filter") return {line, hard([&] { return filter_block(); })};
    if (name == "generation") {
      return {line, isolated([&] { return Generation{block_body("endgeneration")}; })};
    }
    if (name == "include" || name == "import" || name == "from" || name == "extends") {
      while (current().kind != TokenKind::kBlockEnd)
        next();  // the lexer has seen to it that it comes
      expect_block_end();
      return {line, Refused{name}};
    }
    if (name == "print") return print_statement(line);
    if (name == "block") {
      expect_name();
      skip_name("scoped");
      skip_name("required");
      return {line, isolated([&] { return Scoped{block_body("endblock")}; })};
    }
    if (name == "break" || name == "continue") return loop_control(line, name == "break");
    syntax_error(line, "Encountered unknown tag '{}'.", name);
  }

  Stmt loop_control(int line, bool is_break) {
    if (!in_loop_) {  // Jinja does not see it; the code it makes is what Python refuses
      throw TemplateError(TemplateErrorKind::kPython,
                          fmt::format("'{}' outside loop", is_break ? "break" : "continue"), line);
    }
    expect_block_end();
    if (is_break) return {line, Break{}};
    return {line, Continue{}};
  }

  Stmt print_statement(int line) {
    Stmt stmt{line, Emit{tuple()}};
    expect_block_end();
    return stmt;
  }

  If if_statement() {
    // Whatever a condition guards may name filters that do not exist, as long as it is not reached.
    const size_t known = unknown_.size();
    If node;
    std::string tag = "elif";
    while (tag == "elif") {
      ExprPtr test = tuple(/*with_condition=*/false);
      expect_block_end();
      Body body = statements({"elif", "else", "endif"});
      node.branches.emplace_back(std::move(test), std::move(body));
      tag = next().text;
    }
    if (tag == "else") {
      expect_block_end();
      node.otherwise = statements({"endif"});
      next();
    }
    expect_block_end();
    unknown_.resize(known);
    return node;
  }

  For for_statement() {
    For node{};
    ++for_depth_;
    node.target = target("in", /*with_fields=*/false);
    expect_keyword("in");
    node.iterable = tuple(/*with_condition=*/false, false, "recursive");
    if (skip_name("if")) node.filter = expression();
    node.recursive = skip_name("recursive");
    expect_block_end();
    const bool outer = std::exchange(in_loop_, true);
    node.body = statements({"else", "endfor"});
    in_loop_ = outer;
    if (next().text == "else") {
      expect_block_end();
      node.otherwise = statements({"endfor"});
      next();
    }
    expect_block_end();
    --for_depth_;
    return node;
  }

  Stmt set_statement(int line) {
    Target to = target({}, /*with_fields=*/true);
    if (skip_op("=")) {
      Stmt stmt{line, Set{std::move(to), tuple()}};
      expect_block_end();
      return stmt;
    }
    ExprPtr filter = filter_chain(nullptr, false);
    return {line, hard([&] {
              return SetBlock{std::move(to), std::move(filter), block_body("endset")};
            })};
  }

  With with_statement() {
    With node;
    while (current().kind != TokenKind::kBlockEnd) {
      if (!node.bindings.empty()) expect_op(",");
      Target to = single_target(false);
      expect_op("=");
      node.bindings.emplace_back(std::move(to), expression());
    }
    node.body = block_body("endwith");
    return node;
  }

  Macro macro_statement() {
    Macro node;
    node.name = assignable(expect_name());
    macros_.emplace_back();
    node.signature = signature();
    node.body = block_body("endmacro");
    finish(node.signature);
    return node;
  }

  CallBlock call_block() {
    CallBlock node;
    macros_.emplace_back();
    if (current().is_op("(")) node.signature = signature();
    // The call itself is outside the body's function.
    const MacroUses uses = macros_.back();
    macros_.pop_back();
    node.call = expression();
    if (!std::holds_alternative<Call>(node.call->node))
      syntax_error(node.call->line, "expected call");
    macros_.push_back(uses);
    node.body = block_body("endcall");
    finish(node.signature);
    return node;
  }

  void finish(Signature& signature) {
    signature.uses_varargs = macros_.back().varargs;
    signature.uses_kwargs = macros_.back().kwargs;
    signature.uses_caller = macros_.back().caller;
    macros_.pop_back();
  }

  FilterBlock filter_block() {
    FilterBlock node;
    node.filter = filter_chain(nullptr, /*inline_start=*/true);
    node.body = block_body("endfilter");
    return node;
  }

  Signature signature() {
    Signature out;
    expect_op("(");
    while (!current().is_op(")")) {
      if (!out.names.empty()) expect_op(",");
      const int line = current().line;
      out.names.push_back(assignable(expect_name()));
      ExprPtr value;
      if (skip_op("=")) {
        value = expression();
      } else if (!out.defaults.empty() && out.defaults.back() != nullptr) {
        syntax_error(line, "non-default argument follows default argument");
      }
      out.defaults.push_back(std::move(value));
    }
    expect_op(")");
    return out;
  }

  // ---- targets

  std::string assignable(std::string name) const {
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) syntax_error(current().line, "can't assign to '{}'", name);
    }
    if (name == "loop" && for_depth_ > 0) {
      syntax_error(current().line, "Can't assign to special loop variable in for-loop target");
    }
    return name;
  }

  /// One name, `(a, b)`, or (with_fields) a field of a namespace.
  Target single_target(bool with_fields) {
    const Nested nested(*this);
    Target out;
    if (skip_op("(")) {
      out = target({}, with_fields);
      expect_op(")");
      return out;
    }
    out.name = assignable(expect_name());
    if (with_fields && skip_op(".")) out.field = expect_name();
    return out;
  }

  Target target(std::string_view stop, bool with_fields) {
    Target first = single_target(with_fields);
    if (!current().is_op(",")) return first;
    Target out;
    out.parts.push_back(std::move(first));
    while (skip_op(",")) {
      if (current().is_op("=") || current().is_op(")") ||
          (!stop.empty() && current().is_name(stop)))
        break;
      out.parts.push_back(single_target(with_fields));
    }
    return out;
  }

  bool in_loop_ = false;  // break and continue have a loop to act on
  int for_depth_ = 0;     // loops around, those outside a macro too
};

}  // namespace

Body parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace qw::jinja
