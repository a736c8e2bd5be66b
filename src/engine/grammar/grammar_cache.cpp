#include "engine/grammar/grammar_cache.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/grammar/json_schema.h"

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

GrammarCache::GrammarCache(std::shared_ptr<const GrammarVocabulary> vocabulary, size_t capacity)
    : vocabulary_(std::move(vocabulary)), capacity_(capacity) {}

std::shared_ptr<GrammarMatcher> GrammarCache::get(const GrammarSource& source) {
  return get(source.key(), [&] { return source.compile(); });
}

std::shared_ptr<GrammarMatcher> GrammarCache::get(
    const std::string& key, const std::function<std::shared_ptr<const Grammar>()>& make) {
  std::promise<std::shared_ptr<GrammarMatcher>> promise;
  uint64_t serial = 0;
  {
    std::unique_lock lock(mutex_);
    if (const auto it = index_.find(key); it != index_.end()) {
      entries_.splice(entries_.begin(), entries_, it->second);
      const Future matcher = it->second->matcher;
      lock.unlock();
      return matcher.get();
    }
    serial = ++serial_;
    entries_.push_front({key, promise.get_future().share(), serial});
    index_[key] = entries_.begin();
    if (entries_.size() > capacity_) {
      index_.erase(entries_.back().key);
      entries_.pop_back();
    }
  }
  try {
    auto matcher = std::make_shared<GrammarMatcher>(make(), vocabulary_);
    promise.set_value(matcher);
    return matcher;
  } catch (...) {
    promise.set_exception(std::current_exception());
    const std::lock_guard lock(mutex_);
    const auto it = index_.find(key);
    if (it != index_.end() && it->second->serial == serial) {
      entries_.erase(it->second);
      index_.erase(it);
    }
    throw;
  }
}

size_t GrammarCache::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace qw
