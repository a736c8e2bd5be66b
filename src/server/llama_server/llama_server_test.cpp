// The dialect of llama.cpp's server over HTTP, with the bundled model.
#include "server/llama_server/llama_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/llama_server/common.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using nlohmann::ordered_json;
using qw::testing::RunningService;
using ::testing::HasSubstr;

class LlamaServer : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { running_ = new RunningService; }
  static void TearDownTestSuite() {
    delete running_;
    running_ = nullptr;
  }
  static ordered_json complete(ordered_json body) { return running_->post("/completion", body); }
  static std::string error_of(const ordered_json& body, int expected_status = 400,
                              const std::string& target = "/completion") {
    int status = 0;
    const ordered_json answer = running_->post(target, body, &status);
    EXPECT_EQ(status, expected_status) << answer.dump();
    EXPECT_EQ(answer.at("error").at("code"), status);
    return answer["error"]["message"].get<std::string>();
  }

  static RunningService* running_;
};
RunningService* LlamaServer::running_ = nullptr;

TEST_F(LlamaServer, CompletesWhole) {
  const ordered_json answer =
      complete({{"prompt", "The capital of"}, {"n_predict", 4}, {"temperature", 0}});
  EXPECT_EQ(answer["index"], 0);
  EXPECT_FALSE(answer["content"].get<std::string>().empty());
  EXPECT_EQ(answer["tokens"], ordered_json::array());
  EXPECT_EQ(answer["stop"], true);
  EXPECT_EQ(answer["model"], "mini");
  EXPECT_EQ(answer["prompt"], "The capital of");
  EXPECT_EQ(answer["tokens_predicted"], 4);
  EXPECT_EQ(answer["tokens_evaluated"], 3);
  EXPECT_EQ(answer["stop_type"], "limit");
  EXPECT_EQ(answer["stopping_word"], "");
  EXPECT_EQ(answer["truncated"], false);
  EXPECT_EQ(answer["generation_settings"]["n_predict"], 4);
  EXPECT_EQ(answer["generation_settings"]["n_ctx"], 2048);
  EXPECT_EQ(answer["timings"]["predicted_n"], 4);
  EXPECT_EQ(answer["timings"]["prompt_n"].get<int>() + answer["timings"]["cache_n"].get<int>(), 3);
}

TEST_F(LlamaServer, StreamsTheVeryTextThatItGivesWhole) {
  ordered_json body = {{"prompt", "One two three"}, {"n_predict", 24},
                       {"temperature", 1.0},        {"seed", 7},
                       {"return_tokens", true},     {"n_probs", 2}};
  const ordered_json whole = complete(body);
  body["stream"] = true;
  const auto events = running_->stream("/completion", body);
  std::string text;
  ordered_json ids = ordered_json::array(), probs = ordered_json::array();
  for (const ordered_json& event : events) {
    text += event["content"].get<std::string>();
    for (const ordered_json& id : event["tokens"])
      ids.push_back(id);
    for (const ordered_json& prob : event.value("completion_probabilities", ordered_json::array()))
      probs.push_back(prob);
  }
  EXPECT_EQ(text, whole["content"]);
  EXPECT_EQ(ids, whole["tokens"]);
  EXPECT_EQ(probs, whole["completion_probabilities"]);
  EXPECT_EQ(events.front()["stop"], false);
  EXPECT_EQ(events.back()["stop"], true);
  EXPECT_EQ(events.back()["tokens_predicted"], whole["tokens_predicted"]);
  const ordered_json& first = probs[0];
  EXPECT_EQ(first["id"], ids[0]);
  EXPECT_EQ(first["top_logprobs"].size(), 2u);
  EXPECT_TRUE(first["top_logprobs"][0].contains("id"));
}

TEST_F(LlamaServer, TakesPromptsInEveryForm) {
  const ordered_json options = {{"n_predict", 5}, {"temperature", 0}};
  const auto with = [&](const ordered_json& prompt) {
    ordered_json body = options;
    body["prompt"] = prompt;
    return complete(body);
  };
  const ordered_json ids = running_->post("/tokenize", {{"content", "The capital"}})["tokens"];
  ordered_json mixed = ids;
  mixed.push_back(" of");
  const ordered_json text = with("The capital of");
  const ordered_json all = with({"The capital of", mixed, {{"prompt_string", "The capital of"}}});
  ASSERT_EQ(all.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(all[i]["content"], text["content"]);
    EXPECT_EQ(all[i]["index"], i);
  }
  EXPECT_EQ(with(mixed)["content"], text["content"]);
  ordered_json two = options;
  two["prompt"] = "The capital of";
  two["n_cmpl"] = 2;
  two["temperature"] = 1;
  EXPECT_EQ(complete(two).size(), 2u);
}

