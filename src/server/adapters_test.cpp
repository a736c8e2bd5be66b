// Adapters over HTTP: as models of their own, loaded and unloaded while others are served, by
// number and scale (llama.cpp's server), by path (SGLang). What the hub does with them is in
// model_hub_test.cpp.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <sstream>
#include <thread>

#include "support/adapter_folder.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using qw::test::folder;
using qw::testing::HttpAnswer;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;

class Adapters : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ServiceOptions options = service_options();
    options.lora_dir = folder().path();
    fs::remove_all(slots());
    options.models[0].open.slot_save_path = slots();
    options.models[0].lora_modules = {{"plain", folder() / "plain"}};
    running_ = new RunningService(options);
  }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
    fs::remove_all(slots());
  }
  static std::string slots() {
    return fmt::format("{}adapters_slots_{}", ::testing::TempDir(), ::getpid());
  }
  void TearDown() override {
    running_->client().post("/lora-adapters", "[]");
    for (const char* name : {"whole", "again"})
      running_->client().post("/v1/unload_lora_adapter", ordered_json{{"lora_name", name}}.dump());
  }

  static HttpAnswer load(const std::string& name, const std::string& path,
                         const std::string& base = "") {
    ordered_json body = {{"lora_name", name}, {"lora_path", path}};
    if (!base.empty()) body["model"] = base;
    return running_->client().post("/v1/load_lora_adapter", body.dump());
  }
  static HttpAnswer unload(const std::string& name) {
    return running_->client().post("/v1/unload_lora_adapter",
                                   ordered_json{{"lora_name", name}}.dump());
  }
  /// Ids and log-probabilities of an answer: the bits that must not change.
  static std::string bits(ordered_json body, int64_t max_tokens = 12) {
    body["prompt"] = "The capital of Japan is";
    body["n_predict"] = max_tokens;
    body["n_probs"] = 2;
    body["seed"] = 5;
    body["temperature"] = 0.9;
    body["ignore_eos"] = true;
    const HttpAnswer answer = running_->client().post("/completion", body.dump());
    const ordered_json json = ordered_json::parse(answer.body);
    return json.value("completion_probabilities", json).dump();
  }
  static std::vector<std::string> names() {
    std::vector<std::string> out;
    const ordered_json models = running_->get("/v1/models");
    for (const ordered_json& model : models["data"])
      out.push_back(model["id"]);
    return out;
  }

  static RunningService* running_;
};
RunningService* Adapters::running_ = nullptr;

/// The lines of /metrics that are a model's, without their values.
std::vector<std::string> series_of(const RunningService& running) {
  std::istringstream text(running.client().get("/metrics").body);
  std::vector<std::string> out;
  for (std::string line; std::getline(text, line);) {
    if (line.find("model_name=") != std::string::npos)
      out.push_back(line.substr(0, line.rfind(' ')));
  }
  std::ranges::sort(out);
  return out;
}

TEST_F(Adapters, AreTheSettingsOfLlamaServersAnswers) {
  const auto lora_of = [](ordered_json body) {
    body["prompt"] = "One";
    body["n_predict"] = 1;
    return running_->post("/completion", body)["generation_settings"]["lora"];
  };
  EXPECT_EQ(lora_of({{"model", "mini"}}), ordered_json::array());
  const auto entry = [](double scale) {
    return ordered_json::array({{{"id", 0}, {"scale", scale}}});
  };
  EXPECT_EQ(lora_of({{"model", "plain"}}), entry(1));
  EXPECT_EQ(lora_of({{"model", "mini"}, {"lora", entry(0.5)}}), entry(0.5));
}

