// Compiled grammars by their source, so that a server compiles what its clients repeat only once.
//
// Level 6 (engine). Thread-safe: several threads may compile different grammars at once; whoever
// asks for one that is under way waits for it.
#pragma once

#include <cstddef>
#include <functional>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/grammar/token_masks.h"

namespace qw {

/// A grammar as a user gives it.
struct GrammarSource {
  enum class Kind { kJsonSchema, kJsonObject, kJsonValue, kRegex, kGbnf, kChoice };
  Kind kind = Kind::kJsonValue;
  std::string text = {};                  // the schema, pattern or rules
  std::string root = "root";              // kGbnf
  std::vector<std::string> choices = {};  // kChoice
  JsonFormat json = {};

  std::shared_ptr<const Grammar> compile() const;
  /// The same as a part of what `builder` builds.
  grammar::Node node(GrammarBuilder& builder) const;
  /// Tells any two different sources apart.
  std::string key() const;
};

class GrammarCache {
 public:
  explicit GrammarCache(std::shared_ptr<const GrammarVocabulary> vocabulary, size_t capacity = 64);

  /// Errors: those of compiling, to everybody who waited; they are not kept.
  std::shared_ptr<GrammarMatcher> get(const GrammarSource& source);
  /// The same for a grammar that `make` puts together; `key` must tell it apart from others.
  std::shared_ptr<GrammarMatcher> get(const std::string& key,
                                      const std::function<std::shared_ptr<const Grammar>()>& make);
  const std::shared_ptr<const GrammarVocabulary>& vocabulary() const { return vocabulary_; }
  size_t size() const;

 private:
  using Future = std::shared_future<std::shared_ptr<GrammarMatcher>>;
  struct Entry {
    std::string key;
    Future matcher;
    uint64_t serial = 0;
  };

  std::shared_ptr<const GrammarVocabulary> vocabulary_;
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the latest first
  std::unordered_map<std::string, std::list<Entry>::iterator> index_;
  uint64_t serial_ = 0;
};

}  // namespace qw
