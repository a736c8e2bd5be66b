// POST /v1/embeddings, and vLLM's /pooling, /score and /rerank over the same vectors.
#include <algorithm>
#include <bit>
#include <numeric>

#include "server/generation/embed.h"
#include "server/generation/sampling_fields.h"
#include "server/openai/common.h"
#include "server/service.h"
#include "server/shape.h"

namespace qw::server::openai {

namespace {

template <typename Task>
void add_common_fields(FieldTable<Task>& table) {
  table.push_back(string_field<Task>("model", &Task::model));
  table.push_back(truncate_field<Task>());
  table.push_back(flag_field<Task>("add_special_tokens", &Task::add_special_tokens));
  table.push_back(user_field<Task>("user"));
  table.push_back(timeout_field<Task>());
  table.push_back(salt_field<Task>());
}

// ---- embeddings --------------------------------------------------------------------------------

struct EmbeddingsTask : EmbeddingTask {
  bool base64 = false;
};

FieldTable<EmbeddingsTask> make_embedding_fields() {
  using Task = EmbeddingsTask;
  FieldTable<Task> out;
  add_common_fields(out);
  out.push_back(
      honoured<Task>(
          "input", [](const Json& value, Task& task) { task.inputs = to_prompts("input", value); })
          .as(types::prompts())
          .must());
  out.push_back(honoured<Task>("encoding_format", [](const Json& value, Task& task) {
                  const std::string format = to_string("encoding_format", value);
                  if (format != "float" && format != "base64")
                    refuse_field("encoding_format", "expected float or base64, got '{}'",
                                 printable(format));
                  task.base64 = format == "base64";
                }).as(types::choice({"float", "base64"})));
  out.push_back(integer_field<Task>("dimensions", &Task::dimensions, 1,
                                    "the first so many, normalised anew"));
  out.push_back(flag_field<Task>("normalize", &Task::normalize));
  return out;
}

const FieldTable<EmbeddingsTask>& embedding_fields() {
  static const FieldTable<EmbeddingsTask> table = make_embedding_fields();
  return table;
}

/// The floats' bytes, little-endian, in base64 (RFC 4648).
std::string base64_of(const std::vector<float>& vector) {
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  for (const float value : vector) {
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8)
      bytes.push_back(static_cast<char>(bits >> shift & 0xFF));
  }
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j)
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j)
      out.push_back(i + j <= bytes.size() ? kAlphabet[group >> (18 - 6 * j) & 63] : '=');
  }
  return out;
}

Json vector_json(const std::vector<float>& vector, bool base64) {
  return base64 ? Json(base64_of(vector)) : Json(vector);
}

void embeddings(const std::shared_ptr<Call>& call) {
  EmbeddingsTask task;
  call->read(embedding_fields(), task);
  embed(call, task, [call, base64 = task.base64](const Embeddings& result) {
    Json data = Json::array();
    for (size_t i = 0; i < result.vectors.size(); ++i) {
      data.push_back({{"object", "embedding"},
                      {"index", i},
                      {"embedding", vector_json(result.vectors[i], base64)}});
    }
    call->respond(
        {{"object", "list"},
         {"data", std::move(data)},
         {"model", result.model},
         {"usage", {{"prompt_tokens", result.n_tokens}, {"total_tokens", result.n_tokens}}}});
  });
}

// ---- what a pooling model gives
// -------------------------------------------------------------------

const FieldTable<EmbeddingsTask>& pooling_fields() {
  using Task = EmbeddingsTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out = make_embedding_fields();
    out.push_back(honoured<Task>(
                      "task",
                      [](const Json& value, Task&) {
                        const std::string name = to_string("task", value);
                        if (name != "embed")
                          refuse_field("task", "expected embed, got '{}'", printable(name));
                      },
                      "vectors of whole texts, no other")
                      .as(types::choice({"embed"})));
    return out;
  }();
  return table;
}

void pooling(const std::shared_ptr<Call>& call) {
  EmbeddingsTask task;
  call->read(pooling_fields(), task);
  embed(call, task, [call, base64 = task.base64](const Embeddings& result) {
    Json data = Json::array();
    for (size_t i = 0; i < result.vectors.size(); ++i) {
      data.push_back(
          {{"index", i}, {"object", "pooling"}, {"data", vector_json(result.vectors[i], base64)}});
    }
    call->respond(
        {{"id", "pool-" + call->id()},
         {"object", "list"},
         {"created", call->created()},
         {"model", result.model},
         {"data", std::move(data)},
         {"usage", {{"prompt_tokens", result.n_tokens}, {"total_tokens", result.n_tokens}}}});
  });
}

// ---- scores and rankings -----------------------------------------------------------------------

struct ScoreTask : EmbeddingTask {
  std::vector<PromptInput> queries, documents;
  std::optional<int64_t> top_n;
  bool return_documents = true;
};

/// Embeds the queries and then the documents.
void embed_pairs(const std::shared_ptr<Call>& call, ScoreTask task,
                 std::function<void(const Embeddings&)> done) {
  task.inputs = task.queries;
  task.inputs.insert(task.inputs.end(), task.documents.begin(), task.documents.end());
  embed(call, task, std::move(done));
}

