#include "app/calibration_input.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "app/command.h"
#include "app/input.h"
#include "app/open.h"
#include "base/error.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

std::vector<int32_t> ids_of_text(const ModelFiles& files, const std::string& model,
                                 std::string_view text) {
  EncodeOptions encode;
  encode.parse_special = true;
  return tokenizer_of(files, model).encode(text, encode);
}

std::vector<int32_t> ids_of_chat(const ModelFiles& files, const std::string& model,
                                 const ordered_json& row) {
  tokenizer_of(files, model);
  ChatInput chat;
  const auto member = [&](const char* name) -> std::shared_ptr<const ordered_json> {
    return row.contains(name) ? std::make_shared<const ordered_json>(row[name]) : nullptr;
  };
  chat.messages = member("messages");
  chat.tools = member("tools");
  chat.documents = member("documents");
  chat.add_generation_prompt = false;
  return files.encode_chat(chat).ids;
}

std::vector<int32_t> ids_of_line(const ModelFiles& files, const std::string& model,
                                 std::string_view line, std::string_view where) {
  const ordered_json row = parse_user_json(line, where);
  const std::string key = only_key_of(row, {"text", "messages", "ids"}, where);
  if (key == "ids") return parse_ids(row["ids"].dump(), "ids");
  if (key == "messages") return ids_of_chat(files, model, row);
  if (!row["text"].is_string()) {
    fail(ErrorKind::kInvalidArgument, "calibration", "text: expected a string, got {}",
         printable(row["text"].dump(), 60));
  }
  return ids_of_text(files, model, row["text"].get<std::string>());
}

std::vector<std::vector<int32_t>> ids_of_lines(const ModelFiles& files, const std::string& model,
                                               std::string_view text, std::string_view where) {
  std::vector<std::vector<int32_t>> samples;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    name_line(number, [&] { samples.push_back(ids_of_line(files, model, line, where)); });
  }
  return samples;
}

}  // namespace

void add_calibration_flags(CLI::App& app, CalibrationFlags& flags) {
  app.add_option("--calibration", flags.file,
                 "What the model is seen on: a text, or a line each of {\"text\"}, {\"messages\"} "
                 "or {\"ids\"} (default: a small set of many kinds that comes with the program)");
  app.add_option("--calibration-length", flags.cut.length,
                 "Tokens of a sequence: longer samples are cut into several")
      ->check(integer_in(2, uint64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--calibration-tokens", flags.cut.max_tokens,
                 "Tokens in all; of more, sequences are left out evenly (0: no limit)")
      ->check(integer_from(0))
      ->capture_default_str();
}

quantize::CalibrationSet read_calibration(const CalibrationFlags& flags, const ModelFiles& files,
                                          const std::string& model) {
  if (flags.file.empty()) {
    return quantize::cut_calibration(
        ids_of_lines(files, model, quantize::default_calibration(), "built-in calibration"),
        flags.cut);
  }
  const std::string text = read_input(flags.file);
  const size_t first = text.find_first_not_of(" \t\r\n");
  const bool is_json = flags.file.ends_with(".jsonl") || flags.file.ends_with(".json") ||
                       (first != std::string::npos && text[first] == '{');
  if (is_json)
    return quantize::cut_calibration(ids_of_lines(files, model, text, flags.file), flags.cut);
  return quantize::cut_calibration({ids_of_text(files, model, text)}, flags.cut);
}

void name_importance(const CalibrationFlags& flags, quantize::ImportanceMatrix& importance) {
  importance.file = flags.file.empty() ? "built-in calibration"
                                       : std::filesystem::path(flags.file).filename().string();
  importance.datasets = {importance.file};
}

std::unique_ptr<Backend> calibration_backend(const CommonOptions& options) {
  OpenOptions open = open_options(options);
  // Inputs are to be seen as they are, not as a fast kernel rounds them.
  if (open.backend.activations == ActivationMode::kAuto)
    open.backend.activations = ActivationMode::kF32;
  return make_backend(open.device, open.backend);
}

}  // namespace qw::app
