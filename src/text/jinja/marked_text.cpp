#include "text/jinja/marked_text.h"

#include <algorithm>
#include <utility>

#include "text/jinja/template_error.h"

namespace qw::jinja {

MarkedText::MarkedText(std::string text, bool content) : text_(std::move(text)) {
  if (text_.size() > kMaxBytes) check_room(0);
  if (content) mark(0, text_.size());
}

void MarkedText::check_room(size_t more) const {
  if (text_.size() > kMaxBytes || more > kMaxBytes - text_.size()) {
    raise(TemplateErrorKind::kLimit, "a string of the template grew past {} bytes", kMaxBytes);
  }
}

void MarkedText::mark(size_t begin, size_t end) {
  if (begin == end) return;
  if (!content_.empty() && content_.back().end == begin) {
    content_.back().end = end;
  } else {
    content_.push_back({begin, end});
  }
}

void MarkedText::append(std::string_view text, bool content) {
  check_room(text.size());
  const size_t begin = text_.size();
  text_.append(text);
  if (content) mark(begin, text_.size());
}

void MarkedText::append(const MarkedText& other) {
  append_slice(other, 0, other.size());
}

void MarkedText::append_slice(const MarkedText& other, size_t begin, size_t end) {
  check_room(end - begin);
  const size_t at = text_.size();
  text_.append(other.text_, begin, end - begin);
  auto range = std::lower_bound(other.content_.begin(), other.content_.end(), begin,
                                [](const ByteRange& r, size_t where) { return r.end <= where; });
  for (; range != other.content_.end() && range->begin < end; ++range) {
    mark(at + std::max(range->begin, begin) - begin, at + std::min(range->end, end) - begin);
  }
}

MarkedText MarkedText::slice(size_t begin, size_t end) const {
  MarkedText out;
  out.append_slice(*this, begin, end);
  return out;
}

}  // namespace qw::jinja
