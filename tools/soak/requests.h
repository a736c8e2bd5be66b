// Requests as clients of every dialect send them, drawn at random: valid ones, whose answer must
// be what the dialect promises.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/http_client.h"

namespace qw::soak {

using Json = nlohmann::ordered_json;
using testing::HttpAnswer;

/// What an answer looks like, and so how its end is told.
enum class Form {
  kAny,                // no promise but a status
  kJson,               // one JSON body
  kChoices,            // one, with `answers` choices that have ended
  kOpenAiStream,       // events: an end for each choice, then [DONE]
  kResponsesStream,    // events: response.completed or response.incomplete
  kAnthropicStream,    // events: message_stop
  kOllamaStream,       // lines: one with done
  kLlamaServerStream,  // events: one with stop for each answer
  kSglangStream,       // events: an end for each answer, then [DONE]
};

struct Planned {
  std::string method = "POST", target;
  Json body;  // null: none
  Form form = Form::kAny;
  size_t answers = 1;
  std::vector<int> statuses = {200};  // beside 429 and 503, which say that the server is busy
};

/// What is wrong with the answer; "": nothing.
std::string fault_of(const Planned& request, const HttpAnswer& answer);

struct MakerOptions {
  int64_t max_tokens = 40;     // of an answer
  int64_t long_words = 220;    // of the longest prompts, which push others out of the cache
  bool names_adapters = true;  // some requests are for an adapter that may be there or not
};

/// Draws requests. The same seed gives the same ones.
class RequestMaker {
 public:
  RequestMaker(uint64_t seed, MakerOptions options) : random_(seed), options_(options) {}

  /// A generation in any dialect, streamed or not.
  Planned generation();
  /// Anything else that takes a body: embeddings, scores, tokens, templates, what is refused.
  Planned side_request();
  /// A GET.
  Planned look();
  /// Loads or unloads an adapter.
  Planned adapter_change();

  std::mt19937_64& random() { return random_; }
  int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  bool chance(double p) { return std::bernoulli_distribution(p)(random_); }
  template <typename T>
  const T& one_of(const std::vector<T>& list) {
    return list[static_cast<size_t>(draw(0, std::ssize(list) - 1))];
  }

 private:
  std::string words(int64_t n);
  std::string prompt();
  Json messages(bool with_system = true);
  Json schema();
  Json tool(const char* parameters);
  std::string adapter() { return one_of<std::string>({"soak-1", "soak-2", "soak-3"}); }
  int64_t limit() { return draw(1, options_.max_tokens); }

  void set_model(Planned& request, Json& owner, const char* field = "model");
  void set_sampling(Json& body);
  void set_shape(Json& body);
  void set_openai_answers(Planned& request);

  Planned chat();
  Planned completion();
  Planned responses();
  Planned ollama();
  Planned llama_server();
  Planned sglang();
  Planned anthropic();
  Planned embedding();
  Planned scoring();
  Planned tokens();
  Planned facts();

  std::mt19937_64 random_;
  MakerOptions options_;
  bool is_long_ = false;  // the prompt drawn last: one answer to it fits, not several
};

}  // namespace qw::soak
