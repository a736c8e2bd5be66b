#include "text/jinja/expression_parser.h"

#include <array>

namespace qw::jinja {
namespace {

constexpr int kMaxNesting = 120;    // of parser calls for brackets and blocks
constexpr int kMaxTreeDepth = 500;  // of the tree, chains like a + b + c included

}  // namespace

// ---- tokens

ExpressionParser::Nested::Nested(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.nesting_ > kMaxNesting) {
    --parser_.nesting_;
    syntax_error(parser_.current().line, "the template nests deeper than {} levels", kMaxNesting);
  }
}

Token ExpressionParser::next() {
  Token token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!current().is_name(name)) return false;
  next();
  return true;
}

bool ExpressionParser::skip_op(std::string_view op) {
  if (!current().is_op(op)) return false;
  next();
  return true;
}

void ExpressionParser::unexpected(std::string_view wanted) const {
  const Token& token = current();
  std::string_view got = token.text;
  if (token.kind == TokenKind::kEnd) got = "end of template";
  if (token.kind == TokenKind::kBlockEnd) got = "end of statement block";
  if (token.kind == TokenKind::kVariableEnd) got = "end of print statement";
  syntax_error(token.line, "expected {}, got '{}'", wanted, got);
}

void ExpressionParser::expect_op(std::string_view op) {
  if (!skip_op(op)) unexpected(fmt::format("token '{}'", op));
}

std::string ExpressionParser::expect_name() {
  if (current().kind != TokenKind::kName) unexpected("a name");
  return next().text;
}

void ExpressionParser::expect_keyword(std::string_view name) {
  if (!skip_name(name)) unexpected(fmt::format("'{}'", name));
}

void ExpressionParser::expect_block_end() {
  if (current().kind != TokenKind::kBlockEnd) unexpected("token 'end of statement block'");
  next();
}

void ExpressionParser::check_unknown() {
  if (unknown_.empty()) return;
  throw TemplateError(TemplateErrorKind::kSyntax, unknown_[0].message, unknown_[0].line);
}

// ---- making nodes

void ExpressionParser::deepen(Expr& expr, int child_depth) const {
  expr.depth = std::max(expr.depth, child_depth + 1);
  if (expr.depth > kMaxTreeDepth) {
    syntax_error(expr.line, "an expression nests deeper than {} levels", kMaxTreeDepth);
  }
}

int ExpressionParser::depth_of(const CallArgs& args) {
  int deepest = 0;
  const auto see = [&](const ExprPtr& e) { deepest = std::max(deepest, e ? e->depth : 0); };
  for (const ExprPtr& e : args.positional)
    see(e);
  for (const auto& named : args.named)
    see(named.second);
  see(args.star);
  see(args.double_star);
  return deepest;
}

template <typename Node>
ExprPtr ExpressionParser::make(int line, Node node, std::initializer_list<const Expr*> children) {
  auto expr = std::make_unique<Expr>();
  expr->line = line;
  expr->node = std::move(node);
  for (const Expr* child : children) {
    if (child != nullptr) deepen(*expr, child->depth);
  }
  return expr;
}

// ---- operators

ExprPtr ExpressionParser::expression(bool with_condition) {
  const Nested nested(*this);
  return with_condition ? conditional() : logic_or();
}

ExprPtr ExpressionParser::conditional() {
  size_t known = unknown_.size();
  ExprPtr value = logic_or();
  while (current().is_name("if")) {
    const int line = next().line;
    ExprPtr test = logic_or();
    ExprPtr otherwise;
    if (skip_name("else")) {
      const Nested nested(*this);
      otherwise = conditional();
    }
    unknown_.resize(known);  // all three parts are conditional
    const Expr *a = test.get(), *b = value.get(), *c = otherwise.get();
    value =
        make(line, Conditional{std::move(test), std::move(value), std::move(otherwise)}, {a, b, c});
  }
  return value;
}

ExprPtr ExpressionParser::logic_or() {
  ExprPtr left = logic_and();
  while (current().is_name("or")) {
    const int line = next().line;
    ExprPtr right = logic_and();
    const Expr *a = left.get(), *b = right.get();
    left = make(line, Logic{false, std::move(left), std::move(right)}, {a, b});
  }
  return left;
}

ExprPtr ExpressionParser::logic_and() {
  ExprPtr left = logic_not();
  while (current().is_name("and")) {
    const int line = next().line;
    ExprPtr right = logic_not();
    const Expr *a = left.get(), *b = right.get();
    left = make(line, Logic{true, std::move(left), std::move(right)}, {a, b});
  }
  return left;
}

