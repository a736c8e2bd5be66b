// GGUF files that are written in several runs have the bytes of one, and nothing is encoded twice.
#include "quantize/gguf_resume.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "quantize/checkpoint_test_support.h"

namespace qw::quantize {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

struct Bench : test::Bench {
  Bench() : test::Bench(test::kDense) { open(); }

  GgufPlan plan(const char* type) const {
    GgufChoices choices;
    choices.recipe = find_gguf_recipe(type);
    return plan_gguf(*checkpoint, config, sources, nullptr, choices);
  }
  GgufWriteRequest request(const std::string& name) const {
    GgufWriteRequest out;
    out.output = folder / name;
    out.pace = 0ms;
    return out;
  }
  void write(const GgufPlan& plan, const GgufWriteRequest& request) {
    write_gguf_resumably(*checkpoint, plan, pool, request);
  }
  /// Ends when more than `n_bytes` of tensors are written.
  void interrupt(const GgufPlan& plan, GgufWriteRequest request, int64_t n_bytes) {
    CancelFlag cancel;
    request.cancel = &cancel;
    int64_t n = 0;
    request.on_written = [&](int64_t bytes) {
      n += bytes;
      if (n > n_bytes) cancel.cancel();
    };
    const char* told = request.pace == 0ms ? "[quantize] run: expected to reach its end, got "
                                             "interrupted; the same command goes on ("
                                           : "[cancel] writing";
    expect_error(ErrorKind::kCancelled, {told}, [&] { write(plan, request); });
    EXPECT_FALSE(fs::exists(request.output));
  }
  /// Bytes that were there, and those that were not.
  std::pair<int64_t, int64_t> go_on(const GgufPlan& plan, GgufWriteRequest request) {
    std::pair<int64_t, int64_t> out;
    request.on_resumed = [&](int64_t bytes) { out.first += bytes; };
    request.on_written = [&](int64_t bytes) { out.second += bytes; };
    write(plan, request);
    EXPECT_FALSE(fs::exists(request.output + ".work"));
    return out;
  }
};

TEST(GgufResume, GoesOnBehindTheLastTensor) {
  Bench bench;
  const GgufPlan plan = bench.plan("q4_0");
  const GgufWriteRequest straight = bench.request("straight.gguf"), cut = bench.request("cut.gguf");
  EXPECT_EQ(bench.go_on(plan, straight), std::pair(int64_t{0}, plan.bytes()));
  for (const int64_t limit : {plan.bytes() / 8, plan.bytes() / 2, plan.bytes() - 1}) {
    SCOPED_TRACE(limit);
    fs::remove(cut.output);
    bench.interrupt(plan, cut, limit);
    // What a crash leaves of a tensor on its way.
    std::ofstream(cut.output + ".work/cut.gguf", std::ios::app) << "half a tensor";
    const auto [n_kept, n_new] = bench.go_on(plan, cut);
    EXPECT_GT(n_kept, 0);
    EXPECT_EQ(n_kept + n_new, plan.bytes());
    EXPECT_EQ(read_text_file(cut.output), read_text_file(straight.output));
  }
}

TEST(GgufResume, OfSeveralFiles) {
  Bench bench;
  const GgufPlan plan = bench.plan("q8_0");
  GgufWriteRequest straight = bench.request("s.gguf"), cut = bench.request("c.gguf");
  straight.split.max_tensors = cut.split.max_tensors = 5;
  bench.write(plan, straight);
  bench.interrupt(plan, cut, plan.bytes() / 2);
  GgufWriteRequest other = cut;
  other.split.max_tensors = 4;
  expect_error(ErrorKind::kInvalidArgument, {"another's"}, [&] { bench.write(plan, other); });
  const auto [n_kept, n_new] = bench.go_on(plan, cut);
  EXPECT_GT(n_kept, 0);
  EXPECT_EQ(n_kept + n_new, plan.bytes());
  const size_t n_files = split_gguf(plan.content().tensors, cut.split).size();
  ASSERT_GT(n_files, 3u);
  for (size_t i = 0; i < n_files; ++i) {
    EXPECT_EQ(read_text_file(gguf_split_paths(cut.output, n_files)[i]),
              read_text_file(gguf_split_paths(straight.output, n_files)[i]))
        << i;
  }
}

TEST(GgufResume, AnotherPlanDoesNotGoOn) {
  Bench bench;
  const GgufPlan plan = bench.plan("q4_0");
  const GgufWriteRequest request = bench.request("cut.gguf");
  bench.interrupt(plan, request, plan.bytes() / 2);
  expect_error(ErrorKind::kInvalidArgument, {"another's", "cut.gguf.work"},
               [&] { bench.write(bench.plan("q4_1"), request); });
  GgufPlan named = plan, weighed = plan;
  named.entries.emplace_back("general.author", GgufValue::string("somebody"));
  for (GgufTensor& tensor : weighed.tensors) {
    for (const LinearSource& part : tensor.parts)
      tensor.importance.emplace_back(static_cast<size_t>(part.k), 1.0f);
  }
  for (const GgufPlan& other : {named, weighed})
    expect_error(ErrorKind::kInvalidArgument, {"another's"}, [&] { bench.write(other, request); });
  EXPECT_GT(bench.go_on(plan, request).first, 0);
}

TEST(GgufResume, WhatIsSoonDoneAgainIsNotKept) {
  Bench bench;
  const GgufPlan plan = bench.plan("q4_0");
  GgufWriteRequest request = bench.request("cut.gguf");
  request.pace = 1h;
  bench.interrupt(plan, request, plan.bytes() / 2);
  EXPECT_FALSE(fs::exists(request.output + ".work"));
  EXPECT_EQ(bench.go_on(bench.plan("q4_1"), request).first, 0);
}

TEST(GgufResume, FollowsALinkToWhereTheFileWillBe) {
  Bench bench;
  const GgufPlan plan = bench.plan("q4_0");
  const GgufWriteRequest request = bench.request("link.gguf");
  fs::create_directory(bench.folder / "disk");
  std::ofstream(bench.folder / "disk/m.gguf") << "old";
  fs::create_symlink("disk/m.gguf", request.output);
  CancelFlag cancel;
  GgufWriteRequest cut = request;
  cut.cancel = &cancel;
  cut.on_written = [&](int64_t) {
    if (fs::exists(bench.folder / "disk/m.gguf.work/finished")) cancel.cancel();
  };
  expect_error(ErrorKind::kCancelled, {}, [&] { bench.write(plan, cut); });
  EXPECT_EQ(read_text_file(bench.folder / "disk/m.gguf"), "old");
  EXPECT_GT(bench.go_on(plan, request).first, 0);
  EXPECT_GT(fs::file_size(bench.folder / "disk/m.gguf"), 1000u);
}

}  // namespace
}  // namespace qw::quantize
