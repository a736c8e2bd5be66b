// Memory of several models: what is promised to one is not given to another.
#include "server/model_hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/memory_plan.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::RunningService;

/// Three models with caches of 800 MB, of which nothing is touched, where 1,200 MB may be used.
ServiceOptions three_models() {
  ServiceOptions options = qw::testing::service_options();
  ModelSpec first = options.models[0];
  first.open.engine.ctx = 2048;
  first.open.engine.n_slots = 64;
  first.open.memory_bytes = program_memory_bytes() + (int64_t{1200} << 20);
  options.models.clear();
  for (const char* name : {"mini", "second", "free"}) {
    first.name = name;
    options.models.push_back(first);
  }
  options.models.back().open.engine.ctx = 0;
  return options;
}

int status_of(const RunningService& running, const char* model) {
  int status = 0;
  running.post("/v1/completions", {{"model", model}, {"prompt", "Hi"}, {"max_tokens", 1}}, &status);
  return status;
}

TEST(ModelHub, ModelsThatNobodyUsesMakeRoomForWhatIsPromised) {
  const RunningService running(three_models());
  ModelHub& hub = *running.service.services().hub;
  ASSERT_EQ(status_of(running, "mini"), 200);
  EXPECT_GT(hub.find("mini").loaded->promised_bytes(), int64_t{700} << 20);
  ASSERT_EQ(status_of(running, "second"), 200);
  EXPECT_EQ(hub.find("mini").loaded, nullptr);
  // A context that was not asked for is as long as if it were alone.
  ASSERT_EQ(status_of(running, "free"), 200);
  EXPECT_EQ(hub.find("second").loaded, nullptr);
  EXPECT_EQ(hub.find("free").loaded->context(), 2048);
}

TEST(ModelHub, WhatIsPromisedToAModelInUseIsNotGiven) {
  const RunningService running(three_models());
  ModelHub& hub = *running.service.services().hub;
  ASSERT_EQ(status_of(running, "mini"), 200);
  const auto held = hub.find("mini").loaded;
  int status = 0;
  const auto answer = running.post(
      "/v1/completions", {{"model", "second"}, {"prompt", "Hi"}, {"max_tokens", 1}}, &status);
  EXPECT_EQ(status, 503);
  EXPECT_THAT(answer.dump(), ::testing::HasSubstr("2048 tokens x 64 slots: expected to need"));
  // Nobody asked for its context: it is what fits.
  ASSERT_EQ(status_of(running, "free"), 200);
  EXPECT_LT(hub.find("free").loaded->context(), 1500);
  EXPECT_GT(hub.find("free").loaded->context(), 100);
}

}  // namespace
}  // namespace qw::server
