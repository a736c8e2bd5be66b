#include "server/generation/logprobs.h"

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace qw::server {

Json logprob_json(const Logprob& logprob, const Tokenizer& tokenizer, bool with_ids) {
  Json json = Json::object();
  if (with_ids) json["id"] = logprob.id;
  const std::string_view bytes = tokenizer.token_bytes(logprob.id);
  json["token"] = replace_invalid_utf8(bytes);
  Json list = Json::array();
  for (const char byte : bytes)
    list.push_back(static_cast<int>(static_cast<unsigned char>(byte)));
  json["bytes"] = std::move(list);
  json["logprob"] = logprob.logprob;
  return json;
}

Json logprobs_json(const TokenLogprobs& entry, const Tokenizer& tokenizer, bool with_ids) {
  Json json = logprob_json(entry.chosen, tokenizer, with_ids);
  Json top = Json::array();
  for (const Logprob& candidate : entry.top)
    top.push_back(logprob_json(candidate, tokenizer, with_ids));
  json["top_logprobs"] = std::move(top);
  return json;
}

Json logprobs_json(std::span<const TokenLogprobs> entries, const Tokenizer& tokenizer,
                   bool with_ids) {
  Json list = Json::array();
  for (const TokenLogprobs& entry : entries)
    list.push_back(logprobs_json(entry, tokenizer, with_ids));
  return list;
}

}  // namespace qw::server
