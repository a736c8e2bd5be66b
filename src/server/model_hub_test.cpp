// Memory of several models: what is promised to one is not given to another; and adapters.
#include "server/model_hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <future>
#include <thread>

#include "model/memory_plan.h"
#include "server/request_error.h"
#include "support/adapter_folder.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

namespace fs = std::filesystem;

using qw::test::folder;
using qw::test::kMiniHidden;
using qw::test::kMiniVocab;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

/// Three models with caches of 800 MB, of which nothing is touched, where 1,200 MB may be used.
ServiceOptions three_models() {
  ServiceOptions options = service_options();
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
  EXPECT_THAT(answer.dump(), HasSubstr("2048 tokens x 64 slots: expected to need"));
  // Nobody asked for its context: it is what fits.
  ASSERT_EQ(status_of(running, "free"), 200);
  EXPECT_LT(hub.find("free").loaded->context(), 1500);
  EXPECT_GT(hub.find("free").loaded->context(), 100);
}

// ---- adapters -----------------------------------------------------------------------------------

class AdapterHub : public ::testing::Test {
 protected:
  AdapterHub() {
    ModelSpec spec = service_options().models[0];
    spec.lora_modules = {{"plain", folder() / "plain"}};
    hub_ = std::make_unique<ModelHub>(std::vector<ModelSpec>{spec},
                                      [](const std::function<void()>& task) { task(); });
  }

  std::shared_ptr<ServedModel> get(const ModelChoice& choice) {
    std::promise<std::shared_ptr<ServedModel>> got;
    hub_->with_model(
        choice, [&](std::shared_ptr<ServedModel> model) { got.set_value(std::move(model)); },
        [&](const Error& error) { got.set_exception(std::make_exception_ptr(Error(error))); });
    return got.get_future().get();
  }
  std::shared_ptr<ServedModel> get(const std::string& name) {
    return get(ModelChoice{name, std::nullopt});
  }
  void load(const std::string& name, const std::string& path) {
    std::promise<void> got;
    hub_->load_adapter(
        "", {name, path}, [&] { got.set_value(); },
        [&](const Error& error) { got.set_exception(std::make_exception_ptr(Error(error))); });
    got.get_future().get();
  }
  /// What is in the model, asked between two steps.
  struct InModel {
    int64_t n = 0, bytes = 0;
  };
  static InModel in_model(const ServedModel& model) {
    std::promise<InModel> got;
    model.host().run([&](Engine&) {
      const Model& inner = *model.files().model;
      got.set_value({inner.n_adapters(), inner.adapter_bytes()});
    });
    return got.get_future().get();
  }

  /// Repeats `step` until it is true: whoever loaded something lets go of it a moment after it said
  /// so.
  static bool comes_true(const std::function<bool()>& step) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!step()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }

  std::unique_ptr<ModelHub> hub_;
};

TEST_F(AdapterHub, MemoryGoesWithTheLastWhoUsesAnAdapter) {
  std::shared_ptr<ServedModel> base = get("");
  EXPECT_EQ(in_model(*base).n, 0) << "loaded when it is asked for";
  load("whole", folder() / "whole");
  EXPECT_EQ(in_model(*base).n, 1);
  EXPECT_GT(in_model(*base).bytes, kMiniVocab * kMiniHidden);
  std::shared_ptr<ServedModel> user = get("whole"), other = get("whole");
  EXPECT_EQ(user->adapter(), other->adapter());
  EXPECT_EQ(user->name(), "whole");
  EXPECT_EQ(in_model(*base).n, 1) << "one for all who ask";
  hub_->unload_adapter("whole");
  EXPECT_THROW(get("whole"), RequestError);
  EXPECT_EQ(in_model(*base).n, 1);
  user.reset();
  EXPECT_EQ(in_model(*base).n, 1);
  other.reset();
  EXPECT_TRUE(comes_true([&] { return in_model(*base).n == 0; }));
  EXPECT_EQ(in_model(*base).bytes, 0);
}

TEST_F(AdapterHub, AdaptersComeBackWithTheirModel) {
  load("whole", folder() / "whole");
  const std::weak_ptr<ServedModel> before = get("");
  {
    const auto user = get("whole");
    hub_->set_keep_alive("whole", std::chrono::seconds(0));
    hub_->unload_idle();
    EXPECT_FALSE(before.expired()) << "an adapter that is used keeps its base";
  }
  EXPECT_TRUE(comes_true([&] {
    hub_->unload_idle();
    return before.expired();
  }));
  EXPECT_EQ(hub_->list().size(), 3u);
  EXPECT_FALSE(hub_->find("whole").loaded);
  const auto again = get("whole");
  EXPECT_EQ(again->name(), "whole");
  EXPECT_GE(again->adapter(), 0);
  EXPECT_EQ(in_model(*again).n, 1) << "those that nobody has asked for wait";
  EXPECT_EQ(hub_->find("whole").parent, "mini");
}

