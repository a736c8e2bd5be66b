// qianwen replay: computes an answer again from its receipt and says whether the tokens are the
// same.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/input.h"
#include "app/open.h"
#include "app/version.h"
#include "base/error.h"
#include "base/log.h"
#include "kernels/isa.h"
#include "server/receipt.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::string receipt;
};

/// A whole reply with a receipt in it will do as well.
ordered_json read_receipt(const std::string& path) {
  ordered_json json = parse_user_json(read_input(path), path);
  if (json.is_object() && json.contains("receipt") && json["receipt"].is_object())
    json = ordered_json(json["receipt"]);
  server::check_receipt(json);
  return json;
}

/// What the receipt says of how the model was computed, where no flag says otherwise.
void take_environment(const ordered_json& receipt, Options& options) {
  const ordered_json& program = receipt["program"];
  const auto text = [&](const char* name) { return program.value(name, std::string()); };
  if (options.load.kv_type.empty()) options.load.kv_type = text("kv_type");
  if (options.load.device == "cpu") options.load.device = text("device");
  if (options.load.activations == "auto") options.load.activations = text("activations");
  if (options.load.context == 0) options.load.context = receipt.value("context", int64_t{0});
  if (!options.load.isa.empty()) return;
  try {
    kernels::choose_isa(text("isa"));
    options.load.isa = text("isa");
  } catch (const Error&) {
    // This CPU has not that instruction set; the difference is told with the others.
  }
}

struct Difference {
  size_t request = 0, answer = 0, position = 0;
  ordered_json then, now;
};

/// The first difference of the answers of one request.
std::optional<Difference> compare(const ordered_json& then, const RequestResult& now,
                                  size_t request) {
  for (size_t i = 0; i < then.size(); ++i) {
    // Copies of one answer stand in a receipt as answers of their own.
    const Completion& completion = now.completions[std::min(i, now.completions.size() - 1)];
    const ordered_json ids = completion.ids;
    const ordered_json& old = then[i]["ids"];
    for (size_t p = 0; p < std::max(ids.size(), old.size()); ++p) {
      const ordered_json a = p < old.size() ? old[p] : ordered_json();
      const ordered_json b = p < ids.size() ? ids[p] : ordered_json();
      if (a != b) return Difference{request, i, p, a, b};
    }
    const std::string_view reason = name_of(completion.finish_reason);
    if (then[i]["finish_reason"] != reason)
      return Difference{request, i, ids.size(), then[i]["finish_reason"], reason};
  }
  return std::nullopt;
}

class Replay {
 public:
  explicit Replay(Options& options) : options_(options) {}

  void run() {
    init_logging(options_.log_level);
    receipt_ = read_receipt(options_.receipt);
    take_environment(receipt_, options_);
    const OpenOptions open = open_options(options_);
    loaded_ = open_model(model_path(options_), open);
    std::vector<server::FileHash> hashes;
    for (const auto& [owner, path] : server::receipt_files(*loaded_, open.adapters))
      hashes.push_back({owner, path, server::sha256_of_file(path, &interrupted())});
    const ordered_json here =
        server::receipt_environment(*loaded_, open, hashes, "", QIANWEN_VERSION, build_commit());
    differences_ = server::receipt_differences(receipt_, here);
    for (const std::string& difference : differences_)
      logger().warn("{}", difference);
    report(computed());
  }

 private:
  std::optional<Difference> computed() {
    const std::vector<Request> requests = server::requests_of_receipt(receipt_, *loaded_);
    const auto engine = loaded_->make_engine();
    std::optional<Difference> first;
    for (size_t i = 0; i < requests.size() && !first; ++i) {
      const ordered_json& answers = receipt_["requests"][i]["answers"];
      if (!answers.is_array() || answers.empty())
        fail(ErrorKind::kInvalidArgument, "replay",
             "answers: expected a list, got none (request {})", i);
      const RequestResult result = engine->generate(requests[i], {}, &interrupted());
      interrupted().check("replay");
      for (const ordered_json& answer : answers)
        n_tokens_ += static_cast<int64_t>(answer["ids"].size());
      n_answers_ += answers.size();
      first = compare(answers, result, i);
    }
    return first;
  }

  void report(const std::optional<Difference>& difference) const {
    if (options_.json) {
      ordered_json out = {{"same", !difference}, {"answers", n_answers_}, {"tokens", n_tokens_}};
      if (difference) {
        out["first_difference"] = {{"request", difference->request},
                                   {"answer", difference->answer},
                                   {"position", difference->position},
                                   {"receipt", difference->then},
                                   {"now", difference->now}};
      }
      out["differences"] = differences_;
      print_json(out);
    } else if (!difference) {
      print_result(fmt::format("same: {} of {}, every token\n", count(n_answers_, "answer"),
                               count(static_cast<size_t>(n_tokens_), "token")));
    }
    if (!difference) return;
    fail(ErrorKind::kCorrupt, "replay",
         "answer {} of request {}: expected the receipt's tokens, got another at position {} ({} "
         "then, {} now){}",
         difference->answer, difference->request, difference->position, difference->then.dump(),
         difference->now.dump(),
         differences_.empty() ? "" : "; what differs beside it was said above");
  }
  static std::string count(size_t n, std::string_view what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  }

  Options& options_;
  ordered_json receipt_;
  std::unique_ptr<LoadedModel> loaded_;
  std::vector<std::string> differences_;
  size_t n_answers_ = 0;
  int64_t n_tokens_ = 0;
};

}  // namespace

Command register_replay(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "replay", "Compute an answer again from its receipt: are the tokens the same?");
  app->add_option("RECEIPT", options->receipt,
                  "JSON file of a receipt, or of a reply with one; - for standard input")
      ->required();
  app->add_option("--model", options->model,
                  "Checkpoint directory, .gguf or .safetensors file (default: the bundled model)");
  app->add_flag("--json", options->json, "Machine-readable results on stdout");
  app->add_option("--log-level", options->log_level, "trace, debug, info, warning, error or off")
      ->capture_default_str();
  add_compute_flags(*app, *options);
  return {app, [options] { Replay(*options).run(); }};
}

}  // namespace qw::app
