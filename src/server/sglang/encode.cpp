// POST /encode: vectors of texts.
#include "server/generation/embed.h"
#include "server/generation/sampling_fields.h"
#include "server/sglang/common.h"

namespace qw::server::sglang {

namespace {

struct EncodeTask : EmbeddingTask {
  bool has_text = false, has_ids = false;
  bool is_list = false;           // of inputs: so is the answer
  std::vector<std::string> rids;  // of the inputs; empty: the server's own
};

const FieldTable<EncodeTask>& encode_fields() {
  using Task = EncodeTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(string_field<Task>("model", &Task::model, "not SGLang's: one of several models"));
    out.push_back(honoured<Task>(
                      "text",
                      [](const Json& value, Task& task) {
                        for (const std::string& text : to_strings("text", value))
                          task.inputs.push_back({text, {}, false});
                        task.has_text = true;
                        task.is_list = value.is_array();
                      },
                      "a text or a list of texts")
                      .as(types::strings()));
    out.push_back(honoured<Task>(
                      "input_ids",
                      [](const Json& value, Task& task) {
                        task.inputs = to_prompts("input_ids", to_array("input_ids", value));
                        task.field = "input_ids";
                        task.has_ids = true;
                        task.is_list = value[0].is_array();
                      },
                      "ids or a list of lists of ids")
                      .as(types::any_of({types::ids(), types::list(types::ids())})));
    out.push_back(strings_field<Task>("rid", &Task::rids, "given back as meta_info.id"));
    out.push_back(timeout_field<Task>());
    out.push_back(salt_field<Task>());
    for (const char* name : {"image_data", "audio_data", "video_data"})
      out.push_back(refused<Task>(name, "these models read text only"));
    for (const char* name : {"sampling_params", "log_metrics", "modalities", "background"})
      out.push_back(ignored<Task>(name, "it changes nothing here"));
    return out;
  }();
  return table;
}

void encode(const std::shared_ptr<Call>& call) {
  EncodeTask task;
  task.field = "text";
  call->read(encode_fields(), task);
  if (task.has_text && task.has_ids)
    refuse_field("input_ids", "expected one of text and input_ids, got both");
  if (!task.rids.empty() && task.rids.size() != task.inputs.size())
    refuse_field("rid", "expected one for each input ({}), got {}", task.inputs.size(),
                 task.rids.size());
  embed(call, task, [call, task](const Embeddings& result) {
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - call->started();
    Json answers = Json::array();
    for (size_t i = 0; i < result.vectors.size(); ++i) {
      answers.push_back({{"embedding", result.vectors[i]},
                         {"meta_info",
                          {{"id", task.rids.empty() ? call->id() : task.rids[i]},
                           {"finish_reason", {{"type", "length"}, {"length", 0}}},
                           {"prompt_tokens", result.n_input_tokens[i]},
                           {"e2e_latency", elapsed.count()}}}});
    }
    call->respond(task.is_list ? std::move(answers) : std::move(answers[0]));
  });
}

}  // namespace

std::vector<Endpoint> encode_endpoints() {
  return {{"POST",
           "/encode",
           &kSglang,
           "Vectors of texts",
           encode,
           infos_of(encode_fields()),
           true,
           {.example = {{"text", "Hi"}},
            .answer = types::any_of({types::object({"embedding", "meta_info"}),
                                     types::list(types::object({"embedding", "meta_info"}))}),
            .generates = true}}};
}

}  // namespace qw::server::sglang
