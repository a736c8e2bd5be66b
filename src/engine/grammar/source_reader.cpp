#include "engine/grammar/source_reader.h"

#include <algorithm>

#include "base/utf8.h"

namespace qw::grammar {

SourceReader::SourceReader(std::string_view text, std::string_view component, bool by_line)
    : text_(text), component_(component), by_line_(by_line) {
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    fail(ErrorKind::kInvalidArgument, component_, "text: expected UTF-8, got an invalid byte ({})",
         position(bad));
  }
}

uint32_t SourceReader::peek() const {
  return at_end() ? kEnd : decode_utf8(text_.substr(at_)).code_point;
}

uint32_t SourceReader::next() {
  if (at_end()) return kEnd;
  const Utf8Step step = decode_utf8(text_.substr(at_));
  at_ += step.length;
  return step.code_point;
}

bool SourceReader::accept(std::string_view expected) {
  if (!rest().starts_with(expected)) return false;
  at_ += expected.size();
  return true;
}

uint32_t SourceReader::hex(int n) {
  uint32_t value = 0;
  for (int i = 0; i < n; ++i) {
    const size_t here = at_;
    const uint32_t c = next();
    uint32_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
      digit = (c | 0x20) - 'a' + 10;
    } else {
      fail_at(here, fmt::format("{} hexadecimal digits", n));
    }
    value = value << 4 | digit;
  }
  return value;
}

uint32_t SourceReader::utf16_escape() {
  const size_t here = at_;
  const uint32_t high = hex(4);
  if (high < 0xD800 || high > 0xDFFF) return high;
  if (high < 0xDC00 && accept("\\u")) {
    const uint32_t low = hex(4);
    if (low >= 0xDC00 && low <= 0xDFFF) return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }
  fail_at(here, "a character or a pair of surrogates");
}

uint32_t SourceReader::count() {
  const size_t here = at_;
  uint64_t value = 0;
  while (peek() >= '0' && peek() <= '9') {
    value = value * 10 + (next() - '0');
    if (value > kMaxRepeat) {
      fail_at(here, fmt::format("a repetition of at most {} times", kMaxRepeat));
    }
  }
  if (at_ == here) fail_at(here, "a number");
  return static_cast<uint32_t>(value);
}

std::string SourceReader::position(size_t offset) const {
  if (!by_line_) return fmt::format("offset {} of \"{}\"", offset, printable(text_));
  const std::string_view before = text_.substr(0, offset);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t begin = before.rfind('\n') + 1;  // npos + 1 is 0
  return fmt::format("line {}, column {}", line, 1 + offset - begin);
}

void SourceReader::fail_at(size_t offset, std::string_view expected) const {
  std::string got = "the end";
  if (offset < text_.size()) {
    const size_t length = decode_utf8(text_.substr(offset)).length;
    got = fmt::format("\"{}\"", printable(text_.substr(offset, std::max<size_t>(length, 1))));
  }
  fail(ErrorKind::kInvalidArgument, component_, "text: expected {}, got {} ({})", expected, got,
       position(offset));
}

void SourceReader::refuse(size_t offset, std::string_view what) const {
  fail(ErrorKind::kUnsupported, component_, "text: expected what is supported, got {} ({})", what,
       position(offset));
}

}  // namespace qw::grammar
