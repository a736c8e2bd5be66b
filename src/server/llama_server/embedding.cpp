// POST /embedding and /embeddings, in llama.cpp's own form.
#include "server/generation/embed.h"
#include "server/generation/sampling_fields.h"
#include "server/llama_server/common.h"
#include "server/service.h"

namespace qw::server::llama_server {

namespace {

const FieldTable<EmbeddingTask>& fields() {
  using Task = EmbeddingTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(string_field<Task>("model", &Task::model));
    for (const char* name : {"content", "input"}) {
      out.push_back(
          honoured<Task>(
              name,
              [name](const Json& value, Task& task) { task.inputs = to_prompts(name, value); },
              "a text, a list of texts, of ids, or of lists of ids")
              .as(types::prompts()));
    }
    out.push_back(honoured<Task>(
                      "embd_normalize",
                      [](const Json& value, Task& task) {
                        const int64_t norm = to_integer("embd_normalize", value);
                        if (norm != -1 && norm != 2)
                          refuse_field("embd_normalize",
                                       "expected -1 (none) or 2 (Euclidean), got {}", norm);
                        task.normalize = norm == 2;
                      },
                      "-1: not at all; 2, the default: to length 1")
                      .as(Json{{"enum", {-1, 2}}}));
    out.push_back(timeout_field<Task>());
    out.push_back(salt_field<Task>());
    return out;
  }();
  return table;
}

void embedding(const std::shared_ptr<Call>& call) {
  EmbeddingTask task;
  call->read(fields(), task);
  embed(call, task, [call](const Embeddings& result) {
    Json list = Json::array();
    for (const std::vector<float>& vector : result.vectors)
      list.push_back({{"index", list.size()}, {"embedding", Json::array({vector})}});
    call->respond(std::move(list));
  });
}

}  // namespace

std::vector<Endpoint> embedding_endpoints() {
  std::vector<Endpoint> out;
  for (const char* path : {"/embedding", "/embeddings"})
    out.push_back({"POST",
                   path,
                   &kLlamaServer,
                   "Vectors of texts",
                   embedding,
                   infos_of(fields()),
                   true,
                   {.example = {{"content", "Hi"}},
                    .answer = types::list(types::object({"index", "embedding"})),
                    .generates = true}});
  return out;
}

}  // namespace qw::server::llama_server
