#include "text/vocab_sax.h"

#include <utility>

#include "base/error.h"

namespace qw {
namespace {
constexpr std::string_view kComponent = "tokenizer";
constexpr size_t kMaxDepth = 32;              // real files have 6 levels
constexpr size_t kMaxKeys = size_t{1} << 14;  // of one object beside the vocabulary: found linearly
}  // namespace

void VocabSax::refuse(std::string_view expected, std::string_view got) const {
  const bool in_vocab = mode_ == Mode::kVocab;
  fail(ErrorKind::kCorrupt, kComponent, "{}, {}: expected {}, got {} ({})",
       vocab_at_root_ ? "vocabulary"
       : in_vocab     ? "model.vocab"
                      : "model.merges",
       in_vocab ? fmt::format("token '{}'", printable(token_))
                : fmt::format("merge {}", merges.size()),
       expected, got, source_);
}

std::string_view VocabSax::wanted() const {
  switch (mode_) {
    case Mode::kVocab:
      return "an id";
    case Mode::kMergePair:
      return "two texts";
    default:
      return "texts or pairs of texts";
  }
}

void VocabSax::add_token(number_unsigned_t id) {
  if (id >= static_cast<number_unsigned_t>(kMaxTokens)) {
    refuse(fmt::format("an id below {}", kMaxTokens), fmt::to_string(id));
  }
  if (token_.empty()) refuse("a text", "an empty one");
  if (id >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
  std::string& slot = tokens[static_cast<size_t>(id)];
  if (!slot.empty())
    refuse("an id of its own", fmt::format("{}, that of '{}'", id, printable(slot)));
  slot = std::move(token_);
  token_.clear();
}

void VocabSax::add_merge_line(const std::string& line) {
  auto merge = parse_merge_line(line);
  if (!merge) refuse("two parts with a space between", fmt::format("'{}'", printable(line)));
  merges.push_back(*std::move(merge));
}

bool VocabSax::number_integer(number_integer_t value) {
  return mode_ == Mode::kDocument ? add_value(value)
                                  : (refuse(wanted(), fmt::to_string(value)), false);
}

bool VocabSax::number_unsigned(number_unsigned_t value) {
  if (mode_ != Mode::kVocab) return add_value(value);
  add_token(value);
  return true;
}

bool VocabSax::string(string_t& value) {
  switch (mode_) {
    case Mode::kDocument:
      return add_value(std::move(value));
    case Mode::kVocab:
      refuse(wanted(), fmt::format("'{}'", printable(value)));
    case Mode::kMerges:
      add_merge_line(value);
      return true;
    case Mode::kMergePair:
      if (pair_.size() == 2 || value.empty())
        refuse(wanted(), value.empty() ? "an empty text" : "a third text");
      pair_.push_back(std::move(value));
      return true;
  }
  return false;
}

bool VocabSax::key(string_t& name) {
  if (mode_ == Mode::kVocab) {
    token_ = std::move(name);
  } else {
    if (open_.back()->size() >= kMaxKeys) {
      fail(ErrorKind::kCorrupt, kComponent,
           "JSON: expected at most {} keys in one object, got more ({})", kMaxKeys, source_);
    }
    keys_.back() = std::move(name);
  }
  return true;
}

bool VocabSax::start_object(size_t) {
  if (mode_ != Mode::kDocument) refuse(wanted(), "an object");
  const bool in_model = open_.size() == 2 && keys_[0] == "model" && keys_[1] == "vocab";
  if (vocab_at_root_ ? open_.empty() : in_model) {
    if (!tokens.empty()) refuse("one vocabulary", "two");
    mode_ = Mode::kVocab;
    return true;
  }
  return open(Json::object());
}

bool VocabSax::start_array(size_t) {
  if (mode_ == Mode::kVocab || mode_ == Mode::kMergePair) refuse(wanted(), "an array");
  if (mode_ == Mode::kMerges) {
    mode_ = Mode::kMergePair;
    pair_.clear();
    return true;
  }
  if (!vocab_at_root_ && open_.size() == 2 && keys_[0] == "model" && keys_[1] == "merges") {
    if (!merges.empty()) refuse("one list of merges", "two");
    mode_ = Mode::kMerges;
    return true;
  }
  return open(Json::array());
}

bool VocabSax::end() {
  switch (mode_) {
    case Mode::kVocab:
    case Mode::kMerges:
      mode_ = Mode::kDocument;
      return true;
    case Mode::kMergePair:
      if (pair_.size() != 2) refuse(wanted(), fmt::format("{} of them", pair_.size()));
      merges.push_back({std::move(pair_[0]), std::move(pair_[1])});
      mode_ = Mode::kMerges;
      return true;
    case Mode::kDocument:
      break;
  }
  open_.pop_back();
  keys_.pop_back();
  return true;
}

bool VocabSax::add_value(Json value) {
  if (mode_ != Mode::kDocument) refuse(wanted(), value.dump());
  if (open_.empty()) {
    rest = std::move(value);
  } else if (open_.back()->is_array()) {
    open_.back()->push_back(std::move(value));
  } else {
    (*open_.back())[keys_.back()] = std::move(value);
  }
  return true;
}

bool VocabSax::open(Json value) {
  if (open_.size() >= kMaxDepth) {
    fail(ErrorKind::kCorrupt, kComponent,
         "JSON: expected at most {} levels of nesting, got more ({})", kMaxDepth, source_);
  }
  Json* const parent = open_.empty() ? nullptr : open_.back();
  add_value(std::move(value));
  Json* const self = parent == nullptr    ? &rest
                     : parent->is_array() ? &parent->back()
                                          : &(*parent)[keys_.back()];
  open_.push_back(self);
  keys_.emplace_back();
  return true;
}

bool VocabSax::parse_error(size_t position, const std::string& last_token,
                           const nlohmann::detail::exception& /*error*/) {
  fail(ErrorKind::kCorrupt, kComponent,
       "document: expected valid JSON, got an error at byte {}, near '{}' ({})", position,
       printable(last_token, 40), source_);
}

void parse_with(VocabSax& sax, std::string_view json) {
  QW_CHECK(nlohmann::ordered_json::sax_parse(json, &sax), "the handler accepts or throws");
}

}  // namespace qw
