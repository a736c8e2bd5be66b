#include "text/tokenizer_spec.h"

namespace qw {

std::optional<MergeText> parse_merge_line(std::string_view line) {
  const size_t space = line.find(' ');
  if (space == 0 || space == std::string_view::npos || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string_view::npos) {
    return std::nullopt;
  }
  return MergeText{std::string(line.substr(0, space)), std::string(line.substr(space + 1))};
}

}  // namespace qw
