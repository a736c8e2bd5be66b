#include "text/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/guarded_json.h"
#include "base/json_limits.h"
#include "base/log.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view kComponent = "tokenizer";
// Room for some 32,000 added tokens of seven fields each.
constexpr JsonLimits kLimits{.max_keys = 500'000, .max_object_keys = 1 << 15};

[[noreturn]] void wrong(std::string_view field, std::string_view expected, const Json& got,
                        const std::string& source) {
  fail(ErrorKind::kCorrupt, kComponent, "{}: expected {}, got {} ({})", field, expected,
       printable(got.dump(-1, ' ', false, Json::error_handler_t::replace), 80), source);
}

Json parse_object(std::string_view text, const std::string& source) {
  if (text.size() > kLimits.max_bytes) {
    fail(ErrorKind::kCorrupt, kComponent, "size: expected at most {} bytes, got {} ({})",
         kLimits.max_bytes, text.size(), source);
  }
  Json root =
      parse_guarded_or_discard<Json>(text, JsonLimitGuard(kLimits, ErrorKind::kCorrupt, source));
  if (root.is_discarded())
    fail(ErrorKind::kCorrupt, kComponent,
         "document: expected valid JSON, got text that is none ({})", source);
  if (!root.is_object()) wrong("document", "an object", root, source);
  return root;
}

/// A token given as a text or as an AddedToken object; empty when null.
std::optional<std::string> token_text(const Json& value, std::string_view field,
                                      const std::string& source) {
  if (value.is_null()) return std::nullopt;
  const Json* text = &value;
  if (value.is_object() && value.contains("content")) text = &value["content"];
  if (!text->is_string() || *text == "") wrong(field, "the text of a token", value, source);
  return text->get<std::string>();
}

bool flag_of(const Json& object, const char* name, const std::string& source) {
  const auto it = object.find(name);
  if (it == object.end() || it->is_null()) return false;
  if (!it->is_boolean()) wrong(name, "true or false", *it, source);
  return it->get<bool>();
}

/// The added tokens of a spec, found by text or id without a search through all of them.
class AddedTokens {
 public:
  explicit AddedTokens(TokenizerSpec& spec) : spec_(spec) {
    for (size_t i = 0; i < spec.added_tokens.size(); ++i)
      index(i);
  }

  AddedToken* find(const std::string& content) {
    const auto it = by_content_.find(content);
    return it == by_content_.end() ? nullptr : &spec_.added_tokens[it->second];
  }

  /// Adds a token, or gives the one that is there already these options. Texts and ids must agree.
  void merge(AddedToken token, const std::string& source) {
    const auto same_content = by_content_.find(token.content);
    const auto same_id = by_id_.find(token.id);
    if (same_content == by_content_.end() && same_id == by_id_.end()) {
      spec_.added_tokens.push_back(std::move(token));
      return index(spec_.added_tokens.size() - 1);
    }
    AddedToken& known = spec_.added_tokens[same_content != by_content_.end() ? same_content->second
                                                                             : same_id->second];
    if (known.content != token.content || known.id != token.id) {
      fail(ErrorKind::kCorrupt, kComponent,
           "added token: expected '{}' with id {} as in {}, got '{}' with id {} ({})",
           printable(known.content), known.id, spec_.source, printable(token.content), token.id,
           source);
    }
    known = std::move(token);
  }

 private:
  void index(size_t i) {
    by_content_.emplace(spec_.added_tokens[i].content, i);
    by_id_.emplace(spec_.added_tokens[i].id, i);
  }
  TokenizerSpec& spec_;
  std::unordered_map<std::string, size_t> by_content_;
  std::unordered_map<int32_t, size_t> by_id_;
};

void read_added_tokens_decoder(const Json& decoder, const std::string& source,
                               TokenizerSpec& spec) {
  if (!decoder.is_object()) wrong("added_tokens_decoder", "an object", decoder, source);
  AddedTokens added(spec);
  for (const auto& [key, value] : decoder.items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= kMaxTokens) {
      wrong("added_tokens_decoder", fmt::format("ids below {}", kMaxTokens), key, source);
    }
    if (!value.is_object()) wrong("added_tokens_decoder", "an object per id", value, source);
    const auto content = token_text(value, "added_tokens_decoder", source);
    if (!content) wrong("added_tokens_decoder", "a content per id", value, source);
    added.merge({id, *content, flag_of(value, "special", source),
                 flag_of(value, "normalized", source), flag_of(value, "lstrip", source),
                 flag_of(value, "rstrip", source), flag_of(value, "single_word", source)},
                source);
  }
}

void read_named_tokens(const Json& root, const std::string& source, TokenizerConfig& config) {
  const auto read = [&](const char* name, std::optional<std::string>& token) {
    // A null is a statement too: it takes back what an older file said.
    if (const auto it = root.find(name); it != root.end()) token = token_text(*it, name, source);
  };
  read("bos_token", config.bos_token);
  read("eos_token", config.eos_token);
  read("pad_token", config.pad_token);
  read("unk_token", config.unk_token);
  const auto additional = root.find("additional_special_tokens");
  if (additional == root.end() || additional->is_null()) return;
  if (!additional->is_array()) wrong("additional_special_tokens", "a list", *additional, source);
  config.additional_special_tokens.clear();
  for (const Json& token : *additional) {
    auto text = token_text(token, "additional_special_tokens", source);
    if (text) config.additional_special_tokens.push_back(*std::move(text));
  }
}

