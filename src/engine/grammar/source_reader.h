// Reading the text of a regular expression or a grammar: characters with their position.
//
// Level 6 (engine/grammar). What both notations share: code points, escapes by number, counts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qw::grammar {

/// The most that a repetition may count to.
inline constexpr uint32_t kMaxRepeat = 10'000'000;

class SourceReader {
 public:
  static constexpr uint32_t kEnd = 0xFFFFFFFF;

  /// component names the notation in errors. by_line: errors name line and column, and not the
  /// offset. Errors: invalid_argument (invalid UTF-8).
  SourceReader(std::string_view text, std::string_view component, bool by_line);

  bool at_end() const { return at_ >= text_.size(); }
  size_t offset() const { return at_; }
  void seek(size_t offset) { at_ = offset; }
  std::string_view rest() const { return text_.substr(at_); }
  std::string_view text() const { return text_; }
  uint32_t peek() const;
  uint32_t next();
  /// Moves past `expected` if it comes next.
  bool accept(std::string_view expected);

  /// `n` hexadecimal digits.
  uint32_t hex(int n);
  /// \uHHHH, after the u: two of them where they are a surrogate pair.
  uint32_t utf16_escape();
  /// A decimal number of at most kMaxRepeat.
  uint32_t count();

  /// "expected X, got Y (position)". offset: where; Y is what stands there.
  [[noreturn]] void fail_at(size_t offset, std::string_view expected) const;
  /// "expected what is supported, got WHAT (position)".
  [[noreturn]] void refuse(size_t offset, std::string_view what) const;
  std::string position(size_t offset) const;

 private:
  std::string_view text_, component_;
  size_t at_ = 0;
  bool by_line_;
};

}  // namespace qw::grammar
