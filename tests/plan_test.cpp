// The memory plan against the peak that the program really reaches.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/test_support.h"
#include "support/process.h"

namespace qw::test {

namespace {

using nlohmann::json;

json plan_of(const std::string& model, std::vector<std::string> args) {
  args.insert(args.begin(), {"plan", model, "--json", "--threads", "2"});
  const Ran ran = run_program(QIANWEN_PROGRAM, args);
  EXPECT_EQ(ran.code, 0) << ran.err;
  return json::parse(ran.out);
}

/// Not below the peak, and what cannot be given back is not above it by more than a tenth and 8
/// MiB.
void expect_close(const json& plan) {
  const int64_t total = plan["total_bytes"];
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // shadow memory is no plan's
  const int64_t peak = plan["measured_peak_bytes"];
  EXPECT_GE(total, peak) << plan;
  EXPECT_LE(plan["needed_bytes"].get<int64_t>(), peak + peak / 10 + (int64_t{8} << 20)) << plan;
#endif
  int64_t sum = 0;
  for (const char* kind : {"weights_bytes", "kv_bytes", "activations_bytes", "logits_bytes",
                           "working_bytes", "program_bytes", "file_pages_bytes"}) {
    EXPECT_GE(plan[kind].get<int64_t>(), 0) << kind;
    sum += plan[kind].get<int64_t>();
  }
  EXPECT_EQ(sum, total);
}

TEST(Plan, OfTheBundledModelIsItsPeak) {
  const std::string model = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  expect_close(plan_of(model, {"--measure", "--ctx", "2048"}));
  expect_close(plan_of(model, {"--measure", "--ctx", "512", "--kv-type", "f32"}));
}

// Four layers of the 0.5B: its embedding, its widths, a fraction of its time.
TEST(Plan, OfAMadeModelIsItsPeak) {
  const TempDir directory;
  for (const char* format : {"q4_k_m", "gptq-int4"}) {
    const bool is_file = std::string_view(format).starts_with("q4");
    const std::string path = directory / (is_file ? "model.gguf" : "model");
    const Ran made =
        run_program(QIANWEN_MAKE_MODEL, {"--size", "0.5B", "--layers", "4", "--vocab", "32000",
                                         "--format", format, "--output", path});
    ASSERT_EQ(made.code, 0) << made.err;
    expect_close(plan_of(path, {"--measure", "--ctx", "1024"}));
  }
}

}  // namespace

}  // namespace qw::test
