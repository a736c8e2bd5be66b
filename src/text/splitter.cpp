#include "text/splitter.h"

#include <string>

namespace qw {
namespace {

/// Length in bytes of the contraction at `begin` ('s 't 're 've 'm 'll 'd), or 0. With
/// `fold_case` also 'S, 'RE, ... and the long s, which folds to s.
size_t contraction_length(std::string_view text, size_t begin, bool fold_case) noexcept {
  if (text[begin] != '\'') return 0;
  const auto letter = [&](size_t at) -> char {
    if (at >= text.size()) return '\0';
    const char c = text[at];
    return fold_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter(begin + 1), second = letter(begin + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  constexpr std::string_view kLongS = "\xC5\xBF";
  if (fold_case && text.substr(begin + 1, kLongS.size()) == kLongS) return 1 + kLongS.size();
  return 0;
}

/// A text and the classes of its characters. Here, and not in the class of the header, so that
/// compilers inline it.
struct Scanner {
  std::string_view text;
  const CharTable& table;

  CharClass class_at(size_t at, size_t& length) const noexcept {
    const Char c = decode_valid_utf8(text.data() + at);
    length = c.length;
    return table.class_of(c.code_point);
  }

  size_t run_end(size_t begin, CharClass wanted) const noexcept {
    size_t length = 0;
    while (begin < text.size() && class_at(begin, length) == wanted)
      begin += length;
    return begin;
  }

  size_t white_space_end(size_t begin, bool newlines_first) const noexcept;
  size_t qwen_end(size_t begin, int max_digits) const noexcept;
  size_t gpt2_end(size_t begin) const noexcept;
};

size_t Scanner::white_space_end(size_t begin, bool newlines_first) const noexcept {
  size_t end = begin, last_begin = begin, after_newline = 0, length = 0;
  while (end < text.size()) {
    const CharClass c = class_at(end, length);
    if (c != CharClass::kSpace && c != CharClass::kNewline) break;
    last_begin = end;
    end += length;
    if (c == CharClass::kNewline) after_newline = end;
  }
  if (newlines_first && after_newline != 0) return after_newline;  // \s*[\r\n]+
  // \s+(?!\S): a visible character keeps the last white space for itself, unless it is the only
  // one.
  return end == text.size() || last_begin == begin ? end : last_begin;
}

size_t Scanner::qwen_end(size_t begin, int max_digits) const noexcept {
  size_t length = 0, next_length = 0;
  const CharClass first = class_at(begin, length);
  const size_t next = begin + length;
  if (first == CharClass::kLetter) return run_end(next, CharClass::kLetter);
  if (const size_t n = contraction_length(text, begin, true)) return begin + n;
  if (first == CharClass::kNumber) {
    size_t end = next;
    for (int n = 1; n < max_digits && end < text.size(); ++n) {
      if (class_at(end, next_length) != CharClass::kNumber) break;
      end += next_length;
    }
    return end;
  }
  const CharClass second = next < text.size() ? class_at(next, next_length) : CharClass::kNewline;
  if (second == CharClass::kLetter && first != CharClass::kNewline) {
    return run_end(next + next_length, CharClass::kLetter);
  }
  if (first == CharClass::kOther || (text[begin] == ' ' && second == CharClass::kOther)) {
    return run_end(run_end(next, CharClass::kOther), CharClass::kNewline);
  }
  return white_space_end(begin, true);
}

size_t Scanner::gpt2_end(size_t begin) const noexcept {
  if (const size_t n = contraction_length(text, begin, false)) return begin + n;
  size_t length = 0;
  CharClass kind = class_at(begin, length);
  size_t body = begin + length;
  if (text[begin] == ' ' && body < text.size()) {
    kind = class_at(body, length);
    if (kind != CharClass::kSpace && kind != CharClass::kNewline) body += length;
  }
  if (kind == CharClass::kSpace || kind == CharClass::kNewline) {
    return white_space_end(begin, false);
  }
  return run_end(body, kind);
}

}  // namespace

size_t Splitter::piece_end(std::string_view text, size_t begin) const noexcept {
  const Scanner scanner{text, table_};
  switch (pattern_) {
    case SplitPattern::kQwen2:
      return scanner.qwen_end(begin, 1);
    case SplitPattern::kCl100k:
      return scanner.qwen_end(begin, 3);
    case SplitPattern::kGpt2:
      return scanner.gpt2_end(begin);
    case SplitPattern::kNone:
      break;
  }
  return text.size();
}

std::optional<SplitPattern> Splitter::from_regex(std::string_view regex) {
  constexpr std::string_view kContractions = R"((?i:'s|'t|'re|'ve|'m|'ll|'d))";
  constexpr std::string_view kLetters = R"(|[^\r\n\p{L}\p{N}]?\p{L}+)";
  constexpr std::string_view kRest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string head = std::string(kContractions).append(kLetters);
  if (regex == head + R"(|\p{N})" + std::string(kRest)) return SplitPattern::kQwen2;
  if (regex == head + R"(|\p{N}{1,3})" + std::string(kRest)) return SplitPattern::kCl100k;
  // The form tiktoken prints for cl100k: possessive, but the same language.
  if (regex == R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3})"
               R"(| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)") {
    return SplitPattern::kCl100k;
  }
  if (regex == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)" ||
      regex == R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") {
    return SplitPattern::kGpt2;
  }
  return std::nullopt;
}

}  // namespace qw
