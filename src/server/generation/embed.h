// Texts to vectors, for every dialect's embeddings, scores and rankings.
//
// Level 7 (server).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/generation/task.h"

namespace qw::server {

struct EmbeddingTask {
  std::string model;
  std::vector<PromptInput> inputs;
  std::string field = "input";  // the client's name for them
  bool add_special_tokens = true;
  std::optional<int64_t> truncate_prompt_tokens;
  std::optional<int64_t> dimensions;  // keep the first so many
  bool normalize = true;              // to length 1, after that
  std::optional<Pooling> pooling;     // nullopt: the server's
  std::string user;                   // who asks, as the client says
  std::string cache_salt;             // whose prompts it may share
  std::optional<double> timeout_s;    // the longest that the answer may take
};

struct Embeddings {
  std::string model;
  std::vector<std::vector<float>> vectors;  // of the inputs, in order
  std::vector<int64_t> n_input_tokens;      // of each input
  int64_t n_tokens = 0;                     // of all
};

/// Computes the vectors and gives them to `done`, on the server's thread. What goes wrong is the
/// call's failure. Errors: RequestError (no input, dimensions beyond the model's).
void embed(const std::shared_ptr<Call>& call, EmbeddingTask task,
           std::function<void(const Embeddings&)> done);

/// a . b / (|a| |b|); 0 where one is 0.
double cosine(const std::vector<float>& a, const std::vector<float>& b);

/// A text, a list of texts, of ids, or of lists of ids, as OpenAI's clients write inputs.
std::vector<PromptInput> to_prompts(const std::string& field, const Json& value);

}  // namespace qw::server
