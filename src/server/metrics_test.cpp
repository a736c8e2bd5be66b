// What /metrics says of adapters, over HTTP.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "support/adapter_writer.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using ::testing::HasSubstr;

// How many requests each adapter has, and which of them have any, as routers before vLLM ask.
TEST(AdapterMetrics, TellWhoRunsAndWhoWaits) {
  test::Adapter adapter;
  adapter.add("model.layers.0.self_attn.q_proj.lora_A.weight", {3, 256});
  adapter.add("model.layers.0.self_attn.q_proj.lora_B.weight", {256, 3});
  const std::string path = adapter.write_peft();
  ServiceOptions options = qw::testing::service_options();
  options.models[0].lora_modules = {{"plain", path}, {"other", path}};
  options.models[0].open.engine.n_slots = 1;
  const RunningService running(options);
  const auto lines = [&](bool runs, bool waits) {
    const auto info = [](const std::string& now, const std::string& then) {
      return fmt::format(
          "vllm:lora_requests_info{{max_lora=\"1\",model_name=\"mini\","
          "running_lora_adapters=\"{}\","
          "waiting_lora_adapters=\"{}\"}} ",
          now, then);
    };
    return std::vector<std::string>{
        fmt::format("qianwen_adapter_requests_running{{model_name=\"plain\"}} {:d}\n", runs),
        fmt::format("qianwen_adapter_requests_waiting{{model_name=\"plain\"}} 0\n"),
        fmt::format("qianwen_adapter_requests_running{{model_name=\"other\"}} 0\n"),
        fmt::format("qianwen_adapter_requests_waiting{{model_name=\"other\"}} {:d}\n", waits),
        info(runs ? "plain" : "", waits ? "other" : "")};
  };
  const auto expect_soon = [&](const std::vector<std::string>& wanted) {
    std::string text;
    const auto has = [&](const std::string& line) { return text.find(line) != std::string::npos; };
    for (int i = 0; i < 200; ++i) {
      text = running.client().get("/metrics").body;
      if (std::ranges::all_of(wanted, has)) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    for (const std::string& line : wanted)
      EXPECT_THAT(text, HasSubstr(line));
    const std::string family = "\nvllm:lora_requests_info{";
    EXPECT_EQ(text.find(family), text.rfind(family)) << "one series of a model";
  };
  const auto begin = [](HttpClient& client, const std::string& model) {
    const ordered_json body = {{"model", model},
                               {"prompt", "One"},
                               {"max_tokens", 2000},
                               {"ignore_eos", true},
                               {"stream", true}};
    client.send(HttpClient::post_text("/v1/completions", body.dump()));
  };
  expect_soon(lines(false, false));
  {
    HttpClient first = running.client(), second = running.client();
    begin(first, "plain");
    first.read_until("data: ");
    expect_soon(lines(true, false));
    begin(second, "other");
    expect_soon(lines(true, true));
  }
  expect_soon(lines(false, false));
}

// What was true of adapters that are gone is not told for ever.
TEST(AdapterMetrics, EndWithTheLastAdapter) {
  test::Adapter adapter;
  adapter.add("model.layers.0.self_attn.q_proj.lora_A.weight", {3, 256});
  adapter.add("model.layers.0.self_attn.q_proj.lora_B.weight", {256, 3});
  ServiceOptions options = qw::testing::service_options();
  options.models[0].lora_modules = {{"plain", adapter.write_peft()}};
  options.lora_dir = ::testing::TempDir();
  const RunningService running(options);
  EXPECT_THAT(running.client().get("/metrics").body, HasSubstr("\nvllm:lora_requests_info{"));
  EXPECT_EQ(running.client().post("/v1/unload_lora_adapter", R"({"lora_name": "plain"})").status,
            200);
  EXPECT_THAT(running.client().get("/metrics").body,
              ::testing::Not(HasSubstr("\nvllm:lora_requests_info{")));
}

// Nobody holds any of a cache that is not there.
TEST(CacheMetrics, AreNothingWhereTheModelIsNotLoaded) {
  const RunningService running(qw::testing::service_options());
  running.post("/v1/completions", {{"prompt", "One"}, {"max_tokens", 1}});
  running.post("/api/generate", {{"model", "mini"}, {"keep_alive", 0}});
  for (int i = 0; i < 200 && running.get("/ready")["loaded"] == true; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(running.get("/ready")["loaded"], false);
  EXPECT_THAT(running.client().get("/metrics").body,
              HasSubstr("\nvllm:kv_cache_usage_perc{model_name=\"mini\"} 0\n"));
}

TEST(GrammarMetrics, TellWhatIsKept) {
  const RunningService running;
  const auto metric = [&](const std::string& name) {
    const std::string text = running.client().get("/metrics").body;
    const std::string series = "\n" + name + "{model_name=\"mini\"} ";
    const size_t at = text.find(series);
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size()));
  };
  EXPECT_EQ(metric("qianwen_grammars"), 0);
  EXPECT_EQ(metric("qianwen_grammar_bytes"), 0);
  double bytes = 0;
  for (const int n : {1, 2, 2}) {  // the last one is known
    running.post(
        "/v1/completions",
        {{"prompt", "One"}, {"max_tokens", 2}, {"guided_regex", fmt::format("[0-9]{{{}}}", n)}});
    EXPECT_EQ(metric("qianwen_grammars"), n);
    EXPECT_GT(metric("qianwen_grammar_bytes"), bytes);
    if (n == 1) bytes = metric("qianwen_grammar_bytes");
  }
}

}  // namespace
}  // namespace qw::server
