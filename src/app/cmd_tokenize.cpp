// qianwen tokenize: text to ids.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/input.h"
#include "app/open.h"
#include "base/error.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::optional<std::string> prompt, file;
  bool plain = false;
  std::string invalid_utf8 = "error";
};

std::string bytes_of_hex(const std::string& hex, size_t line) {
  const auto digit = [&](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    fail(ErrorKind::kInvalidArgument, "tokenize",
         "hex: expected pairs of hexadecimal digits, got '{}' (line {})", printable(hex), line);
  };
  if (hex.size() % 2 != 0) {
    fail(ErrorKind::kInvalidArgument, "tokenize",
         "hex: expected an even number of digits, got {} (line {})", hex.size(), line);
  }
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1])));
  }
  return bytes;
}

void print(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool json) {
  if (json) {
    nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
    for (const int32_t id : ids)
      tokens.push_back(std::string(tokenizer.token_text(id)));
    print_json({{"ids", ids}, {"tokens", std::move(tokens)}});
    return;
  }
  std::string text;
  for (const int32_t id : ids)
    text += fmt::format("{:>7}  {}\n", id, tokenizer.token_text(id));
  print_result(text);
}

void run(const Options& options) {
  EncodeOptions encode;
  encode.parse_special = !options.plain;
  if (options.invalid_utf8 == "replace") {
    encode.invalid_utf8 = InvalidUtf8::kReplace;
  } else if (options.invalid_utf8 != "error") {
    fail(ErrorKind::kInvalidArgument, "command line",
         "--invalid-utf8: expected error or replace, got '{}'", printable(options.invalid_utf8));
  }
  const ModelFiles files = open_for_reading(options, false);
  const Tokenizer& tokenizer = tokenizer_of(files, model_path(options));
  if (!options.file) {
    print(tokenizer, tokenizer.encode(options.prompt ? *options.prompt : read_stdin(), encode),
          options.json);
    return;
  }
  for_each_json_line(*options.file, [&](const nlohmann::ordered_json& row, size_t line) {
    interrupted().check("tokenize");
    const std::string key = only_key_of(row, {"text", "hex"}, fmt::format("line {}", line));
    if (!row[key].is_string()) {
      fail(ErrorKind::kInvalidArgument, "tokenize", "{}: expected a string, got {} (line {})", key,
           printable(row[key].dump()), line);
    }
    const auto value = row[key].get<std::string>();
    const std::string text = key == "hex" ? bytes_of_hex(value, line) : value;
    name_line(line, [&] { print(tokenizer, tokenizer.encode(text, encode), /*json=*/true); });
  });
}

}  // namespace

Command register_tokenize(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("tokenize", "Text to token ids");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options, ComputeFlags::kWithoutEffect);
  auto* prompt =
      app->add_option("-p,--prompt", options->prompt, "The text (default: standard input)");
  app->add_option("--file", options->file,
                  "JSON lines of {\"text\"} or {\"hex\"} (raw bytes); - for standard input")
      ->excludes(prompt);
  app->add_flag("--plain", options->plain, "Special-token strings are ordinary text");
  app->add_option("--invalid-utf8", options->invalid_utf8, "error, or replace by U+FFFD")
      ->capture_default_str();
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