TEST_F(LlamaServer, StopsAndLimits) {
  const std::string chat = running_->post(
      "/apply-template",
      {{"messages", {{{"role", "user"}, {"content", "What is the capital of Japan?"}}}}})["prompt"];
  ordered_json body = {{"prompt", chat}, {"temperature", 0}, {"n_predict", 40}};
  const ordered_json whole = complete(body);
  EXPECT_EQ(whole["content"], "The capital of Japan is Tokyo.");
  EXPECT_EQ(whole["stop_type"], "eos");
  body["stop"] = {" of Japan"};
  const ordered_json stopped = complete(body);
  EXPECT_EQ(stopped["content"], "The capital");
  EXPECT_EQ(stopped["stop_type"], "word");
  EXPECT_EQ(stopped["stopping_word"], " of Japan");
  body["n_predict"] = 0;
  const ordered_json none = complete(body);
  EXPECT_EQ(none["content"], "");
  EXPECT_EQ(none["tokens_predicted"], 0);
  body["n_predict"] = 100'000;
  EXPECT_THAT(error_of(body), HasSubstr("2048"));
}

TEST_F(LlamaServer, BiasesTokens) {
  ordered_json body = {
      {"prompt", "The capital of"}, {"n_predict", 1}, {"temperature", 0}, {"return_tokens", true}};
  const int32_t likeliest = complete(body)["tokens"][0];
  body["logit_bias"] = {{likeliest, false}};
  EXPECT_NE(complete(body)["tokens"][0], likeliest);
  body["logit_bias"] = ordered_json::array({ordered_json::array({"Hello", 100})});
  EXPECT_EQ(complete(body)["content"], "Hello");
  body["logit_bias"] = ordered_json::object({{"Hello", 100}});
  EXPECT_EQ(complete(body)["content"], "Hello");
  body["logit_bias"] = {{1, 2, 3}};
  EXPECT_THAT(error_of(body), HasSubstr("logit_bias"));
}

TEST_F(LlamaServer, HonoursTheSamplersThatItCan) {
  ordered_json body = {{"prompt", "One two"}, {"n_predict", 8}, {"seed", 3},       {"top_k", 0},
                       {"top_p", 1},          {"min_p", 0},     {"temperature", 1}};
  const ordered_json plain = complete(body);
  body["top_k"] = 1;
  body["temperature"] = 0.2;
  body["samplers"] = ordered_json::array();  // none: the model's own distribution
  EXPECT_EQ(complete(body)["content"], plain["content"]);
  body["samplers"] = {"top_k", "temperature"};  // the same as the other way round
  ordered_json greedy = body;
  greedy.erase("samplers");
  greedy["temperature"] = 0;
  EXPECT_EQ(complete(body)["content"], complete(greedy)["content"]);
  body["samplers"] = {"top_p", "temperature"};
  body["top_p"] = 0.5;
  EXPECT_THAT(error_of(body), HasSubstr("top_p before temperature"));
  body["temperature"] = 1;  // changes nothing, so its place does not matter
  EXPECT_TRUE(complete(body).contains("content"));
  body["samplers"] = "pt";
  EXPECT_TRUE(complete(body).contains("content"));
  body["samplers"] = {"luck"};
  EXPECT_THAT(error_of(body), HasSubstr("luck"));
}

TEST_F(LlamaServer, GivesTheFieldsThatAreAskedFor) {
  const ordered_json answer =
      complete({{"prompt", "One"},
                {"n_predict", 1},
                {"response_fields", {"content", "generation_settings/n_predict", "nothing"}}});
  EXPECT_EQ(answer.size(), 3u) << answer.dump();
  EXPECT_EQ(answer["n_predict"], 1);
  EXPECT_EQ(answer["warnings"].dump(),
            R"x(["response_fields: 'nothing' ignored (no answer has it)"])x");
}

