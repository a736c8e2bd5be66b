// What one forward step computes: a flat struct of arrays, the only thing the engine hands to the
// model (and, later, sends to other ranks).
//
// Level 4 (backend). T tokens of S sequences; the tokens of a sequence are adjacent and in order.
#pragma once

#include <cstdint>
#include <vector>

namespace qw {

struct BatchPlan {
  // Per token [T].
  std::vector<int32_t> tokens;     // vocabulary ids
  std::vector<int32_t> positions;  // index in its sequence, from 0; also its place in the KV cache
  std::vector<int32_t> slots;      // page * page_tokens + position % page_tokens

  // Per sequence [S], or offsets [S + 1].
  std::vector<int32_t> seq_begin;        // tokens of s are [seq_begin[s], seq_begin[s + 1])
  std::vector<int32_t> seq_context;      // tokens in the cache once this step is done
  std::vector<int32_t> seq_rope_length;  // sequence length that dynamic NTK scaling sees: the whole
                                         // prompt for every chunk of a prefill, context in decoding
  std::vector<int32_t> adapters;         // adapter id, -1: none
  std::vector<int32_t> page_begin;  // page table of s is pages[page_begin[s] .. page_begin[s + 1])
  std::vector<int32_t> pages;       // page p of the table holds positions [p, p + 1) * page_tokens

  std::vector<int32_t> logit_rows;  // rows of [0, T) whose logits are wanted, ascending

  int64_t n_tokens() const noexcept { return static_cast<int64_t>(tokens.size()); }
  int64_t n_seqs() const noexcept { return static_cast<int64_t>(seq_context.size()); }
};

/// Our own promises of a plan to a backend: sizes agree, the tokens of a sequence are adjacent, and
/// every position lies within its sequence's context. Errors: internal.
void check_plan(const BatchPlan& plan);

}  // namespace qw
