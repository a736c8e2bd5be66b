// The prefix cache on disk with real weights: a process that starts again answers bit for bit as if
// it had computed everything, whatever the cache's type, the adapter and the device.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/rng.h"
#include "engine/bundle.h"
#include "engine/prefix_store.h"
#include "support/golden.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

class PrefixCache : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(directory_); }
  void TearDown() override { fs::remove_all(directory_); }

  OpenOptions options() const {
    OpenOptions options;
    options.backend.n_threads = 2;
    options.quiet = true;
    options.on_warning = [](const std::string&) {};
    options.engine.ctx = 512;
    options.engine.check_integrity = true;
    options.prefix_cache_dir = directory_;
    return options;
  }
  static Request request(int64_t n_prompt, int64_t vocab) {
    Request request;
    for (int64_t i = 0; i < n_prompt; ++i)
      request.prompt.push_back(static_cast<int32_t>(random_bits(1, 3, static_cast<uint64_t>(i)) %
                                                    static_cast<uint64_t>(vocab - 3)));
    request.config.max_new_tokens = 12;
    request.config.logprobs = 3;
    return request;
  }
  /// What a process answers that begins and ends with it.
  static RequestResult run(const std::string& path, const OpenOptions& options,
                           int64_t n_prompt = 300) {
    const auto loaded = open_model(path, options);
    Request one = request(n_prompt, loaded->config().vocab);
    one.adapter = loaded->adapter;
    return loaded->make_engine()->generate(one);
  }
  static void expect_same_bits(const RequestResult& a, const RequestResult& b) {
    const Completion &x = a.completions[0], &y = b.completions[0];
    EXPECT_EQ(x.ids, y.ids);
    ASSERT_EQ(x.logprobs.size(), y.logprobs.size());
    for (size_t t = 0; t < x.logprobs.size(); ++t) {
      for (size_t k = 0; k < x.logprobs[t].top.size(); ++k) {
        EXPECT_EQ(std::memcmp(&x.logprobs[t].top[k].logprob, &y.logprobs[t].top[k].logprob,
                              sizeof(float)),
                  0);
      }
    }
  }

  const std::string directory_ = testing::TempDir() + "prefix_cache_" +
                                 testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string mini_ = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
};

TEST_F(PrefixCache, EveryCacheTypeAndDeviceComesBackBitForBit) {
  for (const auto& [device, type] : {std::pair("cpu", "f16"),
                                     {"cpu", "q8_0"},
                                     {"cpu", "q4_0"},
                                     {"cpu", "bf16"},
                                     {"cpu", "f32"},
                                     {"reference", "f32"},
                                     {"reference", "q8_0"}}) {
    OpenOptions set = options(), plain = options();
    set.device = plain.device = device;
    set.engine.kv_type = plain.engine.kv_type = type;
    plain.prefix_cache_dir.clear();
    const int64_t n = device == std::string("cpu") ? 300 : 50;
    const RequestResult computed = run(mini_, plain, n);
    const RequestResult first = run(mini_, set, n);
    EXPECT_EQ(first.timings.n_cached, 0) << type << ": of no other type or device";
    const RequestResult second = run(mini_, set, n);
    EXPECT_EQ(second.timings.n_cached, n == 300 ? 256 : 48) << device << " " << type;
    expect_same_bits(computed, first);
    expect_same_bits(computed, second);
  }
}

TEST_F(PrefixCache, OtherArithmeticIsNotFound) {
  OpenOptions set = options();
  run(mini_, set);
  set.backend.n_threads = 1;
  EXPECT_EQ(run(mini_, set).timings.n_cached, 256) << "threads change no bit";
  set.backend.isa = "generic";
  EXPECT_EQ(run(mini_, set).timings.n_cached, 0);
  set.backend.isa.clear();
  set.backend.activations = ActivationMode::kF32;
  EXPECT_EQ(run(mini_, set).timings.n_cached, 0);
}

TEST_F(PrefixCache, OtherWeightsAreNotFoundAndTheSameElsewhereAre) {
  const std::string copy = directory_ + "_model";
  fs::remove_all(copy);
  fs::copy(mini_, copy, fs::copy_options::recursive);
  const RequestResult first = run(mini_, options());
  const RequestResult same = run(copy, options());
  EXPECT_EQ(same.timings.n_cached, 256) << "by content, not by path";
  expect_same_bits(first, same);
  // One configured number.
  const std::string config = copy + "/config.json";
  std::string text = read_text_file(config);
  const size_t at = text.find("\"rope_theta\":");
  ASSERT_NE(at, std::string::npos);
  text.insert(text.find_first_of("0123456789", at), "1");
  fs::permissions(config, fs::perms::owner_all);
  std::FILE* file = std::fopen(config.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  std::fwrite(text.data(), 1, text.size(), file);
  std::fclose(file);
  EXPECT_EQ(run(copy, options()).timings.n_cached, 0);
  fs::remove_all(copy);
}

TEST_F(PrefixCache, AdaptersAreKeptApart) {
  const auto found = test::find_golden("models/lora");
  if (!found) GTEST_SKIP() << "no adapters here";
  std::string adapter, base;
  for (const auto& entry : fs::directory_iterator(*found)) {
    if (!fs::exists(entry.path() / "expected.json") ||
        !fs::exists(entry.path() / "adapter_config.json"))
      continue;
    const auto expected = test::read_json(entry.path() / "expected.json");
    const std::string name = fs::path(expected["base"].get<std::string>()).filename();
    if (const auto path = test::find_golden("models/" + name)) {
      adapter = entry.path();
      base = *path;
      break;
    }
  }
  if (adapter.empty()) GTEST_SKIP() << "no adapter whose base is here";
  OpenOptions plain = options(), adapted = options(), weaker = options();
  for (OpenOptions* set : {&plain, &adapted, &weaker})
    set->engine.ctx = 160;
  adapted.adapters = {{adapter, 1.0}};
  weaker.adapters = {{adapter, 0.5}};
  std::vector<RequestResult> first;
  for (const OpenOptions* set : {&plain, &adapted, &weaker}) {
    first.push_back(run(base, *set, 100));
    EXPECT_EQ(first.back().timings.n_cached, 0);
  }
  size_t i = 0;
  for (const OpenOptions* set : {&plain, &adapted, &weaker}) {
    const RequestResult again = run(base, *set, 100);
    EXPECT_EQ(again.timings.n_cached, 64);
    expect_same_bits(first[i++], again);
  }
}

}  // namespace
}  // namespace qw
