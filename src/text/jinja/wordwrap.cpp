// The filters wordwrap and filesizeformat.
//
// Level 3 (text). Source: Jinja 3.1's do_wordwrap over Python's textwrap.TextWrapper (tabs kept,
// white space at line borders dropped) and do_filesizeformat.
#include <algorithm>
#include <cmath>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {

Value wordwrap(Runtime& runtime, const Value& value, const Args& args);
Value filesizeformat(Runtime& runtime, const Value& value, const Args& args);

namespace {

struct Piece {
  size_t begin, end;  // bytes
  size_t chars;
  bool space;
};

bool is_wrap_space(char c) {
  return c == '\t' || c == '\n' || c == '\v' || c == '\f' || c == '\r' || c == ' ';
}

/// Whether a run of two or more hyphens between words begins at byte `i`; `end` is where it ends.
bool is_dash_at(const std::string& text, size_t i, size_t* end) {
  *end = text.find_first_not_of('-', i);
  if (i == 0 || text[i] != '-' || text[i - 1] == '-' || *end == std::string::npos || *end < i + 2)
    return false;
  return !is_wrap_space(text[i - 1]) && !is_wrap_space(text[*end]);
}

/// Words and runs of white space; with `at_hyphens` a word also ends after a hyphen between
/// letters, and at both ends of a dash.
std::vector<Piece> pieces_of(Budget& budget, const std::string& text, bool at_hyphens) {
  budget.step(text.size() / 8);  // decoding characters takes longer than comparing bytes
  std::vector<Piece> pieces;
  uint32_t before = 0;
  uint32_t before_that = 0;
  size_t dash_end = std::string::npos;
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const uint32_t c = code_point_at(text, i, &length);
    const bool space = is_wrap_space(text[i]);
    bool cut =
        at_hyphens && ((before == '-' && is_alpha(before_that) && is_alpha(c)) || i == dash_end);
    if (at_hyphens && c == '-' && before != '-') {
      size_t end = 0;
      if (is_dash_at(text, i, &end)) {
        cut = true;
        dash_end = end;
      }
    }
    if (pieces.empty() || pieces.back().space != space || cut) {
      budget.make_items(1);
      pieces.push_back({i, i, 0, space});
    }
    pieces.back().end = i + length;
    ++pieces.back().chars;
    before_that = before;
    before = c;
  }
  return pieces;
}

size_t byte_after(const std::string& text, const Piece& piece, size_t chars) {
  const std::string_view inside =
      std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  return piece.begin + byte_of_char(inside, chars);
}

/// How many characters of a word longer than a line to put into the `room` left (textwrap's
/// _handle_long_word): up to the last hyphen if there is one after something else.
size_t chars_to_break(const std::string& text, const Piece& piece, size_t room, bool at_hyphens) {
  if (!at_hyphens) return room;
  const std::string head = text.substr(piece.begin, byte_after(text, piece, room) - piece.begin);
  const size_t hyphen = head.rfind('-');
  if (hyphen == std::string::npos || hyphen == 0) return room;
  if (head.find_first_not_of('-') >= hyphen) return room;
  return count_chars(std::string_view(head).substr(0, hyphen)) + 1;
}

/// textwrap's _wrap_chunks: the byte ranges of the lines, white space at their borders dropped.
std::vector<Piece> wrap_line(Budget& budget, const std::string& text, size_t width, bool break_long,
                             bool at_hyphens) {
  std::vector<Piece> lines;
  std::vector<Piece> pieces = pieces_of(budget, text, at_hyphens);
  for (size_t next = 0; next < pieces.size();) {
    if (pieces[next].space && !lines.empty() && ++next == pieces.size()) break;
    Piece line{pieces[next].begin, pieces[next].begin, 0, false};
    size_t end_without_space = line.end;
    const auto take = [&](const Piece& piece, size_t end, size_t chars) {
      line.end = end;
      line.chars += chars;
      if (!piece.space) end_without_space = end;
    };
    while (next < pieces.size() && line.chars + pieces[next].chars <= width) {
      take(pieces[next], pieces[next].end, pieces[next].chars);
      ++next;
    }
    if (next < pieces.size() && pieces[next].chars > width) {
      Piece& word = pieces[next];
      const size_t room = width - line.chars;
      if (break_long) {
        const size_t chars = chars_to_break(text, word, room, at_hyphens);
        const size_t end = byte_after(text, word, chars);
        take(word, end, chars);
        word.begin = end;
        word.chars -= chars;
      } else if (line.chars == 0) {
        take(word, word.end, word.chars);
        ++next;
      }
    }
    line.end = end_without_space;
    if (line.end > line.begin) {
      budget.make_items(1);
      lines.push_back(line);
    }
  }
  return lines;
}

}  // namespace

Value wordwrap(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound =
      args.bind("wordwrap", {"width", "break_long_words", "wrapstring", "break_on_hyphens"});
  const MarkedText text = to_text(runtime, value);
  const Int width = bound[0] != nullptr ? bound[0]->as_int().value_or(0) : 79;
  if (width <= 0) python_error("invalid width {} (must be > 0)", width);
  const bool break_long = bound[1] == nullptr || truthy(*bound[1]);
  const bool at_hyphens = bound[3] == nullptr || truthy(*bound[3]);
  const MarkedText newline =
      bound[2] != nullptr && !bound[2]->is_none() ? to_text(runtime, *bound[2]) : MarkedText("\n");
  const auto columns = static_cast<size_t>(std::min<Int>(width, Int{1} << 40));
  MarkedText out;
  bool first = true;
  for (const Value& source : split_lines(runtime, text, false)) {
    if (!first) out.append(newline);
    first = false;
    const MarkedText& line = source.as_text();
    bool first_part = true;
    for (const Piece& part :
         wrap_line(runtime.budget(), line.str(), columns, break_long, at_hyphens)) {
      if (!first_part) {
        runtime.budget().make_bytes(newline.size());
        out.append(newline);
      }
      first_part = false;
      out.append_slice(line, part.begin, part.end);
    }
  }
  return Value(std::move(out));
}

Value filesizeformat(Runtime&, const Value& value, const Args& args) {
  const auto bound = args.bind("filesizeformat", {"binary"});
  const bool binary = bound[0] != nullptr && truthy(*bound[0]);
  if (value.is_undefined()) fail_undefined(value);
  const auto bytes = value.as_double();
  if (!bytes) python_error("could not convert {} to float", type_name(value));
  const double base = binary ? 1024 : 1000;
  if (*bytes == 1) return Value::text("1 Byte");
  if (*bytes < base) return Value::text(fmt::format("{:.0f} Bytes", std::trunc(*bytes)));
  constexpr std::string_view kPrefixes = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  while (i + 1 < kPrefixes.size() && *bytes >= unit * base) {
    unit *= base;
    ++i;
  }
  const char prefix = binary && i == 0 ? 'K' : kPrefixes[i];
  return Value::text(fmt::format("{:.1f} {}{}", *bytes / unit, prefix, binary ? "iB" : "B"));
}

}  // namespace qw::jinja
