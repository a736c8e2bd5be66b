// How much memory a model will need, by kind, before anything is allocated.
//
// Level 5 (model). The engine refuses with these numbers instead of letting the kernel kill it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"
#include "model/adapter_file.h"
#include "model/config.h"
#include "model/model.h"

namespace qw {

struct MemoryRequest {
  int64_t ctx = 0;             // tokens per slot
  int64_t n_slots = 1;         // sequences at the same time
  int64_t chunk_tokens = 512;  // tokens per step
  int64_t logit_rows = 1;      // rows of logits kept on the host
  DType kv_type = KvSpec{}.type;
  std::vector<AdapterSpec> adapters = {};
  int64_t program_bytes = 0;  // what the process holds already, and its code; program_memory_bytes
  int64_t limit_bytes = 0;    // of everything; 0: available_memory_bytes() and program_bytes
  int64_t promised_bytes = 0;  // of that, what others in this process will yet take
};

/// All in bytes.
struct MemoryForecast {
  int64_t weights = 0;      // as the backend packs them, adapters included
  int64_t kv = 0;           // ctx tokens (rounded up to pages) in every slot
  int64_t activations = 0;  // of a step of chunk_tokens
  int64_t logits = 0;
  int64_t working = 0;  // the backend's scratch
  int64_t program = 0;  // code, libraries, tokenizer, headers of the files
  /// Pages of the model files in memory at the peak. They can be had back, so they count in total()
  /// but are no reason to refuse.
  int64_t file_pages = 0;
  int64_t available = 0;
  int64_t kv_per_token = 0;  // of one slot
  int64_t largest_ctx = 0;   // tokens per slot that fit beside everything else; may be 0

  int64_t total() const { return needed() + file_pages; }
  int64_t needed() const { return weights + kv + activations + logits + working + program; }
  bool fits() const { return needed() <= available; }
};

/// Opens every tensor (headers only) and adds up. Errors: as open_network and read_adapter;
/// invalid_argument for a request that is not positive.
MemoryForecast forecast_memory(const Checkpoint& checkpoint, const ModelConfig& config,
                               const Backend& backend, const MemoryRequest& request);

/// Errors: out_of_memory, naming every part, what is available and the largest context that fits.
void require_memory(const MemoryForecast& forecast, const MemoryRequest& request);

/// What an adapter adds: its low-rank matrices in f32, whole matrices as the backend packs them. A
/// changed embedding becomes a table of its own, in f32. Errors: corrupt (sizes out of range).
int64_t adapter_bytes(const AdapterFile& file, const ModelConfig& config, const Backend& backend);

/// Memory that this process holds (resident), and the rest of its own code, which it may yet touch.
/// `proc` is for tests. 0 where the system does not say.
int64_t program_memory_bytes(const std::string& proc = "/proc");

/// Memory that this process may still take: the smallest of MemAvailable, what is left of its
/// control group's limit (v1 or v2, page cache counted as free) and what is left of RLIMIT_AS.
/// The paths are for tests.
int64_t available_memory_bytes(const std::string& proc = "/proc",
                               const std::string& cgroups = "/sys/fs/cgroup");

}  // namespace qw
