#include "server/receipt.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/sha256.h"
#include "engine/grammar/grammar_processor.h"
#include "kernels/isa.h"
#include "server/generation/allowed_tokens.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace qw::server {

namespace {

constexpr int kReceiptVersion = 1;

std::string sha256_of(std::string_view text) {
  return sha256_hex(std::as_bytes(std::span(text)));
}

/// Members in the order of their names.
std::string canonical(const Json& json) {
  return nlohmann::json(json).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// ---- enumerations as text ----------------------------------------------------------------------

constexpr std::pair<GrammarSource::Kind, std::string_view> kGrammarKinds[] = {
    {GrammarSource::Kind::kJsonSchema, "json_schema"},
    {GrammarSource::Kind::kJsonObject, "json_object"},
    {GrammarSource::Kind::kJsonValue, "json_value"},
    {GrammarSource::Kind::kRegex, "regex"},
    {GrammarSource::Kind::kGbnf, "gbnf"},
    {GrammarSource::Kind::kChoice, "choice"}};
constexpr std::pair<ActivationMode, std::string_view> kActivations[] = {
    {ActivationMode::kAuto, "auto"},
    {ActivationMode::kInt8, "int8"},
    {ActivationMode::kBf16, "bf16"},
    {ActivationMode::kF32, "f32"}};

template <typename Enum, size_t N>
std::string_view text_of(const std::pair<Enum, std::string_view> (&table)[N], Enum value) {
  return std::ranges::find(table, value, &std::pair<Enum, std::string_view>::first)->second;
}

// ---- members -----------------------------------------------------------------------------------

/// What stands for the text of tokens: the bytes of each, in order. Prompts are ids in a receipt,
/// so how a text is cut into tokens does not matter.
Json tokenizer_hash(const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) return nullptr;
  Sha256 hash;
  for (int32_t id = 0; id < tokenizer->size(); ++id) {
    const std::string_view bytes = tokenizer->token_bytes(id);
    const std::string length = fmt::format("{}:", bytes.size());
    hash.update(std::as_bytes(std::span(length)));
    hash.update(std::as_bytes(std::span(bytes)));
  }
  return to_hex(hash.finish());
}

Json template_hash(const ChatTemplate* chat_template) {
  if (chat_template == nullptr) return nullptr;
  return sha256_of(chat_template->source(false) + '\0' + chat_template->source(true));
}

std::vector<std::string> adapter_files(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::string> files;
  for (const char* name :
       {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}) {
    const std::string file = (std::filesystem::path(path) / name).string();
    if (path_exists(file)) files.push_back(file);
  }
  return files;
}

std::vector<std::string> model_files(const LoadedModel& loaded) {
  std::vector<std::string> files = loaded.checkpoint->weight_files;
  const std::string config =
      (std::filesystem::path(loaded.checkpoint->directory) / "config.json").string();
  if (loaded.checkpoint->config_json && path_exists(config)) files.push_back(config);
  return files;
}

/// Those of one owner, as they were listed when it was loaded.
Json hashes_json(const std::string& owner, std::span<const FileHash> hashes) {
  Json out = Json::array();
  for (const FileHash& hash : hashes) {
    if (hash.owner != owner) continue;
    out.push_back(
        {{"file", std::filesystem::path(hash.path).filename().string()}, {"sha256", hash.sha256}});
  }
  return out;
}

Json sampler_json(const GenerationConfig& config) {
  Json out = Json::object();
  for (const std::string& name : GenerationConfig::names()) {
    if (name != "seed") out[name] = config.get(name);
  }
  return out;
}

Json constraint_json(const GenerationTask& task) {
  if (!task.grammar) return nullptr;
  const GrammarSource& source = *task.grammar;
  Json out = {{"kind", text_of(kGrammarKinds, source.kind)}};
  if (source.kind == GrammarSource::Kind::kChoice) {
    out["choices"] = source.choices;
  } else if (source.kind != GrammarSource::Kind::kJsonObject &&
             source.kind != GrammarSource::Kind::kJsonValue) {
    out["text"] = source.text;
  }
  if (task.whitespace_pattern) out["whitespace_pattern"] = *task.whitespace_pattern;
  return out;
}

GrammarSource constraint_of(const Json& json) {
  GrammarSource source;
  const std::string kind = to_string("constraint.kind", json.value("kind", Json()));
  const auto* row = std::ranges::find(kGrammarKinds, kind,
                                      &std::pair<GrammarSource::Kind, std::string_view>::second);
  if (row == std::end(kGrammarKinds))
    refuse_field("constraint.kind", "expected a kind of grammar, got '{}'", printable(kind));
  source.kind = row->first;
  if (json.contains("text")) source.text = to_string("constraint.text", json["text"]);
  if (json.contains("choices")) source.choices = to_strings("constraint.choices", json["choices"]);
  if (json.contains("whitespace_pattern")) {
    source.json.whitespace_pattern =
        to_string("constraint.whitespace_pattern", json["whitespace_pattern"]);
  }
  return source;
}

}  // namespace

