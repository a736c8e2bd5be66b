#include "engine/grammar/grammar.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/grammar/configurations.h"
#include "engine/grammar/gbnf.h"
#include "engine/grammar/json_schema.h"
#include "engine/grammar/regex.h"

namespace qw {

using grammar::Node;

std::shared_ptr<const Grammar> Grammar::from_json_schema(std::string_view schema,
                                                         const JsonFormat& format) {
  GrammarBuilder builder;
  return builder.build(builder.json_schema(grammar::parse_schema(schema), format));
}

std::shared_ptr<const Grammar> Grammar::json_object(const JsonFormat& format) {
  GrammarBuilder builder;
  return builder.build(builder.json_object(format));
}

std::shared_ptr<const Grammar> Grammar::json_value(const JsonFormat& format) {
  GrammarBuilder builder;
  return builder.build(builder.json_value(format));
}

std::shared_ptr<const Grammar> Grammar::from_regex(std::string_view pattern) {
  GrammarBuilder builder;
  return builder.build(builder.regex(pattern));
}

std::shared_ptr<const Grammar> Grammar::from_gbnf(std::string_view text, std::string_view root) {
  GrammarBuilder builder;
  return builder.build(builder.gbnf(text, root));
}

std::shared_ptr<const Grammar> Grammar::choice(std::span<const std::string> texts) {
  GrammarBuilder builder;
  return builder.build(builder.choice(texts));
}

bool Grammar::accepts(std::string_view text) const {
  grammar::Configurations configs(fsm_);
  grammar::ConfigId at = configs.start();
  for (const char byte : text)
    at = configs.step(at, static_cast<uint8_t>(byte));
  return configs.accepts(at);
}

bool Grammar::accepts_prefix(std::string_view text) const {
  grammar::Configurations configs(fsm_);
  grammar::ConfigId at = configs.start();
  for (const char byte : text)
    at = configs.step(at, static_cast<uint8_t>(byte));
  return at != grammar::kDead;
}

uint32_t GrammarBuilder::declare(std::string name) {
  rules_.push_back({std::move(name), nullptr});
  return static_cast<uint32_t>(rules_.size() - 1);
}

void GrammarBuilder::define(uint32_t rule, Node body) {
  QW_CHECK(rule < rules_.size() && !rules_[rule].body);
  rules_[rule].body = std::move(body);
}

Node GrammarBuilder::add(std::string name, Node body) {
  const uint32_t id = declare(std::move(name));
  define(id, std::move(body));
  return grammar::rule(id);
}

Node GrammarBuilder::json_schema(const nlohmann::ordered_json& schema, const JsonFormat& format) {
  return grammar::json_schema_node(schema, format, *this);
}

Node GrammarBuilder::json_object(const JsonFormat& format) {
  return json_schema(nlohmann::ordered_json{{"type", "object"}}, format);
}

Node GrammarBuilder::json_value(const JsonFormat& format) {
  return json_schema(true, format);
}

Node GrammarBuilder::regex(std::string_view pattern) {
  return grammar::parse_regex(pattern, grammar::RegexMatch::kWhole);
}

Node GrammarBuilder::gbnf(std::string_view text, std::string_view root) {
  return grammar::parse_gbnf(text, root, *this);
}

Node GrammarBuilder::choice(std::span<const std::string> texts) {
  std::vector<Node> out;
  for (const std::string& text : texts) {
    if (text.empty())
      fail(ErrorKind::kInvalidArgument, "grammar", "choice: expected text, got an empty one");
    out.push_back(grammar::literal(text));
  }
  if (out.empty())
    fail(ErrorKind::kInvalidArgument, "grammar", "choices: expected at least one, got none");
  return grammar::alternation(std::move(out));
}

std::shared_ptr<const Grammar> GrammarBuilder::build(Node root,
                                                     std::vector<std::string> notes) const {
  std::vector<grammar::NamedRule> rules = rules_;
  rules.push_back({"root", std::move(root)});
  return std::make_shared<Grammar>(
      grammar::compile(rules, static_cast<uint32_t>(rules.size() - 1)), std::move(notes));
}

}  // namespace qw
