// Only some tokens may be chosen (vLLM's allowed_token_ids).
//
// Level 7 (server).
#pragma once

#include <algorithm>
#include <vector>

#include "engine/logits_process.h"
#include "server/request_error.h"

namespace qw::server {

class AllowedTokens : public LogitsProcessor {
 public:
  explicit AllowedTokens(std::vector<int32_t> ids) : ids_(std::move(ids)) {
    if (ids_.empty()) refuse_field("allowed_token_ids", "expected at least one id, got none");
    std::ranges::sort(ids_);
    ids_.erase(std::ranges::unique(ids_).begin(), ids_.end());
  }
  void process(const TokenHistory&, LogitsRow& row) const override {
    const auto vocab = static_cast<int32_t>(row.values().size());
    if (ids_.back() >= vocab) {
      refuse_field("allowed_token_ids", "expected ids below {}, got {}", vocab, ids_.back());
    }
    row.keep_only(ids_);
  }
  std::string_view name() const override { return "allowed_token_ids"; }

 private:
  std::vector<int32_t> ids_;
};

}  // namespace qw::server
