#include "engine/stop_watch.h"

#include <algorithm>

namespace qw {

StopWatch::StopWatch(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens,
                     const std::vector<std::string>& stop_strings)
    : detokenizer_(std::move(tokenizer), skip_special_tokens), stop_strings_(&stop_strings) {
  for (const std::string& stop : stop_strings)
    n_kept_ = std::max(n_kept_, stop.size() - 1);
}

bool StopWatch::push(int32_t id) {
  end_ += detokenizer_.push(id);
  const bool found =
      std::any_of(stop_strings_->begin(), stop_strings_->end(),
                  [&](const std::string& stop) { return end_.find(stop) != std::string::npos; });
  if (end_.size() > n_kept_) end_.erase(0, end_.size() - n_kept_);
  return found;
}

}  // namespace qw