ExprPtr ExpressionParser::logic_not() {
  if (!current().is_name("not")) return comparison();
  const Nested nested(*this);
  const int line = next().line;
  ExprPtr operand = logic_not();
  const Expr* child = operand.get();
  return make(line, Unary{UnaryOp::kNot, std::move(operand)}, {child});
}

ExprPtr ExpressionParser::comparison() {
  static constexpr std::array<std::pair<std::string_view, CompareOp>, 6> kOps{
      {{"==", CompareOp::kEqual},
       {"!=", CompareOp::kNotEqual},
       {"<", CompareOp::kLess},
       {"<=", CompareOp::kLessEqual},
       {">", CompareOp::kGreater},
       {">=", CompareOp::kGreaterEqual}}};
  const int line = current().line;
  ExprPtr first = sum();
  std::vector<std::pair<CompareOp, ExprPtr>> rest;
  int deepest = first->depth;
  while (true) {
    std::optional<CompareOp> op;
    for (const auto& [text, candidate] : kOps) {
      if (current().is_op(text)) op = candidate;
    }
    if (op) {
      next();
    } else if (skip_name("in")) {
      op = CompareOp::kIn;
    } else if (current().is_name("not") && peek().is_name("in")) {
      next();
      next();
      op = CompareOp::kNotIn;
    } else {
      break;
    }
    rest.emplace_back(*op, sum());
    deepest = std::max(deepest, rest.back().second->depth);
  }
  if (rest.empty()) return first;
  ExprPtr node = make(line, Compare{std::move(first), std::move(rest)}, {});
  deepen(*node, deepest);
  return node;
}

ExprPtr ExpressionParser::sum() {
  ExprPtr left = concatenation();
  while (current().is_op("+") || current().is_op("-")) {
    const Token op = next();
    ExprPtr right = concatenation();
    const Expr *a = left.get(), *b = right.get();
    const BinaryOp kind = op.text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
    left = make(op.line, Binary{kind, std::move(left), std::move(right)}, {a, b});
  }
  return left;
}

ExprPtr ExpressionParser::concatenation() {
  const int line = current().line;
  ExprPtr first = product();
  if (!current().is_op("~")) return first;
  int deepest = first->depth;
  std::vector<ExprPtr> parts;
  parts.push_back(std::move(first));
  while (skip_op("~")) {
    parts.push_back(product());
    deepest = std::max(deepest, parts.back()->depth);
  }
  ExprPtr node = make(line, Concat{std::move(parts)}, {});
  deepen(*node, deepest);
  return node;
}

ExprPtr ExpressionParser::product() {
  static constexpr std::array<std::pair<std::string_view, BinaryOp>, 4> kOps{
      {{"*", BinaryOp::kMul},
       {"/", BinaryOp::kDiv},
       {"//", BinaryOp::kFloorDiv},
       {"%", BinaryOp::kMod}}};
  ExprPtr left = power();
  while (true) {
    const auto op = std::find_if(kOps.begin(), kOps.end(),
                                 [&](const auto& o) { return current().is_op(o.first); });
    if (op == kOps.end()) return left;
    const int line = next().line;
    ExprPtr right = power();
    const Expr *a = left.get(), *b = right.get();
    left = make(line, Binary{op->second, std::move(left), std::move(right)}, {a, b});
  }
}

ExprPtr ExpressionParser::power() {
  ExprPtr left = unary();
  while (current().is_op("**")) {  // left-associative, unlike Python's
    const int line = next().line;
    ExprPtr right = unary();
    const Expr *a = left.get(), *b = right.get();
    left = make(line, Binary{BinaryOp::kPow, std::move(left), std::move(right)}, {a, b});
  }
  return left;
}

