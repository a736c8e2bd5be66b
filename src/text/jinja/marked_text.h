// Text that remembers which of its bytes came from outside the template.
//
// Level 3 (text). Every string of the interpreter is a MarkedText: UTF-8 plus the byte ranges that
// are content (messages, tools, documents). Copying pieces copies their marks, so the rendered
// prompt tells template from content, and a "<|im_end|>" typed by a user can be kept from becoming
// the special token. The idea is taint tracking, as in Perl's -T.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qw::jinja {

/// Half-open, in bytes.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const ByteRange&) const = default;
};

class MarkedText {
 public:
  /// No single string of a template may be longer; appending past it is a limit error.
  static constexpr size_t kMaxBytes = size_t{128} << 20;

  MarkedText() = default;
  /// Template text (content = false) or wholly content.
  explicit MarkedText(std::string text, bool content = false);

  const std::string& str() const noexcept { return text_; }
  size_t size() const noexcept { return text_.size(); }
  bool empty() const noexcept { return text_.empty(); }
  /// The content ranges: sorted, disjoint, not touching, not empty.
  const std::vector<ByteRange>& content() const noexcept { return content_; }
  bool has_content() const noexcept { return !content_.empty(); }

  void append(std::string_view text, bool content = false);
  void append(const MarkedText& other);
  /// Appends bytes [begin, end) of `other` with their marks.
  void append_slice(const MarkedText& other, size_t begin, size_t end);

  /// Bytes [begin, end) with their marks. Bounds must lie on character borders.
  MarkedText slice(size_t begin, size_t end) const;
  /// `text` made from this by some transformation: wholly content if any of this was.
  MarkedText derived(std::string text) const { return MarkedText(std::move(text), has_content()); }

 private:
  void check_room(size_t more) const;
  void mark(size_t begin, size_t end);

  std::string text_;
  std::vector<ByteRange> content_;
};

}  // namespace qw::jinja