void read_chat_template(const Json& value, const std::string& source, TokenizerConfig& config) {
  if (value.is_null()) return;
  config.chat_templates.clear();
  if (value.is_string()) {
    config.chat_templates.emplace_back("default", value.get<std::string>());
    return;
  }
  if (!value.is_array()) wrong("chat_template", "a text or a list of named texts", value, source);
  for (const Json& entry : value) {
    const bool good = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                      entry.contains("template") && entry["template"].is_string();
    if (!good) wrong("chat_template", "a name and a template", entry, source);
    config.chat_templates.emplace_back(entry["name"].get<std::string>(),
                                       entry["template"].get<std::string>());
  }
}

void read_max_length(const Json& value, const std::string& source, TokenizerConfig& config) {
  constexpr double kNoLimit = 1e18;  // Transformers writes int(1e30) for "none known"
  if (value.is_null()) return;
  if (!value.is_number() || value.get<double>() < 1) {
    wrong("model_max_length", "a number of tokens", value, source);
  }
  if (value.get<double>() < kNoLimit) config.model_max_length = value.get<int64_t>();
}

}  // namespace

void apply_tokenizer_config(std::string_view json, const std::string& source, TokenizerSpec& spec) {
  const Json root = parse_object(json, source);
  const auto field = [&](const char* name) -> const Json& {
    static const Json kNull;
    const auto it = root.find(name);
    return it == root.end() ? kNull : *it;
  };
  if (!field("added_tokens_decoder").is_null()) {
    read_added_tokens_decoder(field("added_tokens_decoder"), source, spec);
  }
  read_named_tokens(root, source, spec.config);
  read_chat_template(field("chat_template"), source, spec.config);
  read_max_length(field("model_max_length"), source, spec.config);
  if (field("tokenizer_class").is_string()) {
    spec.config.tokenizer_class = field("tokenizer_class").get<std::string>();
  }
  if (flag_of(root, "clean_up_tokenization_spaces", source)) {
    logger().warn("{}: clean_up_tokenization_spaces is not applied; text is decoded as it stands",
                  source);
  }
  // Only Llama's classes build their post-processor from this flag; Qwen2's ignores it.
  const bool llama = spec.config.tokenizer_class.value_or("").starts_with("Llama");
  if (llama && flag_of(root, "add_bos_token", source) && spec.prefix_ids.empty()) {
    mark_named_tokens_special(spec);
    const AddedToken* bos = AddedTokens(spec).find(spec.config.bos_token.value_or(""));
    if (bos == nullptr) wrong("add_bos_token", "a bos_token too", true, source);
    spec.prefix_ids = {bos->id};
  }
}

void apply_added_tokens_json(std::string_view json, const std::string& source,
                             TokenizerSpec& spec) {
  const Json root = parse_object(json, source);
  AddedTokens added(spec);
  for (const auto& [content, id] : root.items()) {
    if (content.empty() || !id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kMaxTokens}) {
      wrong("added token", fmt::format("a text and an id below {}", kMaxTokens), id, source);
    }
    // The file has no options: a token that is known with its options keeps them.
    const AddedToken* known = added.find(content);
    AddedToken token = known == nullptr ? AddedToken{} : *known;
    token.id = id.get<int32_t>();
    token.content = content;
    added.merge(std::move(token), source);
  }
}

void apply_special_tokens_map(std::string_view json, const std::string& source,
                              TokenizerSpec& spec) {
  read_named_tokens(parse_object(json, source), source, spec.config);
}

void mark_named_tokens_special(TokenizerSpec& spec) {
  std::vector<std::pair<std::string_view, std::string>> named;
  const auto name = [&](std::string_view field, const std::optional<std::string>& text) {
    if (text) named.emplace_back(field, *text);
  };
  name("bos_token", spec.config.bos_token);
  name("eos_token", spec.config.eos_token);
  name("pad_token", spec.config.pad_token);
  name("unk_token", spec.config.unk_token);
  for (const std::string& text : spec.config.additional_special_tokens) {
    named.emplace_back("additional_special_tokens", text);
  }
  AddedTokens added(spec);
  for (const auto& [field, text] : named) {
    if (AddedToken* known = added.find(text)) {
      known->special = true;
      continue;
    }
    const auto plain = std::find(spec.tokens.begin(), spec.tokens.end(), text);
    if (plain == spec.tokens.end()) {
      fail(ErrorKind::kCorrupt, kComponent, "{}: expected a token of the vocabulary, got '{}' ({})",
           field, printable(text), spec.source);
    }
    added.merge({static_cast<int32_t>(plain - spec.tokens.begin()), text, /*special=*/true},
                spec.source);
  }
}

}  // namespace qw
