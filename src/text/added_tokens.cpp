#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace qw {
namespace {

Char char_before(std::string_view text, size_t end) noexcept {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80)
    --begin;
  return decode_valid_utf8(text.data() + begin);
}

bool is_white_space(uint32_t code_point) noexcept {
  const CharClass c = CharTable::get().class_of(code_point);
  return c == CharClass::kSpace || c == CharClass::kNewline;
}

size_t skip_white_space_back(std::string_view text, size_t end, size_t limit) noexcept {
  while (end > limit) {
    const Char c = char_before(text, end);
    if (!is_white_space(c.code_point)) break;
    end -= c.length;
  }
  return end;
}

size_t skip_white_space(std::string_view text, size_t begin) noexcept {
  while (begin < text.size()) {
    const Char c = decode_valid_utf8(text.data() + begin);
    if (!is_white_space(c.code_point)) break;
    begin += c.length;
  }
  return begin;
}

bool touches_word(std::string_view text, size_t begin, size_t end) noexcept {
  return (begin > 0 && is_word_character(char_before(text, begin).code_point)) ||
         (end < text.size() && is_word_character(decode_valid_utf8(text.data() + end).code_point));
}

enum class Overlap { kNone, kPart, kWhole };

Overlap overlap_of(std::span<const ByteRange> ranges, size_t begin, size_t end) noexcept {
  const auto it = std::partition_point(ranges.begin(), ranges.end(),
                                       [&](const ByteRange& r) { return r.end <= begin; });
  if (it == ranges.end() || it->begin >= end) return Overlap::kNone;
  return it->begin <= begin && it->end >= end ? Overlap::kWhole : Overlap::kPart;
}

}  // namespace

void AddedTokenFinder::add(std::string_view text, const AddedToken& token) {
  if (text.empty()) return;
  uint32_t node = kRoot;
  for (const char c : text) {
    const uint64_t edge = uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [it, fresh] = edges_.try_emplace(edge, static_cast<uint32_t>(token_at_.size()));
    if (fresh) token_at_.push_back(-1);
    if (node == kRoot && fresh) {
      nodes_by_first_byte_[static_cast<unsigned char>(c)] = it->second;
      ++n_first_bytes_;
      first_byte_ = c;
    }
    node = it->second;
  }
  token_at_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.special, token.lstrip, token.rstrip, token.single_word});
}

/// The first place from `begin` on where a token may begin; text.size() if there is none.
size_t AddedTokenFinder::next_candidate(std::string_view text, size_t begin) const noexcept {
  // The tokens of most vocabularies begin alike ("<|im_start|>"), and finding a byte is fast.
  if (n_first_bytes_ <= 1) {
    return n_first_bytes_ == 0 ? text.size() : std::min(text.find(first_byte_, begin), text.size());
  }
  while (begin < text.size() &&
         nodes_by_first_byte_[static_cast<unsigned char>(text[begin])] == kRoot)
    ++begin;
  return begin;
}

AddedTokenFinder::Match AddedTokenFinder::longest_match(std::string_view text,
                                                        size_t begin) const noexcept {
  Match best;
  uint32_t node = nodes_by_first_byte_[static_cast<unsigned char>(text[begin])];
  for (size_t i = begin + 1; node != kRoot; ++i) {
    if (token_at_[node] >= 0) best = {&tokens_[static_cast<size_t>(token_at_[node])], i};
    if (i == text.size()) break;
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    node = edge == edges_.end() ? kRoot : edge->second;
  }
  return best;
}

void AddedTokenFinder::split(std::string_view text, const Options& options,
                             FunctionRef<void(std::string_view part, int32_t id)> visit) const {
  size_t done = 0;
  for (size_t i = 0; (i = next_candidate(text, i)) < text.size();) {
    const Match match = longest_match(text, i);
    if (match.token == nullptr) {
      ++i;
      continue;
    }
    const Token& token = *match.token;
    size_t begin = i, end = match.end;
    // What is found and turned down is passed over whole, as the reference does; but a match that
    // only reaches into a plain range must not hide the real token that may begin inside it.
    const Overlap overlap = token.special ? overlap_of(options.plain, begin, end) : Overlap::kNone;
    i = overlap == Overlap::kPart ? begin + 1 : end;
    if (overlap != Overlap::kNone || (token.special && !options.parse_special) ||
        (token.single_word && touches_word(text, begin, end))) {
      continue;
    }
    if (token.lstrip) begin = skip_white_space_back(text, begin, done);
    if (token.rstrip) i = end = skip_white_space(text, end);
    if (begin > done) visit(text.substr(done, begin - done), -1);
    visit(text.substr(begin, end - begin), token.id);
    done = end;
  }
  if (done < text.size()) visit(text.substr(done), -1);
}

}  // namespace qw