TEST_F(Adapters, LeaveNoMetricsBehind) {
  for (const char* name : {"mini", "plain"})
    bits({{"model", name}}, 1);
  const std::vector<std::string> before = series_of(*running_);
  EXPECT_THAT(before, ::testing::Contains(HasSubstr("model_name=\"plain\"")));
  for (int round = 0; round < 3; ++round) {
    const std::string name = fmt::format("round{}", round % 2);
    ASSERT_EQ(load(name, "plain").status, 200);
    bits({{"model", name}}, 1);
    EXPECT_THAT(series_of(*running_), ::testing::Contains(HasSubstr(name)));
    ASSERT_EQ(unload(name).status, 200);
    // The job of an answer goes a moment after it.
    for (int i = 0; i < 200 && series_of(*running_) != before; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(series_of(*running_), before) << round;
  }
}

// A request under way counts until its end, and what comes under the same name meanwhile with it.
TEST_F(Adapters, MetricsOutliveAnAdapterThatIsStillUsed) {
  ASSERT_EQ(load("again", "plain").status, 200);
  qw::testing::HttpClient client = running_->client();
  client.send(
      qw::testing::HttpClient::post_text("/v1/completions", ordered_json{{"model", "again"},
                                                                         {"prompt", "One"},
                                                                         {"max_tokens", 2000},
                                                                         {"ignore_eos", true},
                                                                         {"stream", true}}
                                                                .dump()));
  client.read_until("data: ");
  ASSERT_EQ(unload("again").status, 200);
  EXPECT_THAT(series_of(*running_), ::testing::Contains(HasSubstr("again")));
  ASSERT_EQ(load("again", "plain").status, 200);
  bits({{"model", "again"}}, 1);
  client.close();
  ASSERT_EQ(unload("again").status, 200);
  const auto is_there = [&] {
    const std::vector<std::string> series = series_of(*running_);
    return std::ranges::any_of(
        series, [](const std::string& line) { return line.find("again") != std::string::npos; });
  };
  for (int i = 0; i < 200 && is_there(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(is_there());
}

TEST_F(Adapters, AreModelsOfTheirOwnAndKeepTheirBitsInOneBatch) {
  EXPECT_EQ(load("whole", "whole").body, "Success: LoRA adapter 'whole' added successfully.");
  EXPECT_EQ(names(), (std::vector<std::string>{"mini", "plain", "whole"}));
  const ordered_json whole = running_->get("/v1/models/whole");
  EXPECT_EQ(whole["parent"], "mini");
  EXPECT_EQ(whole["root"], fs::canonical(folder() / "whole").string());
  EXPECT_TRUE(running_->get("/v1/models/mini")["parent"].is_null());

  std::map<std::string, std::string> alone;
  for (const char* name : {"mini", "plain", "whole"})
    alone[name] = bits({{"model", name}});
  EXPECT_NE(alone["mini"], alone["plain"]);
  EXPECT_NE(alone["mini"], alone["whole"]);
  std::vector<std::pair<std::string, std::future<std::string>>> together;
  for (int i = 0; i < 3; ++i) {
    for (const char* name : {"whole", "mini", "plain"})
      together.emplace_back(name, std::async(std::launch::async, [name] {
                              return bits({{"model", name}});
                            }));
  }
  for (auto& [name, got] : together)
    EXPECT_EQ(got.get(), alone[name]) << name;
  const ordered_json chat = running_->post(
      "/v1/chat/completions", {{"model", "plain"},
                               {"max_tokens", 3},
                               {"messages", {{{"role", "user"}, {"content", "Hello"}}}}});
  EXPECT_EQ(chat["model"], "plain");
}

TEST_F(Adapters, ComeAndGoWhileOthersAreServed) {
  const std::string want = bits({{"model", "mini"}}, 200);
  std::atomic<bool> over{false};
  std::vector<std::future<std::string>> streams;
  for (const char* name : {"mini", "plain", "mini"})
    streams.push_back(std::async(std::launch::async, [name] {
      return bits({{"model", name}}, 200);
    }));
  std::thread waits([&] {
    for (auto& stream : streams)
      stream.wait();
    over = true;
  });
  int n_loaded = 0;
  while (!over || n_loaded == 0) {
    const HttpAnswer answer = load("whole", "whole");
    ASSERT_EQ(answer.status, 200) << answer.body;
    if (!over) ++n_loaded;
    EXPECT_EQ(unload("whole").status, 200);
    if (over) break;
  }
  waits.join();
  EXPECT_GT(n_loaded, 0) << "answers ended before an adapter was loaded";
  EXPECT_EQ(streams[0].get(), want);
  EXPECT_EQ(streams[2].get(), want);
  EXPECT_EQ(streams[1].get(), bits({{"model", "plain"}}, 200));
}

TEST_F(Adapters, AreUnknownOnceUnloadedButStayForWhoUsesThem) {
  ASSERT_EQ(load("whole", "whole").status, 200);
  const ordered_json body = {{"model", "whole"},        {"prompt", "One two"}, {"max_tokens", 300},
                             {"ignore_eos", true},      {"seed", 3},           {"stream", true},
                             {"return_token_ids", true}};
  const auto text_of = [](const std::string& events) {
    std::string text;
    for (size_t at = 0; (at = events.find("data: {", at)) != std::string::npos; ++at) {
      const size_t end = events.find("\n\n", at);
      const auto event = ordered_json::parse(events.substr(at + 6, end - at - 6));
      if (!event["choices"].empty()) text += event["choices"][0]["text"].get<std::string>();
    }
    return text;
  };
  const std::string want = text_of(running_->client().post("/v1/completions", body.dump()).body);
  auto client = running_->client();
  client.send(qw::testing::HttpClient::post_text("/v1/completions", body.dump()));
  client.read_until("data: ");  // it is under way
  EXPECT_EQ(unload("whole").body, "Success: LoRA adapter 'whole' removed successfully.");
  const HttpAnswer gone = running_->client().post(
      "/v1/completions", ordered_json{{"model", "whole"}, {"prompt", "One"}}.dump());
  EXPECT_EQ(gone.status, 404);
  EXPECT_THAT(gone.body, HasSubstr("expected one of mini, plain, got 'whole'"));
  EXPECT_THAT(client.read_until("[DONE]"), HasSubstr("[DONE]"));
  EXPECT_EQ(load("whole", "whole").status, 200) << "the name is free again";
  EXPECT_EQ(text_of(running_->client().post("/v1/completions", body.dump()).body), want);
}

TEST_F(Adapters, WhatCannotBeLoadedIsRefusedAndLeavesNoTrace) {
  const auto refused = [&](const std::string& name, const std::string& path, int status,
                           const std::string& part) {
    const HttpAnswer answer = load(name, path);
    EXPECT_EQ(answer.status, status) << path << ": " << answer.body;
    EXPECT_THAT(answer.body, HasSubstr(part)) << path;
  };
  refused("plain", "plain", 400, "already been loaded");
  refused("mini", "plain", 400, "already been loaded");
  refused("whole", "nothing", 404, "got no file or directory at 'nothing'");
  refused("whole", "small", 400, "layers.0.self_attn.q_proj");
  refused("", "plain", 400, "lora_name");
  for (const std::string& name :
       std::vector<std::string>{"a,b", "a\nb", "\x7F", std::string(201, 'a')})
    refused(name, "plain", 400, "without commas and control characters");
  refused("whole", "", 400, "lora_path");
  for (const std::string outside :
       {"..", "../plain", "/etc/passwd", "/etc/nothing", "out/etc", "plain/../../x", ".", "out"})
    refused("whole", outside, 400, "within the server's --lora-dir");
  EXPECT_EQ(load("whole", "whole", "nobody").status, 404);
  EXPECT_EQ(unload("nobody").status, 404);
  EXPECT_EQ(unload("mini").status, 404) << "no adapter";
  EXPECT_EQ(names(), (std::vector<std::string>{"mini", "plain"}));
  EXPECT_EQ(load("whole", folder() / "whole").status, 200);
}

TEST_F(Adapters, AreLoadedOnlyWhereThatWasAllowed) {
  ServiceOptions options = service_options();
  options.web_page = false;
  const RunningService closed(options);
  for (const char* path : {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}) {
    int status = 0;
    const auto answer = closed.post(path, {{"lora_name", "a"}, {"lora_path", "plain"}}, &status);
    EXPECT_EQ(status, 403);
    EXPECT_THAT(answer.dump(), HasSubstr("--lora-dir"));
  }
}

TEST_F(Adapters, AreNotLoadedFromADirectoryThatHasGone) {
  ServiceOptions options = service_options();
  options.lora_dir = ::testing::TempDir() + "adapters_gone";
  const RunningService running(options);
  int status = 0;
  const auto answer =
      running.post("/v1/load_lora_adapter", {{"lora_name", "a"}, {"lora_path", "plain"}}, &status);
  EXPECT_EQ(status, 503);
  EXPECT_THAT(answer.dump(), HasSubstr("expected the directory of --lora-dir"));
}

TEST_F(Adapters, WhatASlotHeldOfAnUnloadedOneIsNotSaved) {
  ASSERT_EQ(load("whole", "whole").status, 200);
  bits({{"model", "whole"}, {"id_slot", 1}}, 80);
  EXPECT_EQ(unload("whole").status, 200);
  // Requests that have ended let go of it a moment later.
  HttpAnswer answer;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  do {
    answer = running_->client().post("/slots/1?action=save", R"({"filename": "a"})");
  } while (answer.status == 200 && std::chrono::steady_clock::now() < end);
  EXPECT_EQ(answer.status, 400) << answer.body;
  EXPECT_THAT(answer.body, HasSubstr("one that was unloaded"));
}

TEST_F(Adapters, HaveNumbersAndScalesForClientsOfLlamaServer) {
  const std::string base = bits({}), plain = bits({{"model", "plain"}});
  const ordered_json list = running_->get("/lora-adapters");
  ASSERT_EQ(list.size(), 1u);
  const int64_t id = list[0]["id"];
  EXPECT_EQ(list[0]["name"], "plain");
  EXPECT_EQ(list[0]["scale"], 0);
  const auto with = [&](double scale) {
    return bits({{"lora", {{{"id", id}, {"scale", scale}}}}});
  };
  EXPECT_EQ(with(1), plain);
  EXPECT_EQ(with(0), base);
  EXPECT_EQ(bits({{"lora", ordered_json::array()}}), base);
  EXPECT_EQ(bits({{"model", "plain"}, {"lora", ordered_json::array()}}), base);
  const std::string half = with(0.5);
  EXPECT_NE(half, base);
  EXPECT_NE(half, plain);
  EXPECT_EQ(with(0.5), half);
  EXPECT_THAT(bits({{"lora", {{{"id", 77}, {"scale", 1}}}}}), HasSubstr("/lora-adapters"));
  EXPECT_THAT(bits({{"lora", {{{"id", id}}, {{"id", id}}}}}), HasSubstr("every id once"));

  const auto set = [&](const std::string& body) {
    return running_->client().post("/lora-adapters", body).status;
  };
  EXPECT_EQ(set(ordered_json{{{"id", id}, {"scale", 0.5}}}.dump()), 200);
  EXPECT_EQ(running_->get("/lora-adapters")[0]["scale"], 0.5);
  EXPECT_EQ(bits({}), half);
  EXPECT_EQ(bits({{"model", "plain"}}), plain) << "a name stands for the adapter as it is";
  EXPECT_EQ(with(1), plain);
  EXPECT_EQ(set(R"([{"id": 77, "scale": 1}])"), 400);
  EXPECT_EQ(set("{}"), 400);
  EXPECT_EQ(bits({}), half);
  EXPECT_EQ(set("[]"), 200);
  EXPECT_EQ(bits({}), base);
}

// The client's fault, not the server's.
TEST_F(Adapters, ScalesThatLeaveNoFiniteNumberAreRefused) {
  const auto post = [](int64_t id, double scale, bool stream = false) {
    const ordered_json body = {{"prompt", "One"},
                               {"n_predict", 4},
                               {"ignore_eos", true},
                               {"stream", stream},
                               {"lora", {{{"id", id}, {"scale", scale}}}}};
    return running_->client().post("/completion", body.dump());
  };
  for (const double scale : {1e30, -1e30, 1000.5}) {
    const HttpAnswer answer = post(0, scale);
    EXPECT_EQ(answer.status, 400);
    EXPECT_THAT(answer.body, HasSubstr("lora.scale: expected a number from -1000 to 1000"));
  }
  EXPECT_EQ(running_->client().post("/lora-adapters", R"([{"id": 0, "scale": 1e30}])").status, 400);
  EXPECT_EQ(post(0, -1000).status, 200);
  ASSERT_EQ(load("again", folder() / "loud").status, 200);
  const int64_t id = running_->get("/lora-adapters").back()["id"];
  const HttpAnswer answer = post(id, 0.5);
  EXPECT_EQ(answer.status, 400) << answer.body;
  EXPECT_THAT(answer.body, HasSubstr("lora: expected scales with which"));
  EXPECT_THAT(post(id, 0.5, true).body, HasSubstr("lora: expected scales with which"));
}

TEST_F(Adapters, AreNamedByRequestsOfSglangsClients) {
  const auto ids = [&](const ordered_json& lora_path, int* status = nullptr) {
    ordered_json body = {{"text", "The capital of"},
                         {"sampling_params", {{"max_new_tokens", 8}, {"temperature", 0}}}};
    if (!lora_path.is_null()) body["lora_path"] = lora_path;
    return running_->post("/generate", body, status);
  };
  const ordered_json base = ids(nullptr)["output_ids"], plain = ids("plain")["output_ids"];
  EXPECT_NE(base, plain);
  EXPECT_EQ(ids(folder() / "plain")["output_ids"], plain);
  EXPECT_EQ(ids({"plain", "plain"})["output_ids"], plain);
  EXPECT_EQ(ids(ordered_json::array({nullptr}))["output_ids"], base);
  int status = 0;
  EXPECT_THAT(ids("mini", &status).dump(), HasSubstr("got 'mini'"));
  EXPECT_EQ(status, 404);
}

}  // namespace
}  // namespace qw::server
