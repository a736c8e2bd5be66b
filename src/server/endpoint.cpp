#include "server/endpoint.h"

namespace qw::server {

namespace {

/// The next segment of a path, without its slash.
std::string_view take_segment(std::string_view& path) {
  if (path.starts_with('/')) path.remove_prefix(1);
  const std::string_view segment = path.substr(0, path.find('/'));
  path.remove_prefix(segment.size());
  return segment;
}

}  // namespace

bool match_path(std::string_view pattern, std::string_view path, PathParameters& parameters) {
  parameters.clear();
  while (!pattern.empty()) {
    std::string_view part = take_segment(pattern);
    if (!part.starts_with('{')) {
      if (path.empty() || take_segment(path) != part) return false;
      continue;
    }
    part = part.substr(1, part.size() - 2);
    const bool takes_rest = part.ends_with("...");
    if (takes_rest) part.remove_suffix(3);
    if (path.size() < 2) return false;
    const std::string_view value = takes_rest ? path.substr(1) : take_segment(path);
    if (value.empty()) return false;
    if (takes_rest) path = {};
    parameters.emplace_back(part, value);
  }
  return path.empty();
}

}  // namespace qw::server