// Not what the server might do, but what it did.
TEST_F(LlamaServer, SettingsAreThoseThatApplied) {
  const auto settings = [](ordered_json body) {
    body["prompt"] = "One";
    body.emplace("n_predict", 1);
    return complete(body)["generation_settings"];
  };
  const ordered_json plain = settings({{"temperature", 0.5}});
  const ordered_json all = {"penalties", "temperature", "top_k", "top_p", "min_p", "typ_p"};
  EXPECT_EQ(plain["samplers"], all);
  EXPECT_EQ(plain["grammar"], "");
  EXPECT_EQ(plain["logit_bias"], ordered_json::array());
  EXPECT_EQ(plain["lora"], ordered_json::array());
  EXPECT_EQ(plain["repeat_last_n"], -1);
  EXPECT_FALSE(plain.contains("json_schema"));
  const std::string grammar = "root ::= \"yes\" | \"no\"";
  const ordered_json some = settings({{"grammar", grammar},
                                      {"samplers", "kt"},
                                      {"temperature", 0.5},
                                      {"top_p", 0.5},
                                      {"repeat_penalty", 1.5},
                                      {"logit_bias", {{7, 1.5}}}});
  EXPECT_EQ(some["grammar"], grammar);
  EXPECT_EQ(some["samplers"], (ordered_json{"top_k", "temperature"}));
  EXPECT_EQ(some["top_p"], 1) << "a sampler that is not named";
  EXPECT_EQ(some["repeat_penalty"], 1);
  EXPECT_EQ(some["logit_bias"].dump(), R"([{"bias":1.5,"token":7}])");
  const ordered_json schema = {{"enum", {1, 2}}};
  EXPECT_EQ(settings({{"json_schema", schema}})["json_schema"], schema);
  EXPECT_EQ(settings({{"json_schema", schema.dump()}})["json_schema"], schema);
  EXPECT_EQ(settings({{"n_predict", 0}})["n_predict"], 0);
  const ordered_json off = settings({{"repeat_last_n", 0},
                                     {"repeat_penalty", 1.5},
                                     {"presence_penalty", 1},
                                     {"frequency_penalty", 1}});
  EXPECT_EQ(off["repeat_last_n"], 0);
  EXPECT_EQ(off["repeat_penalty"], 1);
  EXPECT_EQ(off["presence_penalty"], 0);
  EXPECT_EQ(off["frequency_penalty"], 0);
}

TEST(LlamaServerStrict, RefusesFieldsThatNoAnswerHas) {
  ServiceOptions options = qw::testing::service_options();
  options.strict = true;
  const RunningService running(options);
  int status = 0;
  ordered_json body = {{"prompt", "One"}, {"n_predict", 1}, {"response_fields", {"content"}}};
  for (const char* name : {"timings/predicted_n", "generation_settings/lora",
                           "completion_probabilities", "stopping_word"})
    body["response_fields"].push_back(name);
  EXPECT_EQ(running.post("/completion", body, &status).size(), 4u);  // no log-probabilities here
  EXPECT_EQ(status, 200);
  body["response_fields"].push_back("timings/nothing");
  const ordered_json error = running.post("/completion", body, &status);
  EXPECT_EQ(status, 400);
  EXPECT_THAT(error["error"]["message"].get<std::string>(), HasSubstr("'timings/nothing'"));
}

// A role that Qwen's template does not know is written as the others are.
TEST_F(LlamaServer, TemplatesGetRolesAsTheyCame) {
  const ordered_json body = {{"messages", {{{"role", "critic"}, {"content", "Too long."}}}}};
  EXPECT_THAT(running_->post("/apply-template", body)["prompt"].get<std::string>(),
              HasSubstr("<|im_start|>critic\nToo long.<|im_end|>\n"));
}

