#include "server/openai/common.h"

#include <algorithm>

#include "base/utf8.h"
#include "server/generation/logprobs.h"
#include "server/openai/openai.h"
#include "text/tokenizer.h"

namespace qw::server::openai {

const Dialect kOpenAi{"openai", error_body};

std::vector<Endpoint> endpoints() {
  std::vector<Endpoint> all;
  for (auto make : {chat_endpoints, classify_endpoints, completion_endpoints, embedding_endpoints,
                    model_endpoints, adapter_endpoints, response_endpoints}) {
    for (Endpoint& endpoint : make())
      all.push_back(std::move(endpoint));
  }
  return all;
}

namespace {

std::string_view type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

double mean_logprob(const Completion& completion) {
  double sum = 0;
  for (const TokenLogprobs& entry : completion.logprobs)
    sum += static_cast<double>(entry.chosen.logprob);
  return completion.logprobs.empty() ? 0 : sum / static_cast<double>(completion.logprobs.size());
}

}  // namespace

Json error_body(const Error& error, int status) {
  const auto* request = dynamic_cast<const RequestError*>(&error);
  Json param = nullptr;
  if (request != nullptr && !request->field().empty()) param = request->field();
  Json code = nullptr;
  if (status == 404 && param == "model") code = "model_not_found";
  if (status == 401) code = "invalid_api_key";
  if (request != nullptr && !request->code().empty()) code = request->code();
  return {{"error",
           {{"message", error.message()},
            {"type", type_of(status)},
            {"param", std::move(param)},
            {"code", std::move(code)}}}};
}

Json usage(int64_t n_prompt, int64_t n_generated, int64_t n_cached) {
  return {{"prompt_tokens", n_prompt},
          {"completion_tokens", n_generated},
          {"total_tokens", n_prompt + n_generated},
          {"prompt_tokens_details", {{"cached_tokens", n_cached}}}};
}

Json usage(const GenerationResult& result) {
  return usage(result.n_prompt_tokens(), result.n_generated_tokens(), result.n_cached_tokens());
}

std::string_view finish_reason(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

Json chat_logprobs(std::span<const TokenLogprobs> entries, const Tokenizer& tokenizer,
                   bool names_are_ids) {
  const TokenForm form{.names_are_ids = names_are_ids};
  return {{"content", logprobs_json(entries, tokenizer, form)}};
}

Json prompt_logprobs(std::span<const TokenLogprobs> entries, const Tokenizer* tokenizer) {
  Json list = Json::array();
  list.push_back(nullptr);
  for (const TokenLogprobs& entry : entries) {
    Json position = Json::object();
    // At the end, without a search among the others: an id comes once.
    auto& members = position.get_ref<Json::object_t&>();
    members.reserve(entry.top.size() + 1);
    const auto add = [&](const Logprob& logprob, int64_t rank) {
      Json item = {{"logprob", logprob.logprob}, {"rank", rank + 1}};
      if (tokenizer != nullptr)
        item["decoded_token"] = replace_invalid_utf8(tokenizer->token_bytes(logprob.id));
      members.emplace_back(std::to_string(logprob.id), std::move(item));
    };
    bool has_chosen = false;
    for (size_t i = 0; i < entry.top.size(); ++i) {
      add(entry.top[i], static_cast<int64_t>(i));
      has_chosen = has_chosen || entry.top[i].id == entry.chosen.id;
    }
    if (!has_chosen) add(entry.chosen, entry.rank);
    list.push_back(std::move(position));
  }
  return list;
}

std::vector<const Completion*> best_answers(const RequestResult& result, int64_t n) {
  std::vector<const Completion*> answers;
  for (const Completion& completion : result.completions)
    answers.push_back(&completion);
  if (std::ssize(answers) <= n) return answers;
  std::ranges::stable_sort(answers, [](const Completion* a, const Completion* b) {
    return mean_logprob(*a) > mean_logprob(*b);
  });
  answers.resize(static_cast<size_t>(n));
  return answers;
}

}  // namespace qw::server::openai
