// qianwen detokenize: ids to text.
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
  std::optional<std::string> ids, file;
  bool skip_special = false;
};

void print(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, const Options& options) {
  const std::string text = tokenizer.decode(ids, options.skip_special);
  options.json || options.file ? print_json({{"text", text}}) : print_result(text + "\n");
}

void run(const Options& options) {
  const ModelFiles files = open_for_reading(options, false);
  const Tokenizer& tokenizer = tokenizer_of(files, model_path(options));
  if (!options.file) {
    print(tokenizer, parse_ids(options.ids ? *options.ids : read_stdin(), "--ids"), options);
    return;
  }
  for_each_json_line(*options.file, [&](const nlohmann::ordered_json& row, size_t line) {
    interrupted().check("detokenize");
    // A line is {"ids": [...]}, or the array itself.
    const bool wrapped = row.is_object() && row.contains("ids");
    print(tokenizer, parse_ids((wrapped ? row["ids"] : row).dump(), fmt::format("line {}", line)),
          options);
  });
}

}  // namespace

Command register_detokenize(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("detokenize", "Token ids to text");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options, ComputeFlags::kWithoutEffect);
  auto* ids =
      app->add_option("--ids", options->ids, "A JSON array of ids (default: standard input)");
  app->add_option("--file", options->file, "JSON lines of {\"ids\"}; - for standard input")
      ->excludes(ids);
  app->add_flag("--skip-special-tokens", options->skip_special, "Leave special tokens out");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
