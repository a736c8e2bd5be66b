// Tokenizer, chat template and generation defaults of a checkpoint.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/hf_config.h"
#include "engine/bundle.h"
#include "model/gguf_tokenizer.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kImEnd = "<|im_end|>";
constexpr std::string_view kEndOfText = "<|endoftext|>";

// ---- tokenizer ---------------------------------------------------------------------------------

/// Null when the file says it has no vocabulary.
std::shared_ptr<const Tokenizer> tokenizer_of_gguf(const GgufMetadata& metadata) {
  std::optional<TokenizerSpec> spec = gguf_tokenizer_spec(metadata);
  return spec ? std::make_shared<const Tokenizer>(std::move(*spec)) : nullptr;
}

/// Null when the directory holds none; a broken one is an error.
std::shared_ptr<const Tokenizer> tokenizer_of_directory(const std::string& directory,
                                                        std::vector<std::string>& warnings) {
  namespace fs = std::filesystem;
  const auto has = [&](const char* name) {
    std::error_code ignored;
    return fs::exists(fs::path(directory) / name, ignored);
  };
  if (has("tokenizer.json") || has("vocab.json") || has("qwen.tiktoken"))
    return load_tokenizer_directory(directory);
  if (has("tokenizer.model")) {
    warnings.push_back(fmt::format(
        "tokenizer.model alone (SentencePiece) is not supported: only token ids can be used; "
        "expected tokenizer.json beside it ({})",
        directory));
  }
  return nullptr;
}

// ---- chat template -----------------------------------------------------------------------------

ChatTemplate::SpecialTokens special_tokens_of(const Tokenizer& tokenizer) {
  const TokenizerConfig& config = tokenizer.config();
  ChatTemplate::SpecialTokens out;
  const auto add = [&](const char* name, const std::optional<std::string>& text,
                       std::optional<int32_t> id) {
    if (text) {
      out.emplace_back(name, *text);
    } else if (id) {
      out.emplace_back(name, std::string(tokenizer.token_text(*id)));
    }
  };
  add("bos_token", config.bos_token, tokenizer.bos_id());
  add("eos_token", config.eos_token, tokenizer.eos_id());
  add("pad_token", config.pad_token, tokenizer.pad_id());
  add("unk_token", config.unk_token, tokenizer.unk_id());
  return out;
}

void add_chat_template(ModelFiles& files) {
  const Tokenizer& tokenizer = *files.tokenizer;
  const auto& templates = tokenizer.config().chat_templates;
  files.chat_template_origin = templates.empty() ? "default" : "checkpoint";
  try {
    if (templates.empty()) {
      files.chat_template = std::make_shared<const ChatTemplate>(kQwen15DefaultTemplate,
                                                                 special_tokens_of(tokenizer));
      return;
    }
    Json list = Json::array();
    for (const auto& [name, source] : templates)
      list.push_back({{"name", name}, {"template", source}});
    files.chat_template = std::make_shared<const ChatTemplate>(
        ChatTemplate::from_json(list, special_tokens_of(tokenizer)));
  } catch (const Error& error) {
    // Everything but chat works without it, so it is reported when a chat is asked for.
    files.chat_template_error = error.message();
    files.warnings.push_back(fmt::format("chat template: {}", error.message()));
  }
}

// ---- generation defaults -----------------------------------------------------------------------

void add_eos(GenerationConfig& config, std::optional<int32_t> id) {
  if (!id || std::find(config.eos_token_id.begin(), config.eos_token_id.end(), *id) !=
                 config.eos_token_id.end())
    return;
  std::vector<int32_t> ids = config.eos_token_id;
  ids.push_back(*id);
  config.set("eos_token_id", Json(ids), ParameterSource::kFile);
}

/// What generation_config.json leaves open, config.json says, as in Transformers.
void complete_from_config(const std::string& config_json, GenerationConfig& config) {
  const Json object = parse_json_object(config_json, "config.json");
  for (const char* key : {"eos_token_id", "bos_token_id", "pad_token_id"}) {
    if (config.source_of(key) != ParameterSource::kDefault) continue;
    const Json* value = find_member(object, key, "config.json");
    if (value == nullptr) continue;
    try {
      config.set(key, *value, ParameterSource::kFile);
    } catch (const Error& error) {
      throw Error(ErrorKind::kCorrupt, fmt::format("{} (config.json)", error.message()));
    }
  }
}

void complete_from_gguf(const GgufMetadata& metadata, const Tokenizer* tokenizer,
                        GenerationConfig& config) {
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (metadata.find(key) == nullptr) continue;
    const int64_t id = metadata.integer(key);
    if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
      fail(ErrorKind::kCorrupt, "gguf", "{}: expected a token id, got {} ({})", key, id,
           metadata.file);
    }
    add_eos(config, static_cast<int32_t>(id));
  }
  if (tokenizer == nullptr) return;
  if (tokenizer->bos_id())
    config.set("bos_token_id", Json(*tokenizer->bos_id()), ParameterSource::kFile);
  if (tokenizer->pad_id())
    config.set("pad_token_id", Json(*tokenizer->pad_id()), ParameterSource::kFile);
  add_eos(config, tokenizer->id_of(kImEnd));
  add_eos(config, tokenizer->id_of(kEndOfText));
}

