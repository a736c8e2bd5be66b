#include "server/generation/embed.h"

#include <cmath>

#include "server/generation/job.h"
#include "server/service.h"

namespace qw::server {

namespace {

class EmbeddingListener : public GenerationListener {
 public:
  EmbeddingListener(std::shared_ptr<Call> call, const EmbeddingTask& task, std::string model,
                    std::function<void(const Embeddings&)> done)
      : call_(std::move(call)), task_(task), done_(std::move(done)) {
    out_.model = std::move(model);
  }

  void on_end(const GenerationResult& result) override {
    out_.n_tokens = result.n_prompt_tokens();
    for (const auto& prompt : result.prompts) {
      out_.vectors.push_back(shaped(prompt->embedding));
      out_.n_input_tokens.push_back(prompt->timings.n_prompt);
    }
    try {
      done_(out_);
    } catch (const Error& error) {
      call_->fail(error);
    }
  }
  void on_error(const Error& error) override { call_->fail(error); }
  bool ends_anywhere() const override { return true; }

 private:
  std::vector<float> shaped(std::vector<float> vector) const {
    if (task_.dimensions) vector.resize(static_cast<size_t>(*task_.dimensions));
    if (!task_.normalize) return vector;
    double sum = 0;
    for (const float value : vector)
      sum += static_cast<double>(value) * static_cast<double>(value);
    const double length = std::sqrt(sum);
    for (float& value : vector)
      value = length > 0 ? static_cast<float>(static_cast<double>(value) / length) : 0;
    return vector;
  }

  std::shared_ptr<Call> call_;
  EmbeddingTask task_;
  std::function<void(const Embeddings&)> done_;
  Embeddings out_;
};

}  // namespace

std::vector<PromptInput> to_prompts(const std::string& field, const Json& value) {
  if (value.is_string()) return {{value.get<std::string>(), {}, false}};
  if (!value.is_array() || value.empty())
    refuse_field(field, "expected a text, a list of texts or ids, got {}", shown(value));
  if (value[0].is_number()) return {{"", to_ids(field, value), true}};
  std::vector<PromptInput> prompts;
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", field, i);
    if (value[i].is_array()) {
      prompts.push_back({"", to_ids(where, value[i]), true});
    } else {
      prompts.push_back({to_string(where, value[i]), {}, false});
    }
  }
  return prompts;
}

void embed(const std::shared_ptr<Call>& call, EmbeddingTask task,
           std::function<void(const Embeddings&)> done) {
  if (task.inputs.empty()) refuse_field(task.field, "expected at least one text, got none");
  GenerationTask generation;
  generation.model = task.model;
  generation.prompts = task.inputs;
  generation.add_special_tokens = task.add_special_tokens;
  generation.truncate_prompt_tokens = task.truncate_prompt_tokens;
  generation.pooling = task.pooling.value_or(call->services().options.pooling);
  generation.seed = 0;
  generation.user = task.user;
  generation.cache_salt = task.cache_salt;
  generation.timeout_s = task.timeout_s;
  generation.prompt_field = task.field;
  generate(call, std::move(generation),
           [call, task = std::move(task), done = std::move(done)](
               const std::shared_ptr<ServedModel>& model, const std::vector<Request>&) {
             const int64_t hidden = model->files().config().hidden;
             if (task.dimensions.value_or(hidden) > hidden)
               refuse_field("dimensions", "expected at most the model's {}, got {}", hidden,
                            *task.dimensions);
             return std::make_shared<EmbeddingListener>(call, task, model->name(), done);
           });
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa > 0 && bb > 0 ? dot / std::sqrt(aa * bb) : 0;
}

}  // namespace qw::server
