#include "base/error.h"

#include <cstring>

#include "base/utf8.h"

namespace qw {

int exit_code(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::kInternal:
      return 1;
    case ErrorKind::kInvalidArgument:
      return 2;
    case ErrorKind::kNotFound:
      return 3;
    case ErrorKind::kCorrupt:
      return 4;
    case ErrorKind::kUnsupported:
      return 5;
    case ErrorKind::kOutOfMemory:
      return 6;
    case ErrorKind::kIo:
      return 7;
    case ErrorKind::kCancelled:
      return 130;
  }
  return 1;
}

std::string_view name_of(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::kInternal:
      return "internal";
    case ErrorKind::kInvalidArgument:
      return "invalid_argument";
    case ErrorKind::kNotFound:
      return "not_found";
    case ErrorKind::kCorrupt:
      return "corrupt";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kOutOfMemory:
      return "out_of_memory";
    case ErrorKind::kIo:
      return "io";
    case ErrorKind::kCancelled:
      return "cancelled";
  }
  return "internal";
}

namespace {

/// C0 and C1 controls, and the two characters that Unicode calls line and paragraph separator.
bool breaks_line(uint32_t code_point) noexcept {
  return code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0) || code_point == 0x2028 ||
         code_point == 0x2029;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    const Utf8Step step = decode_utf8(text.substr(i));
    if (step.valid && !breaks_line(step.code_point)) {
      out.append(text.substr(i, step.length));
    } else {
      for (size_t j = 0; j < step.length; ++j) {
        fmt::format_to(std::back_inserter(out), "\\x{:02x}",
                       static_cast<unsigned char>(text[i + j]));
      }
    }
    i += step.length;
  }
  return out;
}

std::string_view sentence_of(const Error& error) {
  const std::string_view message = error.message();
  const size_t end = message.find("] ");
  return end == std::string_view::npos ? message : message.substr(end + 2);
}

namespace detail {

void check_failed(const char* condition, const char* file, int line, std::string_view note) {
  const char* base = std::strrchr(file, '/');
  fail(ErrorKind::kInternal, "check",
       "{}: expected {}, got the opposite ({}:{}; this is a bug in qianwen)",
       note.empty() ? "invariant" : note, condition, base ? base + 1 : file, line);
}

}  // namespace detail

}  // namespace qw
