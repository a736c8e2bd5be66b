// Asks grammars about texts, for tests/interop: which instances a JSON schema's grammar accepts,
// and texts drawn at random from it.
//
// Standard input: a line of JSON per question, {"schema": ..., "texts": [...], "samples": N}.
// Standard output: a line per answer, {"accepts": [...], "samples": [...]} or {"error": "...",
// "kind": "..."}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "base/error.h"
#include "engine/grammar/configurations.h"
#include "engine/grammar/grammar.h"

namespace {

using Json = nlohmann::ordered_json;

/// A text of the grammar: bytes at random, later those that lead to an end; empty: none was found.
std::string sample(const qw::Grammar& grammar, std::mt19937& random) {
  constexpr size_t kWild = 40, kMost = 4000;
  const std::string endings = "\"}]el5021,:fut-T";  // quotes and brackets first
  qw::grammar::Configurations configs(grammar.fsm());
  qw::grammar::ConfigId at = configs.start();
  std::string text;
  while (text.size() < kMost) {
    if (configs.accepts(at) && (text.size() > kWild || random() % 4 == 0)) return text;
    std::string allowed;
    const bool plain = random() % 4 != 0;  // most of the time no odd characters
    for (int byte = 0; byte < 256; ++byte) {
      if (configs.step(at, static_cast<uint8_t>(byte)) == qw::grammar::kDead) continue;
      if (plain && (byte <= 32 || byte >= 127 || byte == '\\') && !allowed.empty()) continue;
      allowed += static_cast<char>(byte);
    }
    if (allowed.empty()) return configs.accepts(at) ? text : "";
    char next = allowed[random() % allowed.size()];
    if (text.size() > kWild || random() % 3 == 0) {
      const size_t first = endings.find_first_of(allowed);
      if (first != std::string::npos && random() % 8 != 0) next = endings[first];
    }
    text += next;
    at = configs.step(at, static_cast<uint8_t>(next));
  }
  return "";
}

Json answer(const Json& question) {
  const auto grammar = qw::Grammar::from_json_schema(question.at("schema").dump());
  Json out{{"accepts", Json::array()}, {"samples", Json::array()}};
  for (const Json& text : question.value("texts", Json::array()))
    out["accepts"].push_back(grammar->accepts(text.get<std::string>()));
  std::mt19937 random(1);
  for (int n = question.value("samples", 0); n > 0; --n) {
    const std::string text = sample(*grammar, random);
    if (!text.empty()) out["samples"].push_back(text);
  }
  return out;
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    Json out;
    try {
      out = answer(Json::parse(line));
    } catch (const qw::Error& error) {
      out = {{"error", error.message()}, {"kind", qw::name_of(error.kind())}};
    } catch (const std::exception& error) {
      out = {{"error", error.what()}, {"kind", "internal"}};
    }
    std::cout << out.dump() << std::endl;
  }
  return 0;
}