TEST_F(LlamaServer, RefusesAndWarns) {
  EXPECT_THAT(error_of({{"prompt", "x"}, {"grammar", "root ::= x"}}), HasSubstr("gbnf"));
  EXPECT_EQ(
      complete({{"prompt", "x"}, {"grammar", "root ::= \"yes\""}, {"n_predict", 9}})["content"],
      "yes");
  EXPECT_THAT(error_of({{"prompt", "x"}, {"mirostat", 2}}), HasSubstr("mirostat"));
  EXPECT_THAT(error_of({{"n_predict", 1}}), HasSubstr("prompt"));
  EXPECT_THAT(error_of({{"input_prefix", "x"}}, 400, "/infill"), HasSubstr("middle"));
  EXPECT_THAT(error_of({{"filename", "x"}}, 501, "/slots/0?action=save"),
              HasSubstr("--slot-save-path"));
  EXPECT_THAT(error_of({{"filename", "x"}}, 400, "/slots/0?action=load"), HasSubstr("restore"));
  EXPECT_THAT(error_of({{"prompt", "x"}, {"id_slot", 4}}), HasSubstr("id_slot"));
  const ordered_json quiet = complete({{"prompt", "x"},
                                       {"n_predict", 1},
                                       {"cache_prompt", true},
                                       {"id_slot", -1},
                                       {"top_n_sigma", -1},
                                       {"xtc_probability", 0.0}});
  EXPECT_FALSE(quiet.contains("warnings")) << quiet["warnings"].dump();
  const ordered_json warned =
      complete({{"prompt", "x"}, {"n_predict", 1}, {"cache_prompt", false}, {"id_slot", 1}});
  EXPECT_EQ(warned["warnings"].size(), 1u) << warned["warnings"].dump();
  EXPECT_EQ(warned["id_slot"], 1);
}

TEST_F(LlamaServer, TellsItsState) {
  const ordered_json props = running_->get("/props");
  EXPECT_EQ(props["total_slots"], 4);
  EXPECT_EQ(props["default_generation_settings"]["n_ctx"], 2048);
  EXPECT_EQ(props["default_generation_settings"]["params"]["top_k"], 20);
  EXPECT_THAT(props["chat_template"].get<std::string>(), HasSubstr("im_start"));
  const ordered_json slots = running_->get("/slots");
  ASSERT_EQ(slots.size(), 4u);
  EXPECT_EQ(slots[3]["id"], 3);
  EXPECT_EQ(running_->get("/lora-adapters"), ordered_json::array());
  const ordered_json vectors = running_->post("/embedding", {{"content", "Hello"}});
  EXPECT_EQ(vectors[0]["embedding"][0].size(), 256u);
}

// Whoever watches neither loads a model nor keeps it loaded.
TEST(LlamaServerState, OfSlotsIsToldWithoutLoading) {
  ServiceOptions options = qw::testing::service_options();
  options.models.push_back(options.models[0]);
  options.models[1].name = "second";
  options.models[1].open.engine.n_slots = 3;
  const RunningService running(options);
  const ordered_json slots = running.get("/slots?model=second");
  ASSERT_EQ(slots.size(), 3u);
  EXPECT_EQ(slots[2].dump(),
            R"({"id":2,"n_ctx":2048,"speculative":false,"is_processing":false})");
  EXPECT_EQ(running.service.services().hub->find("second").loaded, nullptr);
  running.post("/v1/completions", {{"model", "second"}, {"prompt", "a"}, {"max_tokens", 1}});
  EXPECT_NE(running.service.services().hub->find("second").loaded, nullptr);
  EXPECT_EQ(running.get("/slots?model=second"), slots);
  EXPECT_EQ(running.client().get("/slots?model=third").status, 404);
}

TEST(LlamaServerSamplers, EveryOrderThatGivesTheSameIsTaken) {
  using llama_server::check_sampler_order;
  GenerationConfig config;
  config.do_sample = true;
  config.temperature = 0.7;
  config.top_k = 20;
  config.top_p = 0.8;
  const auto is_taken = [&](const std::vector<std::string>& samplers) {
    try {
      check_sampler_order(samplers, config);
    } catch (const RequestError&) {
      return false;
    }
    return true;
  };
  EXPECT_TRUE(is_taken({"penalties", "temperature", "top_k", "top_p", "min_p", "typ_p"}));
  EXPECT_TRUE(is_taken({"top_k", "temperature", "top_p"}));
  EXPECT_FALSE(is_taken({"top_k", "top_p", "temperature"}));
  EXPECT_FALSE(is_taken({"top_p", "top_k"}));
  EXPECT_TRUE(is_taken({"typ_p", "top_p"})) << "typ_p is off";
  EXPECT_TRUE(is_taken({"temperature", "penalties"})) << "there are none";
  config.repetition_penalty = 1.05;
  EXPECT_FALSE(is_taken({"temperature", "penalties"}));
  config.do_sample = false;
  EXPECT_TRUE(is_taken({"top_p", "temperature"}));
}

}  // namespace
}  // namespace qw::server
