// Compiled grammars by their source, so that a server compiles what its clients repeat only once.
//
// Level 6 (engine). Thread-safe: several threads may compile different grammars at once; whoever
// asks for one that is under way waits for it. Bounded in entries and in bytes; what is let go of
// lives on with the requests that use it.
#pragma once

#include <cstddef>
#include <functional>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/cancel.h"
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
  using Make = std::function<std::shared_ptr<const Grammar>()>;
  /// Of sources, automata and masks.
  static constexpr size_t kMaxBytes = size_t{64} << 20;

  explicit GrammarCache(std::shared_ptr<const GrammarVocabulary> vocabulary, size_t capacity = 64,
                        size_t max_bytes = kMaxBytes);

  /// cancel: null, or ends compiling and waiting once it is set; others who wait for the same
  /// grammar go on. Errors: those of compiling, within the limit of CompileWork, to everybody who
  /// waited (they are not kept); cancelled.
  std::shared_ptr<GrammarMatcher> get(const GrammarSource& source,
                                      const CancelFlag* cancel = nullptr);
  /// The same for a grammar that `make` puts together; `key` must tell it apart from others.
  std::shared_ptr<GrammarMatcher> get(const std::string& key, const Make& make,
                                      const CancelFlag* cancel = nullptr);
  /// What is there already; null: it would have to be compiled, or waited for.
  std::shared_ptr<GrammarMatcher> find(const std::string& key);
  const std::shared_ptr<const GrammarVocabulary>& vocabulary() const { return vocabulary_; }
  struct Held {
    size_t n = 0, bytes = 0;
  };
  /// The entries, and what they hold: grows while they are used; get() lets go of the oldest.
  Held held() const;

 private:
  using Future = std::shared_future<std::shared_ptr<GrammarMatcher>>;
  struct Entry {
    std::string key;
    Future matcher;
    uint64_t serial = 0;
    std::shared_ptr<GrammarMatcher> made;  // null: it is under way
    size_t bytes() const { return key.size() + (made ? made->bytes() : 0); }
  };

  std::shared_ptr<GrammarMatcher> compile(const std::string& key, uint64_t serial,
                                          std::promise<std::shared_ptr<GrammarMatcher>> promise,
                                          const Make& make, const CancelFlag* cancel);
  static std::shared_ptr<GrammarMatcher> wait_for(const Future& matcher, const CancelFlag* cancel);
  // With the lock.
  Entry* find_entry(const std::string& key);
  void erase(std::list<Entry>::iterator entry);
  void make_room();
  size_t bytes_held() const;

  std::shared_ptr<const GrammarVocabulary> vocabulary_;
  const size_t capacity_, max_bytes_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the latest first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> index_;  // by the entries' keys
  uint64_t serial_ = 0;
};

}  // namespace qw
