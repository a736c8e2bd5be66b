#include "text/tokenizer_writer.h"

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

[[noreturn]] void refuse(const TokenizerSpec& spec, std::string_view what, std::string_view got) {
  fail(ErrorKind::kUnsupported, "tokenizer", "{}: expected what Qwen2's files can say, got {} ({})",
       what, got, printable(spec.source, 4096));
}

void check(const TokenizerSpec& spec) {
  if (spec.alphabet != TokenAlphabet::kByteLevel) refuse(spec, "alphabet", "byte fallback");
  if (spec.split != SplitPattern::kQwen2) refuse(spec, "pattern", "another one");
  if (spec.merges.empty()) refuse(spec, "merges", "none");
  for (const NormalizerStep& step : spec.normalizer) {
    if (step.kind != NormalizerStep::Kind::kNfc) refuse(spec, "normaliser", "more than NFC");
  }
  if (!spec.prefix_ids.empty() || !spec.suffix_ids.empty())
    refuse(spec, "tokens around a text", "some");
}

/// A JSON string. Errors: unsupported, for bytes that are no UTF-8.
std::string quoted(const TokenizerSpec& spec, const std::string& text) {
  try {
    return ordered_json(text).dump();
  } catch (const ordered_json::type_error&) {
    refuse(spec, "token", fmt::format("bytes that are no text: '{}'", printable(text)));
  }
}

std::set<int32_t> added_ids(const TokenizerSpec& spec) {
  std::set<int32_t> ids;
  for (const AddedToken& token : spec.added_tokens)
    ids.insert(token.id);
  return ids;
}

/// Written by hand: an ordered object looks through all keys for every one that comes.
std::string vocab_json(const TokenizerSpec& spec) {
  const std::set<int32_t> added = added_ids(spec);
  std::string text = "{";
  for (int32_t id = 0; id < std::ssize(spec.tokens); ++id) {
    const std::string& token = spec.tokens[static_cast<size_t>(id)];
    if (token.empty() || added.count(id) != 0) continue;
    text += fmt::format("{}{}: {}", text.size() == 1 ? "" : ", ", quoted(spec, token), id);
  }
  return text + "}\n";
}

std::string merges_txt(const TokenizerSpec& spec) {
  std::string text = "#version: 0.2\n";
  for (const MergeText& merge : spec.merges)
    text += merge.left + " " + merge.right + "\n";
  return text;
}

/// The text of a token; null: there is none.
ordered_json text_of(const TokenizerSpec& spec, const std::optional<int32_t>& id) {
  if (!id) return nullptr;
  for (const AddedToken& token : spec.added_tokens) {
    if (token.id == *id) return token.content;
  }
  if (*id < 0 || *id >= std::ssize(spec.tokens)) return nullptr;
  return spec.tokens[static_cast<size_t>(*id)];
}

ordered_json template_json(const TokenizerConfig& config) {
  if (config.chat_templates.size() == 1) return config.chat_templates.front().second;
  ordered_json list = ordered_json::array();
  for (const auto& [name, source] : config.chat_templates)
    list.push_back({{"name", name}, {"template", source}});
  return list;
}

std::string config_json(const TokenizerSpec& spec) {
  ordered_json added = ordered_json::object(), special = ordered_json::array();
  for (const AddedToken& token : spec.added_tokens) {
    added[std::to_string(token.id)] = {
        {"content", token.content},         {"lstrip", token.lstrip},
        {"normalized", token.normalized},   {"rstrip", token.rstrip},
        {"single_word", token.single_word}, {"special", token.special}};
    if (token.special) special.push_back(token.content);
  }
  ordered_json json = {{"add_prefix_space", false},
                       {"added_tokens_decoder", std::move(added)},
                       {"additional_special_tokens", std::move(special)},
                       {"bos_token", text_of(spec, spec.bos_id)}};
  if (!spec.config.chat_templates.empty()) json["chat_template"] = template_json(spec.config);
  json["clean_up_tokenization_spaces"] = false;
  json["eos_token"] = text_of(spec, spec.eos_id);
  json["errors"] = "replace";
  if (spec.config.model_max_length) json["model_max_length"] = *spec.config.model_max_length;
  json["pad_token"] = text_of(spec, spec.pad_id);
  json["split_special_tokens"] = false;
  json["tokenizer_class"] = "Qwen2Tokenizer";
  json["unk_token"] = text_of(spec, spec.unk_id);
  try {
    return json.dump(2) + "\n";
  } catch (const ordered_json::type_error&) {
    refuse(spec, "token or chat template", "bytes that are no text");
  }
}

}  // namespace

std::vector<std::pair<std::string, std::string>> tokenizer_files_of(const TokenizerSpec& spec) {
  check(spec);
  return {{"vocab.json", vocab_json(spec)},
          {"merges.txt", merges_txt(spec)},
          {"tokenizer_config.json", config_json(spec)}};
}

}  // namespace qw