// ---- making ------------------------------------------------------------------------------------

std::vector<OwnedFile> files_of_adapters(const std::vector<AdapterSpec>& adapters) {
  std::vector<OwnedFile> out;
  for (const AdapterSpec& adapter : adapters) {
    for (std::string& file : adapter_files(adapter.path))
      out.push_back({adapter.path, std::move(file)});
  }
  return out;
}

std::vector<OwnedFile> receipt_files(const LoadedModel& files,
                                     const std::vector<AdapterSpec>& adapters) {
  std::vector<OwnedFile> out;
  for (std::string& file : model_files(files))
    out.push_back({"", std::move(file)});
  for (OwnedFile& file : files_of_adapters(adapters))
    out.push_back(std::move(file));
  return out;
}

Json receipt_environment(const LoadedModel& loaded, const OpenOptions& open,
                         std::span<const FileHash> hashes, const std::string& name,
                         const std::string& version, const std::string& build) {
  Json adapters = Json::array();
  for (const AdapterSpec& adapter : open.adapters) {
    adapters.push_back({{"name", std::filesystem::path(adapter.path).filename().string()},
                        {"scale", adapter.scale},
                        {"files", hashes_json(adapter.path, hashes)}});
  }
  return {{"program",
           {{"version", version},
            {"build", build},
            {"isa", kernels::name_of(kernels::choose_isa(open.backend.isa).level)},
            {"device", open.device},
            {"kv_type", loaded.engine_options.kv_type},
            {"activations", text_of(kActivations, open.backend.activations)}}},
          {"model",
           {{"name", name},
            {"files", hashes_json("", hashes)},
            {"tokenizer", tokenizer_hash(loaded.tokenizer.get())},
            {"chat_template", template_hash(loaded.chat_template.get())},
            {"adapters", std::move(adapters)}}},
          {"context", loaded.engine_options.ctx}};
}

Json receipt_of_request(const GenerationTask& task, const Prepared& prepared,
                        const Json& structure) {
  const Request& first = prepared.requests[0];
  Json requests = Json::array();
  for (const Request& request : prepared.requests)
    requests.push_back({{"prompt", request.prompt}});
  return {
      {"seed", first.config.seed},
      {"sampler", sampler_json(first.config)},
      {"allowed_token_ids", task.allowed_token_ids ? Json(*task.allowed_token_ids) : Json(nullptr)},
      {"constraint", constraint_json(task)},
      {"tools", structure},
      {"skip_special_tokens", first.skip_special_tokens},
      {"stop_after", first.stop_after},
      {"turn_ends", first.n_turn_ends},
      {"requests", std::move(requests)}};
}

std::string receipt_sha256(const Json& receipt) {
  Json others = receipt;
  others.erase("sha256");
  return sha256_of(canonical(others));
}

Json finished_receipt(const Json& request, const Json& environment,
                      std::span<const std::shared_ptr<const RequestResult>> results) {
  Json out = {{"receipt", kReceiptVersion}};
  out.update(environment);
  out.update(request);
  for (size_t i = 0; i < results.size(); ++i) {
    Json answers = Json::array();
    for (const Completion& completion : results[i]->completions)
      answers.push_back(
          {{"ids", completion.ids}, {"finish_reason", name_of(completion.finish_reason)}});
    out["requests"][i]["answers"] = std::move(answers);
  }
  out["sha256"] = receipt_sha256(out);
  return out;
}

// ---- replaying ---------------------------------------------------------------------------------

void check_receipt(const Json& receipt) {
  if (!receipt.is_object() || !receipt.contains("receipt") || !receipt.contains("sha256"))
    refuse_field("receipt", "expected an object with receipt and sha256, got {}", shown(receipt));
  if (receipt["receipt"] != kReceiptVersion)
    refuse_field("receipt", "expected version {}, got {}", kReceiptVersion,
                 shown(receipt["receipt"]));
  const std::string sum = receipt_sha256(receipt);
  if (receipt["sha256"] != sum) {
    refuse_field("sha256", "expected {} (of the other members), got {}: the receipt was changed",
                 sum, shown(receipt["sha256"]));
  }
  for (const char* name : {"program", "model", "sampler"})
    to_object(name, receipt.value(name, Json()));
  to_array("requests", receipt.value("requests", Json()));
}

