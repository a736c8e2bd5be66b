// A GGUF plan written in as many runs as it takes: tensors that an interrupted run has encoded are
// not encoded again.
//
// Level 6 (quantize). The files lie in OUTPUT.work (work_directory.h) until they are whole, so that
// nothing is written twice; there too it is noted, every ten seconds or so, how many tensors are on
// the disk.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "quantize/gguf_plan.h"

namespace qw::quantize {

struct GgufWriteRequest {
  std::string output;
  GgufSplitLimits split;
  const CancelFlag* cancel = nullptr;
  std::chrono::milliseconds pace = GgufStage().pace;
  /// Bytes of tensors that an interrupted run has written; bytes that are written.
  std::function<void(int64_t)> on_resumed, on_written;
};

/// write_gguf_plan() of a plan of `checkpoint`, resumable: an interruption leaves OUTPUT.work, once
/// there is something to keep, and the same plan and request go on, to the same bytes. Errors:
/// those of write_gguf_plan and WorkDirectory.
void write_gguf_resumably(const Checkpoint& checkpoint, const GgufPlan& plan, ThreadPool& pool,
                          const GgufWriteRequest& request);

}  // namespace qw::quantize
