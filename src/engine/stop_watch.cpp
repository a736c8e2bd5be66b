#include "engine/stop_watch.h"

#include <algorithm>

namespace qw {

StopWatch::StopWatch(std::shared_ptr<const Tokenizer> tokenizer, const Request& request)
    : detokenizer_(std::move(tokenizer), request.skip_special_tokens), request_(&request) {
  for (const std::string& stop : request.config.stop_strings)
    n_kept_ = std::max(n_kept_, stop.size() - 1);
}

bool StopWatch::push(int32_t id) {
  const size_t n_before = end_.size();
  end_ += detokenizer_.push(id);
  const std::vector<std::string>& all = request_->config.stop_strings;
  const size_t n = ++n_tokens_ > request_->stop_after ? all.size() : request_->n_turn_ends;
  // One that ended earlier did not count then.
  const bool found = std::any_of(
      all.begin(), all.begin() + static_cast<std::ptrdiff_t>(n), [&](const std::string& stop) {
        const size_t begin = n_before < stop.size() ? 0 : n_before - stop.size() + 1;
        return end_.find(stop, begin) != std::string::npos;
      });
  if (end_.size() > n_kept_) end_.erase(0, end_.size() - n_kept_);
  return found;
}

}  // namespace qw