std::vector<std::string> receipt_differences(const Json& receipt, const Json& here) {
  std::vector<std::string> out;
  const auto compare = [&](const char* what, const Json& then, const Json& now) {
    if (then == now) return;
    out.push_back(
        fmt::format("{}: the receipt's is {}, this one is {}", what, shown(then), shown(now)));
  };
  const auto in = [](const Json& json, const char* object, const char* name) {
    const Json& inner = json[object];
    return inner.is_object() ? inner.value(name, Json()) : Json();
  };
  const auto compare_member = [&](const char* what, const char* object, const char* name) {
    compare(what, in(receipt, object, name), in(here, object, name));
  };
  const auto sums_of = [](const Json& files) {
    Json sums = Json::array();
    for (const Json& file : files)
      sums.push_back(file.is_object() ? file.value("sha256", Json()) : Json());
    return sums;
  };
  compare("weights", sums_of(in(receipt, "model", "files")), sums_of(in(here, "model", "files")));
  compare_member("adapters", "model", "adapters");
  compare_member("tokenizer", "model", "tokenizer");
  compare_member("chat template", "model", "chat_template");
  compare_member("version of the program", "program", "version");
  compare_member("build of the program", "program", "build");
  compare_member("instruction set", "program", "isa");
  compare_member("device", "program", "device");
  compare_member("type of the KV cache", "program", "kv_type");
  compare_member("activations", "program", "activations");
  compare("context", receipt.value("context", Json()), here.value("context", Json()));
  return out;
}

std::vector<Request> requests_of_receipt(const Json& receipt, const LoadedModel& loaded) {
  Request base;
  for (const auto& [name, value] : receipt["sampler"].items()) {
    // As the file's: what did not fit the context was refused then, or cut with a warning.
    if (!value.is_null()) base.config.set(name, value, ParameterSource::kFile);
  }
  base.config.set("seed", receipt.value("seed", Json()), ParameterSource::kFile);
  base.adapter = loaded.adapter;
  base.skip_special_tokens =
      to_bool("skip_special_tokens", receipt.value("skip_special_tokens", Json(true)));
  // Receipts of earlier versions have neither.
  base.stop_after = to_integer("stop_after", receipt.value("stop_after", Json(0)), 0, INT64_MAX);
  base.n_turn_ends = static_cast<size_t>(to_integer(
      "turn_ends", receipt.value("turn_ends", Json(0)), 0, std::ssize(base.config.stop_strings)));
  const Json allowed = receipt.value("allowed_token_ids", Json());
  if (!allowed.is_null()) {
    base.processors.push_back(
        std::make_shared<AllowedTokens>(to_ids("allowed_token_ids", allowed)));
  }
  std::function<std::shared_ptr<const Grammar>()> grammar;
  ToolCallStructure structure;  // whose schemas the grammar is built of
  const Json tools = receipt.value("tools", Json()), limit = receipt.value("constraint", Json());
  std::optional<AnswerForm> form;
  if (!limit.is_null())
    form = AnswerForm{constraint_of(to_object("constraint", limit)), "constraint"};
  if (!tools.is_null()) {
    structure = structure_of_json(to_object("tools.structure", tools.value("structure", Json())));
    if (auto of_tools = grammar_of(structure, form)) grammar = of_tools->build;
  } else if (form) {
    grammar = [source = form->source] { return source.compile(); };
  }
  std::shared_ptr<GrammarMatcher> matcher;
  if (grammar) {
    if (loaded.tokenizer == nullptr)
      refuse_field("constraint", "expected a model with a tokenizer, got one without");
    matcher = std::make_shared<GrammarMatcher>(
        grammar(), std::make_shared<const GrammarVocabulary>(*loaded.tokenizer));
  }
  std::vector<Request> out;
  for (const Json& item : receipt["requests"]) {
    Request request = base;
    request.prompt = to_ids("prompt", to_object("requests", item).value("prompt", Json()));
    if (matcher) {
      request.processors.push_back(
          std::make_shared<GrammarProcessor>(matcher, request.config.eos_token_id));
    }
    out.push_back(std::move(request));
  }
  return out;
}

}  // namespace qw::server