TEST_F(AdapterHub, ScalesAreSetThoughTheNameGoesMeanwhile) {
  const auto base = get("");
  load("whole", folder() / "whole");
  const auto adapters = hub_->adapters("whole");
  ASSERT_EQ(adapters.size(), 2u);
  std::promise<void> go, done;  // the engine is at work until `go`, so that staging takes as long
  base->host().run([wait = go.get_future().share()](Engine&) { wait.wait(); });
  hub_->set_adapter_scales(
      "whole", {{adapters[0].id, 0.5}, {adapters[1].id, 0.5}}, [&] { done.set_value(); },
      [&](const Error& error) { done.set_exception(std::make_exception_ptr(Error(error))); });
  hub_->unload_adapter("whole");
  go.set_value();
  EXPECT_NO_THROW(done.get_future().get());
  ASSERT_EQ(hub_->adapters("").size(), 1u);
  EXPECT_EQ(hub_->adapters("")[0].scale, 0.5);
}

TEST_F(AdapterHub, WhatAWaiterThrowsIsToldToIt) {
  const auto told = [&](const ModelChoice& choice) {
    std::promise<std::string> got;
    hub_->with_model(
        choice, [](const auto&) { fail(ErrorKind::kIo, "test", "this: expected"); },
        [&](const Error& error) {
          got.set_value(error.message());
          throw std::runtime_error("and this");
        });
    return got.get_future().get();
  };
  EXPECT_THAT(told({"", std::nullopt}), HasSubstr("this: expected")) << "the loader's thread";
  EXPECT_THAT(told({"plain", std::nullopt}), HasSubstr("this: expected")) << "the stager's";
  EXPECT_THAT(told({"plain", std::nullopt}), HasSubstr("this: expected")) << "at once";
  EXPECT_EQ(get("plain")->name(), "plain");
}

TEST_F(AdapterHub, FilesAreReadAnewWhenTheyAreLoaded) {
  const std::string path = folder() / "changes";
  fs::copy(folder() / "plain", path, fs::copy_options::recursive);
  const auto base = get("");
  load("first", path);
  const auto before = get("first");
  load("second", path);
  EXPECT_NE(get("second")->adapter(), before->adapter());
  EXPECT_EQ(get("first")->adapter(), get("second")->adapter()) << "one for both";
  const int32_t kept = get("first")->adapter();
  fs::remove_all(path);
  EXPECT_THROW(load("third", path), Error);
  EXPECT_EQ(get("first")->adapter(), kept) << "what is resident stays";
}

TEST_F(AdapterHub, HashesOfAdaptersEndWithTheHub) {
  const auto user = get("plain");
  const auto hashed = [&] {
    std::promise<std::optional<ErrorKind>> got;
    user->with_hashes([&](const std::vector<FileHash>&, const Error* error) {
      got.set_value(error == nullptr ? std::nullopt : std::optional(error->kind()));
    });
    return got.get_future().get();
  };
  // The base's are known, the adapter's are not.
  std::promise<void> base;
  get("")->with_hashes([&](const std::vector<FileHash>&, const Error*) { base.set_value(); });
  base.get_future().get();
  hub_.reset();
  EXPECT_EQ(hashed(), ErrorKind::kCancelled);
}

TEST_F(AdapterHub, FewCombinationsAreKeptAndNamesAlways) {
  const auto base = get("");
  get("plain");
  const int64_t id = hub_->adapters("")[0].id;
  for (int i = 0; i < 12; ++i) {
    const auto model = get(ModelChoice{"", std::vector<AdapterScale>{{id, 0.25 + i}}});
    EXPECT_EQ(model->name(), "mini");
  }
  const auto kept_in_all = 1 + static_cast<int64_t>(ModelHub::kMaxCombinations);
  EXPECT_TRUE(comes_true([&] { return in_model(*base).n == kept_in_all; }));
  const int32_t kept = get("plain")->adapter();
  EXPECT_EQ(get("plain")->adapter(), kept);
  hub_->unload_adapter("plain");
  EXPECT_TRUE(comes_true([&] { return in_model(*base).n == 0; }))
      << "what was made of it goes, too";
}

}  // namespace
}  // namespace qw::server
