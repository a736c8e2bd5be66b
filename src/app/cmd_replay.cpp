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
#include "server/fields.h"
#include "server/receipt.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::string receipt;
};

/// The receipt in a reply: a member of it; of a list of answers, of the last; of the event that
/// ends a stream of /v1/responses, of its response. What is no reply is given back.
const ordered_json& receipt_in(const ordered_json& reply) {
  const ordered_json* json = &reply;
  if (json->is_array() && !json->empty()) json = &json->back();
  for (const char* name : {"response", "receipt"}) {
    if (!json->is_object()) break;
    const auto member = json->find(name);
    if (member != json->end() && member->is_object()) json = &*member;
  }
  return *json;
}

/// A whole reply with a receipt in it will do as well.
ordered_json read_receipt(const std::string& path) {
  const ordered_json json = parse_user_json(read_input(path), path);
  const ordered_json& receipt = receipt_in(json);
  server::check_receipt(receipt);
  return receipt;
}

/// What the receipt says of how the model was computed, where no flag says otherwise.
void take_environment(const ordered_json& receipt, Options& options) {
  const ordered_json& program = receipt.at("program");
  const auto text = [&](const std::string& name) {
    const auto it = program.find(name);
    return it == program.end() || it->is_null() ? "" : server::to_string("program." + name, *it);
  };
  if (options.load.kv_type.empty()) options.load.kv_type = text("kv_type");
  if (options.load.device == "cpu") options.load.device = text("device");
  if (options.load.activations == "auto") options.load.activations = text("activations");
  if (const auto context = receipt.find("context");
      options.load.context == 0 && context != receipt.end() && !context->is_null())
    options.load.context = server::to_integer("context", *context, 0);
  const std::string isa = text("isa");
  if (!options.load.isa.empty()) return;
  try {
    kernels::choose_isa(isa);
    options.load.isa = isa;
  } catch (const Error&) {
    // This CPU has not that instruction set; the difference is told with the others.
  }
}

/// What a receipt says of an answer.
struct Answer {
  std::vector<int32_t> ids;
  std::string finish_reason;
};

/// Of every request. A receipt without any answer says nothing that could be the same.
std::vector<std::vector<Answer>> read_answers(const ordered_json& receipt) {
  const auto member = [](const ordered_json& object, const char* name) {
    const auto it = object.find(name);
    return it == object.end() ? ordered_json() : *it;
  };
  std::vector<std::vector<Answer>> out;
  for (const ordered_json& request : receipt.at("requests")) {
    out.emplace_back();
    const ordered_json answers = member(server::to_object("requests", request), "answers");
    for (const ordered_json& answer : server::to_array("answers", answers)) {
      const ordered_json& object = server::to_object("answers", answer);
      out.back().push_back({server::to_ids("ids", member(object, "ids")),
                            server::to_string("finish_reason", member(object, "finish_reason"))});
    }
    if (out.back().empty()) {
      fail(ErrorKind::kInvalidArgument, "replay",
           "answers: expected at least one, got none (request {})", out.size() - 1);
    }
  }
  if (out.empty())
    fail(ErrorKind::kInvalidArgument, "replay", "requests: expected at least one, got none");
  return out;
}

struct Difference {
  size_t request = 0, answer = 0, position = 0;
  ordered_json then, now;
};

/// The first difference of the answers of one request.
std::optional<Difference> compare(const std::vector<Answer>& then, const RequestResult& now,
                                  const GenerationConfig& config, size_t request) {
  // Where nothing is drawn, copies of one answer stand in a receipt as answers of their own.
  const bool may_be_copies = now.completions.size() == 1 && !config.samples();
  const size_t n_now = may_be_copies ? then.size() : now.completions.size();
  for (size_t i = 0; i < std::max(then.size(), n_now); ++i) {
    if (i >= then.size()) return Difference{request, i, 0, "no answer", "one more"};
    if (i >= n_now) return Difference{request, i, 0, "one more", "no answer"};
    const Completion& completion = now.completions[std::min(i, now.completions.size() - 1)];
    const std::vector<int32_t>&ids = completion.ids, &old = then[i].ids;
    for (size_t p = 0; p < std::max(ids.size(), old.size()); ++p) {
      const ordered_json a = p < old.size() ? ordered_json(old[p]) : ordered_json();
      const ordered_json b = p < ids.size() ? ordered_json(ids[p]) : ordered_json();
      if (a != b) return Difference{request, i, p, a, b};
    }
    const std::string_view reason = name_of(completion.finish_reason);
    if (then[i].finish_reason != reason)
      return Difference{request, i, ids.size(), then[i].finish_reason, reason};
  }
  return std::nullopt;
}

class Replay {
 public:
  explicit Replay(Options& options) : options_(options) {}

  void run() {
    init_logging(options_.log_level);
    try {
      replay();
    } catch (const ordered_json::exception& error) {
      fail(ErrorKind::kInvalidArgument, "replay",
           "receipt: expected members as a server writes them, got others ({})", error.what());
    }
  }

 private:
  void replay() {
    receipt_ = read_receipt(options_.receipt);
    answers_ = read_answers(receipt_);
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

  std::optional<Difference> computed() {
    const std::vector<Request> requests = server::requests_of_receipt(receipt_, *loaded_);
    const auto engine = loaded_->make_engine();
    std::optional<Difference> first;
    for (size_t i = 0; i < requests.size() && !first; ++i) {
      const std::vector<Answer>& answers = answers_.at(i);
      const RequestResult result = engine->generate(requests[i], {}, &interrupted());
      interrupted().check("replay");
      for (const Answer& answer : answers)
        n_tokens_ += std::ssize(answer.ids);
      n_answers_ += answers.size();
      first = compare(answers, result, requests[i].config, i);
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
  std::vector<std::vector<Answer>> answers_;
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
