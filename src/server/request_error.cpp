#include "server/request_error.h"

#include <algorithm>
#include <cmath>

namespace qw::server {

std::string_view subject_of(std::string_view message) {
  const size_t begin = message.find("] ");
  if (!message.starts_with('[') || begin == std::string_view::npos) return "";
  message.remove_prefix(begin + 2);
  return message.substr(0, message.find(':'));
}

RequestError in_client_names(const std::vector<ClientName>& names, const Error& error) {
  std::string message = error.message(), subject(subject_of(message));
  const ClientName* found = nullptr;
  for (const ClientName& name : names) {
    const bool is_part = subject.starts_with(name.ours) &&
                         (subject.size() == name.ours.size() || subject[name.ours.size()] == '.' ||
                          subject[name.ours.size()] == '[');
    if (is_part && (found == nullptr || name.ours.size() > found->ours.size())) found = &name;
  }
  if (found != nullptr) {
    message.replace(message.find("] ") + 2, found->ours.size(), found->theirs);
    subject.replace(0, found->ours.size(), found->theirs);
  }
  if (subject.find(' ') != std::string::npos) subject.clear();
  return {error.kind(), std::move(message), std::move(subject)};
}

int64_t seconds_until_room(int64_t n_ahead, int64_t n_slots, double typical_s) noexcept {
  const double seconds =
      typical_s * static_cast<double>(n_ahead) / static_cast<double>(std::max<int64_t>(n_slots, 1));
  return static_cast<int64_t>(std::ceil(std::clamp(seconds, 1.0, 600.0)));
}

int http_status(const Error& error) noexcept {
  if (const auto* own = dynamic_cast<const RequestError*>(&error); own && own->status() != 0)
    return own->status();
  switch (error.kind()) {
    case ErrorKind::kInvalidArgument:
    case ErrorKind::kUnsupported:
      return 400;
    case ErrorKind::kNotFound:
      return 404;
    case ErrorKind::kOutOfMemory:
    case ErrorKind::kCancelled:
      return 503;
    case ErrorKind::kCorrupt:
    case ErrorKind::kIo:
    case ErrorKind::kInternal:
      return 500;
  }
  return 500;
}

}  // namespace qw::server