void add_generation_defaults(ModelFiles& files) {
  const Checkpoint& checkpoint = *files.checkpoint;
  if (checkpoint.generation_config_json) {
    for (std::string& warning :
         files.generation.read_json(*checkpoint.generation_config_json, "generation_config.json")) {
      files.warnings.push_back(std::move(warning));
    }
  }
  if (checkpoint.config_json) complete_from_config(*checkpoint.config_json, files.generation);
  if (checkpoint.gguf)
    complete_from_gguf(*checkpoint.gguf, files.tokenizer.get(), files.generation);
}

std::vector<ByteRange> byte_ranges(const std::vector<TextRange>& ranges) {
  std::vector<ByteRange> out;
  out.reserve(ranges.size());
  for (const TextRange& range : ranges)
    out.push_back({range.begin, range.end});
  return out;
}

}  // namespace

ModelFiles open_files(const std::string& path, bool weights_required) {
  ModelFiles files;
  files.checkpoint = Checkpoint::open(path, weights_required);
  files.tokenizer = files.checkpoint->gguf
                        ? tokenizer_of_gguf(*files.checkpoint->gguf)
                        : tokenizer_of_directory(files.checkpoint->directory, files.warnings);
  if (files.tokenizer) add_chat_template(files);
  add_generation_defaults(files);
  return files;
}

ModelFiles open_draft_files(const std::string& path) {
  try {
    return open_files(path);
  } catch (const Error& error) {
    const std::string& message = error.message();  // "[component] what: ..."
    const size_t end = message.starts_with('[') ? message.find("] ") : std::string::npos;
    throw Error(error.kind(),
                "[draft model] " + (end == std::string::npos ? message : message.substr(end + 2)));
  }
}

void check_draft_vocabulary(const ModelFiles& draft, const ModelConfig& draft_config,
                            const ModelFiles& answering, const ModelConfig& answering_config) {
  const auto refuse = [&](std::string_view what, const auto& expected, const auto& got) {
    fail(ErrorKind::kInvalidArgument, "draft model",
         "{}: expected that of the model, {}, got {} ({}; model {})", what, expected, got,
         printable(draft.checkpoint->path, 4096), printable(answering.checkpoint->path, 4096));
  };
  if (!draft.tokenizer || !answering.tokenizer) {
    if (draft_config.vocab != answering_config.vocab)
      refuse("vocabulary without a tokenizer", answering_config.vocab, draft_config.vocab);
    return;
  }
  const Tokenizer &ours = *draft.tokenizer, &theirs = *answering.tokenizer;
  if (ours.size() != theirs.size())
    refuse("vocabulary", fmt::format("{} tokens", theirs.size()),
           fmt::format("{} tokens", ours.size()));
  for (int32_t id = 0; id < ours.size(); ++id) {
    if (ours.token_bytes(id) == theirs.token_bytes(id)) continue;
    refuse(fmt::format("token {}", id), fmt::format("'{}'", printable(theirs.token_bytes(id))),
           fmt::format("'{}'", printable(ours.token_bytes(id))));
  }
}

EncodedChat ModelFiles::encode_chat(const ChatInput& input) const {
  if (!tokenizer) {
    fail(ErrorKind::kNotFound, "chat", "tokenizer: expected one in the checkpoint, got none ({})",
         printable(checkpoint->path, 4096));
  }
  if (!chat_template) throw Error(ErrorKind::kCorrupt, chat_template_error);
  RenderInput render;
  render.messages = input.messages.get();
  render.tools = input.tools.get();
  render.documents = input.documents.get();
  render.variables = input.variables.get();
  render.add_generation_prompt = input.add_generation_prompt;
  render.continue_final_message = input.continue_final_message;
  if (!input.now.empty()) render.now = LocalTime::parse(input.now);
  render.cancel = input.cancel;
  RenderResult rendered = chat_template->render(render);

  EncodedChat out;
  const std::vector<ByteRange> plain = byte_ranges(rendered.content_ranges);
  EncodeOptions encode;
  if (!input.parse_special_in_content) encode.plain_ranges = plain;
  encode.cancel = input.cancel;
  out.ids = tokenizer->encode(rendered.text, encode);
  for (const TextRange& span : rendered.assistant_spans)
    out.assistant_ranges.emplace_back(span.begin, span.end);
  out.text = std::move(rendered.text);
  return out;
}

GenerationConfig ModelFiles::chat_generation() const {
  GenerationConfig config = generation;
  if (tokenizer) add_eos(config, tokenizer->id_of(kImEnd));
  return config;
}

}  // namespace qw
