#include "server/generation/client_words.h"

#include <cctype>

#include "base/utf8.h"
#include "text/chat_template.h"

namespace qw::server {

namespace {

/// Where `word` stands in a text, not as a part of a longer one; npos: nowhere from `begin` on.
size_t find_word(std::string_view text, std::string_view word, size_t begin) {
  const auto is_part = [&](size_t i) {
    return i < text.size() && (std::isalnum(static_cast<unsigned char>(text[i])) != 0 ||
                               text[i] == '_' || text[i] == '.');
  };
  for (size_t at = text.find(word, begin); at != std::string_view::npos;
       at = text.find(word, at + 1)) {
    if (!is_part(at - 1) && !is_part(at + word.size())) return at;
  }
  return std::string_view::npos;
}

/// Why a parameter changes nothing. Beams are asked for by other names than the engine's.
std::string reason_of(const GenerationTask& task, const GenerationConfig::Idle& idle) {
  if (task.use_beam_search && idle.why == "do_sample is false") return "use_beam_search is true";
  if (idle.why == "num_beams is 1") {
    return task.use_beam_search
               ? fmt::format("there is one beam, since {} is 1", task.best_of ? "best_of" : "n")
               : "there is no beam search";
  }
  std::string why = idle.why;
  for (const GenerationTask::Parameter& parameter : task.parameters) {
    if (const size_t at = find_word(why, parameter.name, 0); at != std::string::npos)
      why.replace(at, parameter.name.size(), parameter.field);
  }
  return why;
}

bool is_of_json(const std::optional<GrammarSource>& grammar) {
  using Kind = GrammarSource::Kind;
  return grammar && (grammar->kind == Kind::kJsonSchema || grammar->kind == Kind::kJsonObject ||
                     grammar->kind == Kind::kJsonValue);
}

}  // namespace

std::string idle_sentence(std::string_view field, std::string_view why) {
  return fmt::format("{}: no effect ({})", field, why);
}

std::string field_of(const GenerationTask& task, std::string_view parameter) {
  const auto found =
      std::ranges::find(task.parameters, parameter, &GenerationTask::Parameter::name);
  return found == task.parameters.end() ? std::string(parameter) : found->field;
}

std::string prompt_field_of(const GenerationTask& task) {
  if (!task.prompt_field.empty()) return task.prompt_field;
  return task.chat ? "messages" : "prompt";
}

RequestError in_clients_words(const GenerationTask& task, const Error& error) {
  std::string message = error.message(), field;
  const std::string subject(subject_of(message));
  for (const GenerationTask::Parameter& parameter : task.parameters) {
    if (field.empty() && find_word(subject, parameter.name, 0) == 0) field = parameter.field;
    if (parameter.name == parameter.field) continue;
    for (size_t at = find_word(message, parameter.name, 0); at != std::string::npos;
         at = find_word(message, parameter.name, at + parameter.field.size()))
      message.replace(at, parameter.name.size(), parameter.field);
  }
  return {error.kind(), std::move(message), std::move(field)};
}

std::vector<std::string> idle_fields(const GenerationTask& task, const GenerationConfig& config,
                                     const ServedModel& model) {
  std::vector<std::string> out;
  const bool has_draft_model = model.files().draft_model != nullptr;
  for (const GenerationConfig::Idle& idle : config.idle(std::nullopt, has_draft_model)) {
    const auto given =
        std::ranges::find(task.parameters, idle.name, &GenerationTask::Parameter::name);
    if (given == task.parameters.end()) continue;
    // Stop strings wait for so many tokens, too.
    if (idle.name == "min_new_tokens" && task.min_tokens_before_stops &&
        !config.stop_strings.empty())
      continue;
    out.push_back(idle_sentence(given->field, reason_of(task, idle)));
  }
  if (config.ignore_eos && task.ignore_eos_ignores_stop_tokens && !task.stop_token_ids.empty()) {
    out.push_back(
        idle_sentence(task.stop_token_ids_field, field_of(task, "ignore_eos") + " is true"));
  }
  if (task.whitespace_pattern && !is_of_json(task.grammar))
    out.push_back(idle_sentence(task.whitespace_field, "no JSON is asked for"));
  return out;
}

std::vector<std::string> idle_variables(std::string_view variables_field, const ChatInput& chat,
                                        const ServedModel& model) {
  std::vector<std::string> out;
  const ChatTemplate* chat_template = model.files().chat_template.get();
  if (chat_template == nullptr) return out;
  const bool with_tools = chat.tools != nullptr && !chat.tools->is_null();
  const auto note = [&](const std::string& field, std::string_view variable) {
    if (!chat_template->reads(variable, with_tools)) {
      out.push_back(idle_sentence(
          field, fmt::format("the model's template does not read {}", printable(variable))));
    }
  };
  if (chat.documents != nullptr && !chat.documents->empty()) note("documents", "documents");
  if (chat.variables == nullptr || !chat.variables->is_object()) return out;
  for (const auto& [name, value] : chat.variables->items()) {
    if (!value.is_null()) note(fmt::format("{}.{}", variables_field, printable(name)), name);
  }
  return out;
}

}  // namespace qw::server
