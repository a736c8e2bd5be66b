// A conversation: its messages, its generation parameters, and answers from the engine.
//
// Level 8 (app). Knows nothing of terminals; cmd_chat.cpp is the user interface.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/bundle.h"

namespace qw {
class GrammarMatcher;
}

namespace qw::app {

class ChatSession {
 public:
  /// `config`: the checkpoint's chat defaults with the user's flags over them.
  /// `grammar` holds every answer; null: none.
  ChatSession(LoadedModel& loaded, GenerationConfig config, const std::string& system,
              std::shared_ptr<GrammarMatcher> grammar = nullptr);

  /// Adds a user message and answers it; pieces of text go to `on_piece` as they become final.
  /// When the answer fails, the message is taken back and the error thrown.
  RequestResult say(const std::string& text, const std::function<void(std::string_view)>& on_piece);
  /// Answers the last user message again, with another seed. Errors: invalid_argument.
  RequestResult regenerate(const std::function<void(std::string_view)>& on_piece);
  /// Takes back the last exchange. Errors: invalid_argument when there is none.
  void undo();
  void clear();
  void set_system(const std::string& text);
  /// NAME=VALUE of any generation parameter. Errors: invalid_argument.
  void set(std::string_view assignment);
  void set_seed(uint64_t seed);

  void save(const std::string& path) const;
  void load(const std::string& path);

  const nlohmann::ordered_json& messages() const { return messages_; }
  const GenerationConfig& config() const { return config_; }
  int64_t last_context() const { return last_context_; }  // tokens of the last exchange
  int64_t context_limit() const { return engine_->options().ctx; }
  const Timings& total() const { return total_; }

 private:
  /// Another conversation: its answers have the seeds they would have in a new session.
  void begin_with(nlohmann::ordered_json messages);
  RequestResult answer(const std::function<void(std::string_view)>& on_piece);

  LoadedModel& loaded_;
  std::unique_ptr<Engine> engine_;
  GenerationConfig config_;
  std::shared_ptr<GrammarMatcher> grammar_;
  uint64_t seed_ = 0;
  uint64_t n_answers_ =
      0;  // an answer's seed is seed_ + its number, so :regen differs, :seed repeats
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();
  int64_t last_context_ = 0;
  Timings total_;
};

}  // namespace qw::app
