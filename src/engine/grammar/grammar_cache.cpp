#include "engine/grammar/grammar_cache.h"

#include <fmt/format.h>

#include <chrono>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/grammar/json_schema.h"
#include "engine/grammar/work.h"

namespace qw {

std::shared_ptr<const Grammar> GrammarSource::compile() const {
  GrammarBuilder builder;
  return builder.build(node(builder));
}

grammar::Node GrammarSource::node(GrammarBuilder& builder) const {
  switch (kind) {
    case Kind::kJsonSchema:
      return builder.json_schema(grammar::parse_schema(text), json);
    case Kind::kJsonObject:
      return builder.json_object(json);
    case Kind::kJsonValue:
      return builder.json_value(json);
    case Kind::kRegex:
      return builder.regex(text);
    case Kind::kGbnf:
      return builder.gbnf(text, root);
    case Kind::kChoice:
      return builder.choice(choices);
  }
  QW_CHECK(false);
  return {};
}

std::string GrammarSource::key() const {
  // Lengths before texts, so that no text can look like the next field.
  const auto field = [](const std::string& value) {
    return fmt::format("{}:{}", value.size(), value);
  };
  std::string out = fmt::format("{} {} {} {}", static_cast<int>(kind), field(text), field(root),
                                json.whitespace_pattern ? field(*json.whitespace_pattern) : "-");
  for (const std::string& choice : choices)
    out += field(choice);
  return out;
}

GrammarCache::GrammarCache(std::shared_ptr<const GrammarVocabulary> vocabulary, size_t capacity,
                           size_t max_bytes)
    : vocabulary_(std::move(vocabulary)), capacity_(capacity), max_bytes_(max_bytes) {}

std::shared_ptr<GrammarMatcher> GrammarCache::get(const GrammarSource& source,
                                                  const CancelFlag* cancel) {
  return get(source.key(), [&] { return source.compile(); }, cancel);
}

std::shared_ptr<GrammarMatcher> GrammarCache::get(const std::string& key, const Make& make,
                                                  const CancelFlag* cancel) {
  for (;;) {
    std::promise<std::shared_ptr<GrammarMatcher>> promise;
    Future of_another;
    uint64_t serial = 0;
    {
      const std::lock_guard lock(mutex_);
      if (const Entry* entry = find_entry(key)) {
        of_another = entry->matcher;
      } else {
        serial = ++serial_;
        entries_.push_front({key, promise.get_future().share(), serial, nullptr});
        index_[entries_.front().key] = entries_.begin();
      }
      make_room();
    }
    if (!of_another.valid()) return compile(key, serial, std::move(promise), make, cancel);
    if (auto matcher = wait_for(of_another, cancel)) return matcher;
  }
}

std::shared_ptr<GrammarMatcher> GrammarCache::find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const Entry* entry = find_entry(key);
  return entry == nullptr ? nullptr : entry->made;
}

std::shared_ptr<GrammarMatcher> GrammarCache::compile(
    const std::string& key, uint64_t serial, std::promise<std::shared_ptr<GrammarMatcher>> promise,
    const Make& make, const CancelFlag* cancel) {
  const auto own_entry = [&]() -> Entry* {
    const auto it = index_.find(key);
    return it != index_.end() && it->second->serial == serial ? &*it->second : nullptr;
  };
  try {
    std::shared_ptr<GrammarMatcher> matcher;
    {
      const grammar::CompileWork work(cancel);
      matcher = std::make_shared<GrammarMatcher>(make(), vocabulary_);
    }
    {
      const std::lock_guard lock(mutex_);
      if (Entry* entry = own_entry()) entry->made = matcher;
      make_room();
    }
    promise.set_value(matcher);
    return matcher;
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      if (own_entry() != nullptr) erase(index_.find(key)->second);
    }
    promise.set_exception(std::current_exception());
    throw;
  }
}

/// Null: whoever compiled it was told to end, which is nobody else's affair.
std::shared_ptr<GrammarMatcher> GrammarCache::wait_for(const Future& matcher,
                                                       const CancelFlag* cancel) {
  constexpr std::chrono::milliseconds kLook(20);
  while (cancel != nullptr && matcher.wait_for(kLook) != std::future_status::ready)
    cancel->check("waiting for a grammar");
  try {
    return matcher.get();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCancelled) throw;
    return nullptr;
  }
}

GrammarCache::Entry* GrammarCache::find_entry(const std::string& key) {
  const auto it = index_.find(key);
  if (it == index_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, it->second);
  return &entries_.front();
}

void GrammarCache::erase(std::list<Entry>::iterator entry) {
  index_.erase(entry->key);
  entries_.erase(entry);
}

/// The latest stays, whatever it holds.
void GrammarCache::make_room() {
  size_t held = bytes_held();
  while (entries_.size() > 1 && (entries_.size() > capacity_ || held > max_bytes_)) {
    const auto oldest = std::prev(entries_.end());
    held -= std::min(held, oldest->bytes());
    erase(oldest);
  }
}

size_t GrammarCache::bytes_held() const {
  size_t sum = 0;
  for (const Entry& entry : entries_)
    sum += entry.bytes();
  return sum;
}

GrammarCache::Held GrammarCache::held() const {
  const std::lock_guard lock(mutex_);
  return {entries_.size(), bytes_held()};
}

}  // namespace qw
