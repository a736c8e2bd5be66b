#include "text/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

constexpr std::string_view kOperators2[] = {"//", "**", "==", "!=", ">=", "<="};
constexpr std::string_view kOperators1 = "+-/*%~[](){}><=.:|,;";

/// "\r\n" and "\r" become "\n", and one newline at the end goes.
std::string normalise(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool is_name_start(uint32_t c) {
  return c == '_' || is_alpha(c);
}
bool is_name_char(uint32_t c) {
  return c == '_' || is_alnum(c);
}
bool is_digit_char(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size())
      data_until_tag();
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  // ---- text and tags

  void data_until_tag() {
    size_t open = at_;
    do {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        emit_data(at_, source_.size());
        at_ = source_.size();
        return;
      }
    } while (std::string_view("{%#").find(source_[open + 1]) == std::string_view::npos && ++open);
    const char kind = source_[open + 1];
    const size_t data_end = left_edge(at_, open, kind == '{');
    emit_data(at_, data_end);
    advance(open + 2);
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) advance(at_ + 1);
    if (kind == '#') return comment();
    if (kind == '%' && raw_block()) return;
    push(kind == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "");
    inside(kind == '{' ? "}}" : "%}");
  }

  /// Where the text before a tag at `open` ends: cut by `-`, or by lstrip_blocks when only white
  /// space stands between the line's start and the tag.
  size_t left_edge(size_t begin, size_t open, bool variable) const {
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    size_t end = open;
    if (sign == '-') {
      while (end > begin) {
        const size_t before = previous(end);
        if (!is_space_at(before)) break;
        end = before;
      }
      return end;
    }
    if (sign == '+' || variable) return open;
    const size_t newline = source_.rfind('\n', open);
    const bool here =
        open > begin && newline != std::string::npos && newline >= begin && newline < open;
    if (!here && !line_starting_) return open;
    const size_t line_begin = here ? newline + 1 : begin;
    for (size_t i = line_begin, length = 0; i < open; i += length) {
      if (!is_space(code_point_at(source_, i, &length))) return open;
    }
    return line_begin;
  }

  size_t previous(size_t end) const {
    do {
      --end;
    } while (end > 0 && (static_cast<unsigned char>(source_[end]) & 0xC0) == 0x80);
    return end;
  }

  bool is_space_at(size_t i) const {
    size_t length = 0;
    return is_space(code_point_at(source_, i, &length));
  }

  void emit_data(size_t begin, size_t end) {
    if (end > begin) push(TokenKind::kData, source_.substr(begin, end - begin));
  }

  /// After the two characters of an end of tag: `-` eats white space, `+` and variables keep it,
  /// else one newline goes (trim_blocks).
  void after_tag(char sign, bool trim_newline) {
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && trim_newline && at_ < source_.size() && source_[at_] == '\n') {
      advance(at_ + 1);
    }
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  void skip_space() {
    size_t end = at_;
    for (size_t length = 0; end < source_.size(); end += length) {
      if (!is_space(code_point_at(source_, end, &length))) break;
    }
    advance(end);
  }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  void comment() {
    // `{#-#}`: the sign belongs to the opening, as in Jinja.
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) syntax_error(line_, "Missing end of comment tag");
    const char sign = close > at_ ? source_[close - 1] : '\0';
    advance(close + 2);
    after_tag(sign == '-' || sign == '+' ? sign : '\0', true);
  }

  /// `{% raw %}` ... `{% endraw %}` at the present tag; false if the tag is another.
  bool raw_block() {
    const size_t start = at_;
    const int start_line = line_;
    skip_space();
    const bool is_raw = source_.compare(at_, 3, "raw") == 0;
    if (is_raw) advance(at_ + 3);
    if (is_raw) skip_space();
    const bool strips = is_raw && source_.compare(at_, 3, "-%}") == 0;
    if (!is_raw || (!strips && source_.compare(at_, 2, "%}") != 0)) {
      at_ = start;
      line_ = start_line;
      return false;
    }
    advance(at_ + (strips ? 3 : 2));
    if (strips) skip_space();
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
    const size_t body = at_;
    for (size_t open = source_.find("{%", body); open != std::string::npos;
         open = source_.find("{%", open + 1)) {
      size_t i = open + 2;
      if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) ++i;
      i = after_space(i);
      if (source_.compare(i, 6, "endraw") != 0) continue;
      i = after_space(i + 6);
      const char sign =
          i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i] : '\0';
      if (sign != '\0') ++i;
      if (source_.compare(std::min(i, source_.size()), 2, "%}") != 0) continue;
      emit_data(body, left_edge(body, open, false));
      advance(i + 2);
      after_tag(sign, true);
      return true;
    }
    syntax_error(line_, "Missing end of raw directive");
  }

  size_t after_space(size_t i) const {
    size_t length = 0;
    while (i < source_.size() && is_space(code_point_at(source_, i, &length)))
      i += length;
    return std::min(i, source_.size());
  }

  // ---- inside a tag

  void inside(std::string_view close) {
    std::string open_brackets;
    const int begin_line = line_;
    while (true) {
      skip_space();
      if (at_ >= source_.size()) {
        syntax_error(begin_line,
                     "Unexpected end of template: a tag that begins here is not closed");
      }
      if (open_brackets.empty() && ends_tag(close)) return;
      const char c = source_[at_];
      if (is_digit_char(c)) {
        number();
      } else if (c == '\'' || c == '"') {
        string_literal(c);
      } else if (!name()) {
        operator_token(open_brackets);
      }
    }
  }

  bool ends_tag(std::string_view close) {
    const bool block = close == "%}";
    size_t i = at_;
    const char sign = source_[i];
    const bool has_sign = sign == '-' || (sign == '+' && block);
    if (has_sign) ++i;
    if (source_.compare(i, 2, close) != 0) return false;
    push(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "");
    advance(i + 2);
    after_tag(has_sign ? sign : '\0', block);
    return true;
  }

  bool name() {
    size_t end = at_;
    for (size_t length = 0; end < source_.size(); end += length) {
      const uint32_t c = code_point_at(source_, end, &length);
      if (end == at_ ? !is_name_start(c) : !is_name_char(c)) break;
    }
    if (end == at_) return false;
    push(TokenKind::kName, source_.substr(at_, end - at_));
    advance(end);
    return true;
  }

  void operator_token(std::string& open_brackets) {
    for (const std::string_view op : kOperators2) {
      if (source_.compare(at_, 2, op) == 0) {
        push(TokenKind::kOperator, std::string(op));
        return advance(at_ + 2);
      }
    }
    const char c = source_[at_];
    if (kOperators1.find(c) == std::string_view::npos) {
      size_t length = 0;
      code_point_at(source_, at_, &length);
      syntax_error(line_, "unexpected char '{}'", source_.substr(at_, length));
    }
    constexpr std::string_view kOpen = "([{";
    constexpr std::string_view kClose = ")]}";
    if (kOpen.find(c) != std::string_view::npos) open_brackets += kClose[kOpen.find(c)];
    if (kClose.find(c) != std::string_view::npos) {
      if (open_brackets.empty()) syntax_error(line_, "unexpected '{}'", c);
      if (open_brackets.back() != c) {
        syntax_error(line_, "unexpected '{}', expected '{}'", c, open_brackets.back());
      }
      open_brackets.pop_back();
    }
    push(TokenKind::kOperator, std::string(1, c));
    advance(at_ + 1);
  }

  // ---- literals

  /// The end of digits with single underscores between them.
  size_t digits_end(size_t i) const {
    while (i < source_.size() && (is_digit_char(source_[i]) ||
                                  (source_[i] == '_' && i > at_ && is_digit_char(source_[i - 1]) &&
                                   i + 1 < source_.size() && is_digit_char(source_[i + 1])))) {
      ++i;
    }
    return i;
  }

  void number() {
    if (source_[at_] == '0' && at_ + 1 < source_.size()) {
      const char kind = static_cast<char>(source_[at_ + 1] | 0x20);
      const int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
      if (base != 0) return based_integer(base);
    }
    size_t end = digits_end(at_);
    bool is_float = false;
    const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';  // a.0.1: two items, not a float
    if (!after_dot && end + 1 < source_.size() && source_[end] == '.' &&
        is_digit_char(source_[end + 1])) {
      end = digits_end(end + 1);
      is_float = true;
    }
    if (!after_dot && end < source_.size() && (source_[end] | 0x20) == 'e') {
      size_t i = end + 1;
      if (i < source_.size() && (source_[i] == '+' || source_[i] == '-')) ++i;
      if (i < source_.size() && is_digit_char(source_[i])) {
        end = digits_end(i);
        is_float = true;
      }
    }
    std::string digits = source_.substr(at_, end - at_);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    if (is_float) {
      push(TokenKind::kFloat, digits).real = parse_real(digits);
    } else {
      push(TokenKind::kInteger, digits).integer = parse_integer(digits, 10);
    }
    advance(end);
  }

  void based_integer(int base) {
    size_t end = at_ + 2;
    std::string digits;
    for (; end < source_.size() &&
           (std::isalnum(static_cast<unsigned char>(source_[end])) != 0 || source_[end] == '_');
         ++end) {
      if (source_[end] != '_') digits += source_[end];
    }
    push(TokenKind::kInteger, digits).integer = parse_integer(digits, base);
    advance(end);
  }

  static double parse_real(const std::string& digits) {
    double value = 0.0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc::result_out_of_range) return value;
    return digits.find("e-") != std::string::npos || digits.find("E-") != std::string::npos
               ? 0.0
               : HUGE_VAL;
  }

  Int parse_integer(const std::string& digits, int base) const {
    Int value = 0;
    for (const char c : digits) {
      const int d = is_digit_char(c) ? c - '0' : (c | 0x20) - 'a' + 10;
      if (d < 0 || d >= base) syntax_error(line_, "bad digit in a number");
      if (__builtin_mul_overflow(value, Int{base}, &value) ||
          __builtin_add_overflow(value, Int{d}, &value)) {
        syntax_error(line_, "an integer literal past 128 bits");
      }
    }
    if (digits.empty()) syntax_error(line_, "bad digit in a number");
    return value;
  }

  void string_literal(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote)
      end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size())
      syntax_error(line_, "unexpected char '{}': a string is not closed", quote);
    push(TokenKind::kString, unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    advance(end + 1);
  }

  std::string unescape(std::string_view raw) const {
    std::string out;
    for (size_t i = 0; i < raw.size();) {
      if (raw[i] != '\\') {
        out += raw[i++];
      } else {
        i = escape_sequence(raw, i + 1, out);
      }
    }
    return out;
  }

  /// Python's escapes; `i` is after the backslash. Unknown ones keep the backslash.
  size_t escape_sequence(std::string_view raw, size_t i, std::string& out) const {
    constexpr std::string_view kNames = "abfnrtv\\'\"\n";
    constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    const char c = raw[i];
    const size_t known = kNames.find(c);
    if (known < kValues.size()) {
      out += kValues[known];
      return i + 1;
    }
    if (c == '\n') return i + 1;  // a joined line
    if (c >= '0' && c <= '7') {
      uint32_t value = 0;
      size_t end = i;
      for (; end < raw.size() && end < i + 3 && raw[end] >= '0' && raw[end] <= '7'; ++end) {
        value = value * 8 + static_cast<uint32_t>(raw[end] - '0');
      }
      append_utf8(out, value);
      return end;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      if (c == 'N') syntax_error(line_, "\\N escapes are not supported in strings");
      out += '\\';
      return i;
    }
    uint32_t value = 0;
    const std::string_view hex = raw.substr(i + 1, digits);
    const auto result = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
    const bool bad = hex.size() != digits || result.ptr != hex.data() + hex.size();
    if (bad || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      syntax_error(line_, "a \\{} escape that is no character", c);
    }
    append_utf8(out, value);
    return i + 1 + digits;
  }

  Token& push(TokenKind kind, std::string text) {
    Token token;
    token.kind = kind;
    token.text = std::move(text);
    token.line = line_;
    tokens_.push_back(std::move(token));
    return tokens_.back();
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(normalise(source)).run();
}

}  // namespace qw::jinja
