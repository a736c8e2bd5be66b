// qianwen generate: raw completion of text or ids, every generation parameter a flag.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/generation_flags.h"
#include "app/grammar_flags.h"
#include "app/input.h"
#include "app/open.h"
#include "app/results.h"
#include "base/error.h"
#include "base/log.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::optional<std::string> prompt, ids, file, negative_prompt;
  bool plain = false;
  std::shared_ptr<GenerationFlags> generation;
  std::shared_ptr<GrammarFlags> grammar;
};

class Generate {
 public:
  explicit Generate(const Options& options)
      : options_(options),
        compiled_(options.grammar->compile()),  // its errors before the weights are loaded
        loaded_(open_for_running(options)),
        engine_(loaded_->make_engine()),
        grammar_(matcher_for(compiled_, *loaded_, model_path(options))) {}

  void run() {
    if (!options_.file) {
      const bool from_ids = options_.ids.has_value();
      const std::string text = from_ids ? "" : options_.prompt ? *options_.prompt : read_stdin();
      answer(request(from_ids ? parse_ids(*options_.ids, "--ids") : encode(text), nullptr));
      return;
    }
    for_each_json_line(*options_.file, [&](const nlohmann::ordered_json& row, size_t line) {
      interrupted().check("generate");
      std::vector<int32_t> prompt = prompt_of(row, line);
      name_line(line, [&] { answer(request(std::move(prompt), &row)); });
    });
  }

 private:
  std::vector<int32_t> encode(const std::string& text) const {
    EncodeOptions encode;
    encode.parse_special = !options_.plain;
    encode.add_special_tokens = !options_.plain;
    return tokenizer_of(*loaded_, model_path(options_)).encode(text, encode);
  }

  std::vector<int32_t> prompt_of(const nlohmann::ordered_json& row, size_t line) const {
    const auto where = fmt::format("line {}", line);
    const std::string key = only_key_of(row, {"prompt", "text", "ids"}, where);
    if (key == "ids") return parse_ids(row[key].dump(), where);
    if (!row[key].is_string()) {
      fail(ErrorKind::kInvalidArgument, "generate", "{}: expected a string, got {} ({})", key,
           printable(row[key].dump()), where);
    }
    return encode(row[key].get<std::string>());
  }

  /// A line of a file may override any generation parameter by its name.
  Request request(std::vector<int32_t> prompt, const nlohmann::ordered_json* row) const {
    Request request;
    request.prompt = std::move(prompt);
    request.config = loaded_->generation;
    if (options_.seed) request.config.seed = *options_.seed;
    request.config = options_.generation->over(request.config);
    if (row != nullptr && row->is_object()) {
      for (const auto& [key, value] : row->items()) {
        if (key == "prompt" || key == "text" || key == "ids" || key == "id") continue;
        request.config.set(key, value, ParameterSource::kUser);
      }
    }
    request.adapter = loaded_->adapter;
    constrain(request, grammar_);
    if (options_.negative_prompt) request.negative_prompt = encode(*options_.negative_prompt);
    return request;
  }

  void answer(Request request) {
    const GenerationConfig config = request.config;
    const bool has_draft_model = loaded_->draft_model != nullptr;
    for (const std::string& note :
         config.without_effect(std::ssize(request.prompt), has_draft_model))
      logger().warn("{}", note);
    const bool stream = !options_.json && config.num_return_sequences == 1 && config.num_beams == 1;
    const RequestResult result = engine_->generate(
        std::move(request),
        [&](const Event& event) {
          if (stream && event.kind == Event::Kind::kToken) print_result(event.text);
        },
        &interrupted());
    for (const Completion& completion : result.completions) {
      if (options_.json) {
        nlohmann::ordered_json json = completion_json(completion, loaded_->tokenizer.get());
        if (result.completions.size() > 1) json["index"] = completion.index;
        if (!result.prompt_logprobs.empty()) {
          json["prompt_logprobs"] = logprobs_json(result.prompt_logprobs, loaded_->tokenizer.get());
        }
        json["timings"] = timings_json(result.timings);
        json["generation"] = config.applied();
        print_json(json);
      } else if (stream) {
        print_result(loaded_->tokenizer ? "\n" : nlohmann::json(completion.ids).dump() + "\n");
      } else {
        print_result(
            (loaded_->tokenizer ? completion.text : nlohmann::json(completion.ids).dump()) + "\n");
      }
    }
    if (!options_.json) logger().info("{}", timings_text(result.timings));
    interrupted().check("generate");
  }

  const Options& options_;
  std::shared_ptr<const Grammar> compiled_;  // null: free
  std::unique_ptr<LoadedModel> loaded_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<GrammarMatcher> grammar_;
};

}  // namespace

Command register_generate(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("generate", "Continue raw text or token ids");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  add_draft_flag(*app, *options);
  auto* prompt = app->add_option("-p,--prompt", options->prompt,
                                 "The text to continue (default: standard input)");
  auto* ids =
      app->add_option("--ids", options->ids, "A JSON array of ids to continue")->excludes(prompt);
  app->add_option("--file", options->file,
                  "JSON lines of {\"prompt\"} or {\"ids\"}, each with any generation parameters; - "
                  "for standard input")
      ->excludes(prompt)
      ->excludes(ids);
  app->add_flag("--plain", options->plain, "Special-token strings of the prompt are ordinary text");
  app->add_option("--negative-prompt", options->negative_prompt,
                  "What guidance leads away from (with --guidance-scale)");
  options->generation = add_generation_flags(*app);
  options->grammar = add_grammar_flags(*app);
  return {app, [options] { Generate(*options).run(); }};
}

}  // namespace qw::app