const FieldTable<ScoreTask>& score_fields() {
  using Task = ScoreTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    add_common_fields(out);
    for (const char* name : {"text_1", "queries"})
      out.push_back(honoured<Task>(name, [name](const Json& value, Task& task) {
                      task.queries = to_prompts(name, value);
                    }).as(types::prompts()));
    for (const char* name : {"text_2", "items", "documents"})
      out.push_back(honoured<Task>(name, [name](const Json& value, Task& task) {
                      task.documents = to_prompts(name, value);
                    }).as(types::prompts()));
    return out;
  }();
  return table;
}

void score(const std::shared_ptr<Call>& call) {
  ScoreTask task;
  call->read(score_fields(), task);
  const size_t n_queries = task.queries.size(), n_documents = task.documents.size();
  if (n_documents == 0 || (n_queries != 1 && n_queries != n_documents))
    refuse_field("text_1", "expected one text, or as many as text_2 ({}), got {}", n_documents,
                 n_queries);
  embed_pairs(call, std::move(task), [call, n_queries, n_documents](const Embeddings& result) {
    Json data = Json::array();
    for (size_t i = 0; i < n_documents; ++i) {
      const auto& query = result.vectors[n_queries == 1 ? 0 : i];
      data.push_back({{"index", i},
                      {"object", "score"},
                      {"score", cosine(query, result.vectors[n_queries + i])}});
    }
    call->respond(
        {{"id", "score-" + call->id()},
         {"object", "list"},
         {"created", call->created()},
         {"model", result.model},
         {"data", std::move(data)},
         {"usage", {{"prompt_tokens", result.n_tokens}, {"total_tokens", result.n_tokens}}}});
  });
}

const FieldTable<ScoreTask>& rerank_fields() {
  using Task = ScoreTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    add_common_fields(out);
    out.push_back(honoured<Task>("query",
                                 [](const Json& value, Task& task) {
                                   task.queries = {{to_string("query", value), {}, false}};
                                 })
                      .as(types::string())
                      .must());
    out.push_back(
        honoured<Task>("documents",
                       [](const Json& value, Task& task) {
                         for (const Json& item : to_array("documents", value)) {
                           const Json& text = item.is_object() ? item.value("text", Json()) : item;
                           task.documents.push_back({to_string("documents", text), {}, false});
                         }
                       })
            .as(types::list(types::any_of({types::string(), types::object()})))
            .with(list_of({member("text")}))
            .must());
    out.push_back(integer_field<Task>("top_n", &Task::top_n, 0, "0: all"));
    out.push_back(flag_field<Task>("return_documents", &Task::return_documents));
    return out;
  }();
  return table;
}

void rerank(const std::shared_ptr<Call>& call) {
  ScoreTask task;
  call->read(rerank_fields(), task);
  if (task.queries.empty()) refuse_field("query", "expected a text, got none");
  if (task.documents.empty()) refuse_field("documents", "expected at least one, got none");
  embed_pairs(call, task, [call, task](const Embeddings& result) {
    std::vector<size_t> order(task.documents.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::vector<double> scores;
    for (size_t i = 0; i < order.size(); ++i)
      scores.push_back(cosine(result.vectors[0], result.vectors[1 + i]));
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    if (task.top_n.value_or(0) > 0)
      order.resize(std::min(order.size(), static_cast<size_t>(*task.top_n)));
    Json results = Json::array();
    for (const size_t i : order) {
      Json item = {{"index", i}, {"relevance_score", scores[i]}};
      if (task.return_documents) item["document"] = {{"text", task.documents[i].text}};
      results.push_back(std::move(item));
    }
    call->respond({{"id", "rerank-" + call->id()},
                   {"model", result.model},
                   {"results", std::move(results)},
                   {"usage", {{"total_tokens", result.n_tokens}}}});
  });
}

}  // namespace

std::vector<Endpoint> embedding_endpoints() {
  std::vector<Endpoint> out = {{"POST",
                                "/v1/embeddings",
                                &kOpenAi,
                                "Vectors of texts",
                                embeddings,
                                infos_of(embedding_fields()),
                                true,
                                {.example = {{"input", "Hi"}},
                                 .answer = types::object({"object", "data", "model", "usage"}),
                                 .generates = true}}};
  for (const char* path : {"/score", "/v1/score"})
    out.push_back({"POST",
                   path,
                   &kOpenAi,
                   "How alike texts are, by the cosine of their vectors",
                   score,
                   infos_of(score_fields()),
                   true,
                   {.example = {{"text_1", "Hi"}, {"text_2", "Hello"}},
                    .answer = types::object({"id", "object", "data", "model", "usage"}),
                    .generates = true}});
  out.push_back({"POST",
                 "/pooling",
                 &kOpenAi,
                 "Vectors of texts, as vLLM's pooling models give them",
                 pooling,
                 infos_of(pooling_fields()),
                 true,
                 {.example = {{"input", "Hi"}},
                  .answer = types::object({"id", "object", "data", "model", "usage"}),
                  .generates = true}});
  for (const char* path : {"/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"})
    out.push_back({"POST",
                   path,
                   &kOpenAi,
                   "Documents in order of likeness to a query",
                   rerank,
                   infos_of(rerank_fields()),
                   true,
                   {.example = {{"query", "Hi"}, {"documents", {"Hello"}}},
                    .answer = types::object({"id", "model", "results", "usage"}),
                    .generates = true}});
  return out;
}

}  // namespace qw::server::openai
