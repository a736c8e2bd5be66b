// qianwen detokenize: ids to text.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/input.h"
#include "app/open.h"
#include "base/error.h"
#include "checkpoint/hf_config.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::optional<std::string> ids, file;
  bool skip_special = false;
};

/// Ids from here on mean nothing: rows of the embedding, where the checkpoint says how many it has,
/// and tokens. Rows without a token are padding, whose text is empty.
int64_t id_limit(const ModelFiles& files, const Tokenizer& tokenizer) {
  int64_t rows = 0;
  if (files.checkpoint->config_json) {
    const auto config = parse_json_object(*files.checkpoint->config_json, "config.json");
    rows = optional_int(config, "vocab_size", "config.json").value_or(0);
  } else if (files.checkpoint->gguf) {
    const RawTensor* embedding = files.checkpoint->tensors.find("token_embd.weight");
    if (embedding != nullptr) rows = embedding->shape.rows();
  }
  return std::max<int64_t>(rows, tokenizer.size());
}

class Detokenize {
 public:
  explicit Detokenize(const Options& options)
      : options_(options),
        files_(open_for_reading(options, false)),
        tokenizer_(tokenizer_of(files_, model_path(options))),
        limit_(id_limit(files_, tokenizer_)) {}

  void run() {
    if (!options_.file) {
      print(parse_ids(options_.ids ? *options_.ids : read_stdin(), "--ids"), "--ids");
      return;
    }
    for_each_json_line(*options_.file, [&](const nlohmann::ordered_json& row, size_t line) {
      interrupted().check("detokenize");
      // A line is {"ids": [...]}, or the array itself.
      const bool wrapped = row.is_object() && row.contains("ids");
      const std::string where = fmt::format("line {}", line);
      print(parse_ids((wrapped ? row["ids"] : row).dump(), where), where);
    });
  }

 private:
  void print(const std::vector<int32_t>& ids, const std::string& where) const {
    const auto beyond = std::ranges::find_if(ids, [&](int32_t id) { return id >= limit_; });
    if (beyond != ids.end()) {
      fail(ErrorKind::kInvalidArgument, "ids",
           "{}: expected token ids below the vocabulary's {}, got {}", where, limit_, *beyond);
    }
    const std::string text = tokenizer_.decode(ids, options_.skip_special);
    options_.json || options_.file ? print_json({{"text", text}}) : print_result(text + "\n");
  }

  const Options& options_;
  ModelFiles files_;
  const Tokenizer& tokenizer_;
  int64_t limit_;
};

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
  return {app, [options] { Detokenize(*options).run(); }};
}

}  // namespace qw::app
