#include "load_generator/traces.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

namespace qw::load {

namespace {

using Json = nlohmann::ordered_json;

/// Prompts of a wanted number of tokens: ids, or words that are about one token each.
class PromptMaker {
 public:
  explicit PromptMaker(const TraceOptions& options) : options_(options), random_(options.seed) {}

  std::vector<int64_t> tokens(int64_t n) {
    std::uniform_int_distribution<int64_t> draw(1000,
                                                options_.ids ? options_.vocab - 1 : 1000 + 63);
    std::vector<int64_t> out;
    for (int64_t i = 0; i < n; ++i)
      out.push_back(draw(random_));
    return out;
  }
  Json prompt(const std::vector<int64_t>& tokens) const {
    if (options_.ids) return tokens;
    static const char* kWords[64] = {
        "time",     "year",    "people",   "way",    "day",        "man",    "thing",   "woman",
        "life",     "child",   "world",    "school", "state",      "family", "student", "group",
        "country",  "problem", "hand",     "part",   "place",      "case",   "week",    "company",
        "system",   "program", "question", "work",   "government", "number", "night",   "point",
        "home",     "water",   "room",     "mother", "area",       "money",  "story",   "fact",
        "month",    "lot",     "right",    "study",  "book",       "eye",    "job",     "word",
        "business", "issue",   "side",     "kind",   "head",       "house",  "service", "friend",
        "father",   "power",   "hour",     "game",   "line",       "end",    "member",  "law"};
    std::string text;
    for (const int64_t token : tokens)
      text += std::string(" ") + kWords[(token - 1000) % 64];
    return text;
  }
  double exponential(double rate) { return std::exponential_distribution<double>(rate)(random_); }

 private:
  const TraceOptions& options_;
  std::mt19937_64 random_;
};

std::string body_of(const TraceOptions& options, Json prompt, int64_t index) {
  Json body = {{"prompt", std::move(prompt)},
               {"max_tokens", options.max_tokens},
               {"temperature", options.temperature},
               {"seed", index},
               {"ignore_eos", true},
               {"stream", true}};
  if (options.native) {
    body["n_predict"] = options.max_tokens;
    body.erase("max_tokens");
    // Single bytes, which random weights say often: llama.cpp's server refuses to send what is not
    // UTF-8.
    for (int id = 0; options.ids && id < 256; ++id)
      body["logit_bias"].push_back({id, -100});
  } else {
    body["stream_options"] = {{"include_usage", true}};
  }
  if (!options.model.empty()) body["model"] = options.model;
  return body.dump();
}

}  // namespace

std::vector<PlannedRequest> make_trace(const TraceOptions& options) {
  PromptMaker maker(options);
  const bool shares = options.kind == "shared-prefix", chats = options.kind == "chat";
  const bool mixes = options.kind == "mixed";
  if (!shares && !chats && !mixes && options.kind != "uniform")
    throw std::invalid_argument("expected uniform, shared-prefix, chat or mixed, got " +
                                options.kind);
  constexpr int64_t kTurns = 4;  // of a conversation
  const std::vector<int64_t> prefix =
      shares || chats ? maker.tokens(options.prefix_tokens) : std::vector<int64_t>();
  std::vector<PlannedRequest> trace;
  std::vector<int64_t> conversation;
  double at = 0;
  for (int64_t i = 0; i < options.n_requests; ++i) {
    if (options.rate > 0) at += maker.exponential(options.rate);
    PlannedRequest request;
    request.at_s = at;
    const int64_t n = mixes && i % 8 == 7 ? options.long_tokens : options.prompt_tokens;
    const std::vector<int64_t> own = maker.tokens(n);
    std::vector<int64_t> prompt = prefix;
    if (chats) {
      // What the server said is stood in for by as many tokens of our own.
      if (i % kTurns == 0) {
        conversation = prefix;
      } else {
        request.after = i - 1;
        const std::vector<int64_t> said = maker.tokens(options.max_tokens);
        conversation.insert(conversation.end(), said.begin(), said.end());
      }
      conversation.insert(conversation.end(), own.begin(), own.end());
      prompt = conversation;
    } else {
      prompt.insert(prompt.end(), own.begin(), own.end());
    }
    request.body = body_of(options, maker.prompt(prompt), i);
    trace.push_back(std::move(request));
  }
  return trace;
}

}  // namespace qw::load
