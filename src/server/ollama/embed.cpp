// POST /api/embed and the older /api/embeddings.
#include "server/generation/embed.h"

#include "server/ollama/common.h"
#include "server/service.h"

namespace qw::server::ollama {

namespace {

struct EmbedTask : EmbeddingTask {
  std::optional<KeepAlive> keep_alive;
};

/// `input`: the field of the text.
FieldTable<EmbedTask> fields(const std::string& input) {
  using Task = EmbedTask;
  return {
      string_field<Task>("model", &Task::model),
      honoured<Task>(
          input,
          [input](const Json& value, Task& task) {
            for (const std::string& text : to_strings(input, value))
              task.inputs.push_back({text, {}, false});
          },
          input == "input" ? "a text or a list of texts" : "")
          .as(types::strings()),
      integer_field<Task>("dimensions", &Task::dimensions, 1, "the first so many, normalised anew"),
      honoured<Task>("keep_alive", [](const Json& value,
                                      Task& task) { task.keep_alive = read_keep_alive(value); })
          .as(keep_alive_schema()),
      timeout_field<Task>(),
      salt_field<Task>(),
      ignored<Task>("truncate", "a text that does not fit is refused, never cut"),
      ignored<Task>("options", "how the server computes is set when it starts"),
  };
}

const FieldTable<EmbedTask>& embed_fields() {
  static const FieldTable<EmbedTask> table = fields("input");
  return table;
}
const FieldTable<EmbedTask>& embeddings_fields() {
  static const FieldTable<EmbedTask> table = fields("prompt");
  return table;
}

/// Reads, embeds and calls `done`; keep_alive counts from then.
void run(const std::shared_ptr<Call>& call, const FieldTable<EmbedTask>& table,
         std::function<void(const EmbedTask&, const Embeddings&)> done) {
  EmbedTask task;
  call->read(table, task);
  check_keep_alive(*call, task.keep_alive);
  const std::string asked = task.model;
  task.model = model_name(call->services(), task.model);
  embed(call, task, [call, task, asked, done = std::move(done)](Embeddings result) {
    if (task.keep_alive)
      call->services().hub->set_keep_alive(result.model, task.keep_alive->duration);
    if (!asked.empty()) result.model = asked;
    done(task, result);
  });
}

void embed_texts(const std::shared_ptr<Call>& call) {
  run(call, embed_fields(), [call](const EmbedTask&, const Embeddings& result) {
    using namespace std::chrono;
    const auto elapsed = steady_clock::now() - call->started();
    call->respond({{"model", result.model},
                   {"embeddings", result.vectors},
                   {"total_duration", duration_cast<nanoseconds>(elapsed).count()},
                   {"load_duration", 0},
                   {"prompt_eval_count", result.n_tokens}});
  });
}

void embed_prompt(const std::shared_ptr<Call>& call) {
  run(call, embeddings_fields(), [call](const EmbedTask&, const Embeddings& result) {
    call->respond({{"embedding", result.vectors.at(0)}});
  });
}

}  // namespace

std::vector<Endpoint> embedding_endpoints() {
  return {
      {"POST",
       "/api/embed",
       &kOllama,
       "Vectors of texts",
       embed_texts,
       infos_of(embed_fields()),
       true,
       {.example = {{"input", "Hi"}},
        .answer = types::object({"model", "embeddings"}),
        .generates = true}},
      {"POST",
       "/api/embeddings",
       &kOllama,
       "The vector of a text",
       embed_prompt,
       infos_of(embeddings_fields()),
       true,
       {.example = {{"prompt", "Hi"}}, .answer = types::object({"embedding"}), .generates = true}}};
}

}  // namespace qw::server::ollama
