#include "server/generation/logprobs.h"

#include <fmt/format.h>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace qw::server {

std::string token_name(int32_t id, const Tokenizer& tokenizer, bool names_are_ids) {
  if (names_are_ids) return fmt::format("token_id:{}", id);
  return replace_invalid_utf8(tokenizer.token_bytes(id));
}

std::string distinct_token_name(int32_t id, const Tokenizer& tokenizer) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  if (find_invalid_utf8(bytes) == std::string_view::npos) return std::string(bytes);
  std::string name = "bytes:";
  for (const char byte : bytes)
    name += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return name;
}

Json logprob_json(const Logprob& logprob, const Tokenizer& tokenizer, TokenForm form) {
  Json json = Json::object();
  if (form.with_ids) json["id"] = logprob.id;
  const std::string_view bytes = tokenizer.token_bytes(logprob.id);
  json["token"] = token_name(logprob.id, tokenizer, form.names_are_ids);
  Json list = Json::array();
  for (const char byte : bytes)
    list.push_back(static_cast<int>(static_cast<unsigned char>(byte)));
  json["bytes"] = std::move(list);
  json["logprob"] = logprob.logprob;
  return json;
}

Json logprobs_json(const TokenLogprobs& entry, const Tokenizer& tokenizer, TokenForm form) {
  Json json = logprob_json(entry.chosen, tokenizer, form);
  Json top = Json::array();
  for (const Logprob& candidate : entry.top)
    top.push_back(logprob_json(candidate, tokenizer, form));
  json["top_logprobs"] = std::move(top);
  return json;
}

Json logprobs_json(std::span<const TokenLogprobs> entries, const Tokenizer& tokenizer,
                   TokenForm form) {
  Json list = Json::array();
  for (const TokenLogprobs& entry : entries)
    list.push_back(logprobs_json(entry, tokenizer, form));
  return list;
}

}  // namespace qw::server