ExprPtr ExpressionParser::unary(bool with_filter) {
  ExprPtr value;
  if (current().is_op("-") || current().is_op("+")) {
    const Nested nested(*this);
    const Token op = next();
    ExprPtr operand = unary(false);
    const Expr* child = operand.get();
    const UnaryOp kind = op.text == "-" ? UnaryOp::kNegate : UnaryOp::kPlus;
    value = make(op.line, Unary{kind, std::move(operand)}, {child});
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filter ? filters_and_tests(std::move(value)) : std::move(value);
}

// ---- primaries

ExprPtr ExpressionParser::primary() {
  const Token& token = current();
  const int line = token.line;
  switch (token.kind) {
    case TokenKind::kName:
      break;
    case TokenKind::kString:
      return string_literal();
    case TokenKind::kInteger:
      return make(line, Literal{Value(next().integer)}, {});
    case TokenKind::kFloat:
      return make(line, Literal{Value(next().real)}, {});
    case TokenKind::kOperator:
      if (skip_op("(")) {
        ExprPtr inner = tuple(true, /*parenthesised=*/true);
        expect_op(")");
        return inner;
      }
      if (token.is_op("[")) return list_literal();
      if (token.is_op("{")) return dict_literal();
      [[fallthrough]];
    default:
      unexpected("an expression");
  }
  const std::string name = next().text;
  if (name == "true" || name == "True") return make(line, Literal{Value(true)}, {});
  if (name == "false" || name == "False") return make(line, Literal{Value(false)}, {});
  if (name == "none" || name == "None") return make(line, Literal{Value()}, {});
  if (!macros_.empty()) {
    macros_.back().varargs |= name == "varargs";
    macros_.back().kwargs |= name == "kwargs";
    macros_.back().caller |= name == "caller";
  }
  return make(line, NameRef{name}, {});
}

ExprPtr ExpressionParser::string_literal() {
  const int line = current().line;
  std::string text;
  while (current().kind == TokenKind::kString)
    text += next().text;  // neighbours join
  return make(line, Literal{Value::text(text)}, {});
}

ExprPtr ExpressionParser::list_literal() {
  const int line = next().line;
  std::vector<ExprPtr> items;
  int deepest = 0;
  while (!current().is_op("]")) {
    if (!items.empty()) expect_op(",");
    if (current().is_op("]")) break;
    items.push_back(expression());
    deepest = std::max(deepest, items.back()->depth);
  }
  expect_op("]");
  ExprPtr node = make(line, Sequence{std::move(items), false}, {});
  deepen(*node, deepest);
  return node;
}

ExprPtr ExpressionParser::dict_literal() {
  const int line = next().line;
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
  int deepest = 0;
  while (!current().is_op("}")) {
    if (!entries.empty()) expect_op(",");
    if (current().is_op("}")) break;
    ExprPtr key = expression();
    expect_op(":");
    ExprPtr value = expression();
    deepest = std::max({deepest, key->depth, value->depth});
    entries.emplace_back(std::move(key), std::move(value));
  }
  expect_op("}");
  ExprPtr node = make(line, Mapping{std::move(entries)}, {});
  deepen(*node, deepest);
  return node;
}

bool ExpressionParser::ends_tuple(std::string_view stop) const {
  const TokenKind kind = current().kind;
  return kind == TokenKind::kVariableEnd || kind == TokenKind::kBlockEnd || current().is_op(")") ||
         (!stop.empty() && current().is_name(stop));
}

ExprPtr ExpressionParser::tuple(bool with_condition, bool parenthesised, std::string_view stop) {
  const int line = current().line;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  int deepest = 0;
  while (!ends_tuple(stop)) {
    items.push_back(expression(with_condition));
    deepest = std::max(deepest, items.back()->depth);
    if (!skip_op(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items[0]);
  if (items.empty() && !parenthesised) unexpected("an expression");
  ExprPtr node = make(line, Sequence{std::move(items), true}, {});
  deepen(*node, deepest);
  return node;
}

// ---- what follows a primary

ExprPtr ExpressionParser::postfix(ExprPtr value) {
  while (true) {
    if (current().is_op(".")) {
      const int line = next().line;
      const Expr* child = value.get();
      if (current().kind == TokenKind::kInteger) {
        ExprPtr key = make(line, Literal{Value(next().integer)}, {});
        value = make(line, Subscript{std::move(value), std::move(key)}, {child});
      } else {
        std::string name = expect_name();
        value = make(line, Attribute{std::move(value), std::move(name)}, {child});
      }
    } else if (current().is_op("[")) {
      value = subscript(std::move(value));
    } else if (current().is_op("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

ExprPtr ExpressionParser::subscript(ExprPtr value) {
  const int line = next().line;
  ExprPtr bounds[3];
  size_t colons = 0;
  if (!current().is_op(":")) bounds[0] = expression();
  while (colons < 2 && skip_op(":")) {
    ++colons;
    if (!current().is_op(":") && !current().is_op("]")) bounds[colons] = expression();
  }
  const Expr *a = value.get(), *b = bounds[0].get(), *c = bounds[1].get(), *d = bounds[2].get();
  if (colons > 0) {
    expect_op("]");
    return make(
        line,
        Slice{std::move(value), std::move(bounds[0]), std::move(bounds[1]), std::move(bounds[2])},
        {a, b, c, d});
  }
  std::vector<ExprPtr> keys;
  int deepest = bounds[0]->depth;
  keys.push_back(std::move(bounds[0]));
  while (skip_op(",")) {
    keys.push_back(expression());
    deepest = std::max(deepest, keys.back()->depth);
  }
  expect_op("]");
  ExprPtr key =
      keys.size() == 1 ? std::move(keys[0]) : make(line, Sequence{std::move(keys), true}, {});
  deepen(*key, key->depth == 1 ? deepest : 0);
  const Expr* key_node = key.get();
  return make(line, Subscript{std::move(value), std::move(key)}, {a, key_node});
}

ExprPtr ExpressionParser::call(ExprPtr callee) {
  const int line = current().line;
  CallArgs args = call_args();
  const int args_depth = depth_of(args);
  const Expr* child = callee.get();
  ExprPtr node = make(line, Call{std::move(callee), std::move(args)}, {child});
  deepen(*node, args_depth);
  return node;
}

CallArgs ExpressionParser::call_args() {
  const int line = current().line;
  expect_op("(");
  CallArgs args;
  for (bool first = true; !current().is_op(")"); first = false) {
    if (!first) expect_op(",");
    if (current().is_op(")")) break;
    const bool named = current().kind == TokenKind::kName && peek().is_op("=");
    if (skip_op("**")) {
      if (args.double_star) syntax_error(line, "invalid syntax for function call expression");
      args.double_star = expression();
    } else if (args.double_star) {
      syntax_error(line, "invalid syntax for function call expression");
    } else if (skip_op("*")) {
      if (args.star) syntax_error(line, "invalid syntax for function call expression");
      args.star = expression();
    } else if (named) {
      std::string name = expect_name();
      next();
      args.named.emplace_back(std::move(name), expression());
    } else {
      if (!args.named.empty() || args.star) {
        syntax_error(line, "invalid syntax for function call expression");
      }
      args.positional.push_back(expression());
    }
  }
  expect_op(")");
  return args;
}

std::string ExpressionParser::dotted_name() {
  std::string name = expect_name();
  while (skip_op("."))
    name.append(1, '.').append(expect_name());
  return name;
}

ExprPtr ExpressionParser::filter_chain(ExprPtr value, bool inline_start) {
  while (inline_start || skip_op("|")) {
    inline_start = false;
    const int line = current().line;
    std::string name = dotted_name();
    const Filter body = find_filter(name);
    if (body == nullptr) unknown_.push_back({line, fmt::format("No filter named '{}'.", name)});
    CallArgs args;
    if (current().is_op("(")) args = call_args();
    const int args_depth = depth_of(args);
    const Expr* child = value.get();
    value =
        make(line, FilterCall{std::move(value), std::move(name), body, std::move(args)}, {child});
    deepen(*value, args_depth);
  }
  return value;
}

ExprPtr ExpressionParser::filters_and_tests(ExprPtr value) {
  while (true) {
    if (current().is_op("|")) {
      value = filter_chain(std::move(value), false);
    } else if (current().is_name("is")) {
      value = test(std::move(value));
    } else if (current().is_op("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

ExprPtr ExpressionParser::test(ExprPtr value) {
  const int line = next().line;
  const bool negated = skip_name("not");
  std::string name = dotted_name();
  const Test body = find_test(name);
  if (body == nullptr) unknown_.push_back({line, fmt::format("No test named '{}'.", name)});
  CallArgs args;
  const Token& token = current();
  const bool operand_follows = token.kind == TokenKind::kName || token.kind == TokenKind::kString ||
                               token.kind == TokenKind::kInteger ||
                               token.kind == TokenKind::kFloat || token.is_op("[") ||
                               token.is_op("{");
  const bool keyword = token.is_name("else") || token.is_name("or") || token.is_name("and");
  if (token.is_op("(")) {
    args = call_args();
  } else if (operand_follows && !keyword) {
    if (token.is_name("is")) syntax_error(token.line, "You cannot chain multiple tests with is");
    const Nested nested(*this);
    args.positional.push_back(postfix(primary()));
  }
  const int args_depth = depth_of(args);
  const Expr* child = value.get();
  ExprPtr node =
      make(line, TestCall{std::move(value), std::move(name), body, std::move(args)}, {child});
  deepen(*node, args_depth);
  if (!negated) return node;
  const Expr* inner = node.get();
  return make(line, Unary{UnaryOp::kNot, std::move(node)}, {inner});
}

}  // namespace qw::jinja
