// POST /classify, as vLLM has it: the classes of texts.
#include <algorithm>

#include "server/classifier.h"
#include "server/generation/embed.h"
#include "server/generation/job.h"
#include "server/generation/sampling_fields.h"
#include "server/openai/common.h"
#include "server/service.h"

namespace qw::server::openai {

namespace {

const FieldTable<EmbeddingTask>& classify_fields() {
  using Task = EmbeddingTask;
  static const FieldTable<Task> table = {
      string_field<Task>("model", &Task::model),
      honoured<Task>(
          "input", [](const Json& value, Task& task) { task.inputs = to_prompts("input", value); })
          .as(types::prompts())
          .must(),
      integer_field<Task>("truncate_prompt_tokens", &Task::truncate_prompt_tokens, 1),
      flag_field<Task>("add_special_tokens", &Task::add_special_tokens),
      user_field<Task>("user"),
      timeout_field<Task>(),
      salt_field<Task>(),
      refused<Task>("activation", "probabilities are always given", true),
  };
  return table;
}

void classify(const std::shared_ptr<Call>& call) {
  EmbeddingTask task;
  call->read(classify_fields(), task);
  task.normalize = false;
  task.pooling = Pooling::kLast;
  limit_time(call, task.timeout_s);
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& model) {
    const LoadedModel& files = model->files();
    if (!model->classifier()) {
      throw RequestError(
          ErrorKind::kUnsupported,
          fmt::format("[request] model: expected a classification model (config.json names the "
                      "architecture Qwen2ForSequenceClassification, and score.weight has a row "
                      "for each class), got {}, a {}",
                      printable(model->name()), printable(files.config().architecture)),
          "model");
    }
    embed(call, task, [call, model](const Embeddings& result) {
      const std::optional<Classifier>& classifier = model->classifier();
      Json data = Json::array();
      for (size_t i = 0; i < result.vectors.size(); ++i) {
        const std::vector<double> all = classifier->probabilities(result.vectors[i]);
        const auto best = static_cast<size_t>(std::ranges::max_element(all) - all.begin());
        data.push_back({{"index", i},
                        {"label", classifier->labels()[best]},
                        {"probs", all},
                        {"num_classes", all.size()}});
      }
      call->respond({{"id", "classify-" + call->id()},
                     {"object", "list"},
                     {"created", call->created()},
                     {"model", result.model},
                     {"data", std::move(data)},
                     {"usage",
                      {{"prompt_tokens", result.n_tokens},
                       {"total_tokens", result.n_tokens},
                       {"completion_tokens", 0}}}});
    });
  });
}

}  // namespace

std::vector<Endpoint> classify_endpoints() {
  std::vector<Endpoint> out;
  for (const char* path : {"/classify", "/v1/classify"}) {
    out.push_back({"POST",
                   path,
                   &kOpenAi,
                   "The classes of texts, by a classification model",
                   classify,
                   infos_of(classify_fields()),
                   true,
                   {.example = {{"input", "Hi"}},
                    .answer = types::object({"id", "object", "data", "model", "usage"}),
                    .generates = true,
                    .needs_setup = true}});
  }
  return out;
}

}  // namespace qw::server::openai
