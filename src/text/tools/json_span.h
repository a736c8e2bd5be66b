// Where a JSON object ends, in text that arrives in pieces.
//
// Level 3 (text). Only strings and brackets are looked at: enough to know which bytes are inside a
// string, and where the object closes. Whether it is JSON at all is for a parser to say.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qw::tools {

class JsonSpan {
 public:
  enum class State {
    kOpen,    // more to come
    kClosed,  // the object's last bracket was read
    kBroken,  // cannot be JSON
  };

  /// Reads on, the object's '{' first. Returns how many bytes belong to the object; those after
  /// are left alone, as is the byte that breaks it: a wrong bracket, or outside strings
  /// what no number or word of JSON has, so that no marker is taken for a part of it. A line break
  /// in a string, which JSON forbids and models write, does not end the string.
  size_t read(std::string_view text) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (state_ != State::kOpen || !take(text[i])) return i;
      if (state_ == State::kClosed) return i + 1;
    }
    return text.size();
  }
  State state() const noexcept { return state_; }

 private:
  bool take(char c) {
    const auto byte = static_cast<unsigned char>(c);
    if (in_string_) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == '"')
        in_string_ = false;
      return true;
    }
    if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      open_ += c;
    } else if (c == '}' || c == ']') {
      if (open_.empty() || open_.back() != (c == '}' ? '{' : '[')) return breaks();
      open_.pop_back();
      if (open_.empty()) state_ = State::kClosed;
    } else if (byte >= 0x80 || c == '<' || (c >= 'A' && c <= 'Z' && c != 'E')) {
      return breaks();
    }
    return true;
  }
  bool breaks() {
    state_ = State::kBroken;
    return false;
  }

  State state_ = State::kOpen;
  bool in_string_ = false, escaped_ = false;
  std::string open_;  // brackets
};

}  // namespace qw::tools
