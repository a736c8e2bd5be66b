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
  EXPECT_EQ(answer["stopped_limit"], true);
  EXPECT_EQ(answer["stopped_eos"], false);
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
  EXPECT_EQ(whole["stopped_eos"], true);
  EXPECT_EQ(whole["stopped_limit"], false);
  body["stop"] = {" of Japan"};
  const ordered_json stopped = complete(body);
  EXPECT_EQ(stopped["content"], "The capital");
  EXPECT_EQ(stopped["stop_type"], "word");
  EXPECT_EQ(stopped["stopped_word"], true);
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
  // A token that must not be said is none of those whose spread top_n_sigma looks at.
  body["logit_bias"] = {{likeliest, false}};
  body["temperature"] = 1000;
  body["top_n_sigma"] = 1e-6;
  const ordered_json other = complete(body);
  EXPECT_NE(other["tokens"][0], likeliest);
  EXPECT_EQ(complete(body)["tokens"], other["tokens"]);
  body["seed"] = 12345;
  EXPECT_EQ(complete(body)["tokens"], other["tokens"]) << "one token alone is left";
  EXPECT_EQ(other["generation_settings"]["logit_bias"],
            (ordered_json{{{"bias", false}, {"token", likeliest}}}));
  body["logit_bias"] = {{1, 2, 3}};
  EXPECT_THAT(error_of(body), HasSubstr("logit_bias"));
}

TEST_F(LlamaServer, SamplersThatAreNotNamedAreOff) {
  ordered_json body = {{"prompt", "One two"}, {"n_predict", 8}, {"seed", 3},       {"top_k", 0},
                       {"top_p", 1},          {"min_p", 0},     {"temperature", 1}};
  const ordered_json plain = complete(body);
  body["top_k"] = 1;
  body["temperature"] = 0.2;
  body["top_n_sigma"] = 0.1;
  body["xtc_probability"] = 1;
  body["xtc_threshold"] = 0;
  body["repeat_penalty"] = 5;
  body["samplers"] = ordered_json::array();  // none: the model's own distribution
  EXPECT_EQ(complete(body)["content"], plain["content"]);
  body["samplers"] = "";
  EXPECT_EQ(complete(body)["content"], plain["content"]);
  body["samplers"] = {"luck"};
  EXPECT_THAT(error_of(body), HasSubstr("luck"));
  body["samplers"] = "tz";
  EXPECT_THAT(error_of(body), HasSubstr("'z'"));
}

// Of a distribution that a temperature of 1000 has made flat, top_p 0.001 leaves many tokens; of
// the model's own the likeliest alone.
TEST_F(LlamaServer, SamplersApplyInTheOrderNamed) {
  ordered_json body = {{"prompt", "One two"}, {"n_predict", 12}, {"seed", 3}, {"top_p", 0.001}};
  body["top_k"] = 0;
  body["temperature"] = 0;
  const ordered_json likeliest = complete(body)["content"];
  body["temperature"] = 1000;
  const ordered_json usual = complete(body)["content"];
  EXPECT_NE(usual, likeliest);
  for (const ordered_json& names :
       {ordered_json{"top_p", "temperature"}, ordered_json("pt"), ordered_json{"Nucleus", "temp"},
        ordered_json{"top-p", "top_p", "temperature"}}) {
    body["samplers"] = names;
    EXPECT_EQ(complete(body)["content"], likeliest) << names.dump();
  }
  body["samplers"] = {"temperature", "top_p"};
  EXPECT_NE(complete(body)["content"], likeliest);
  // Twice a temperature of 0.01 is one of 0.0001: as good as none; twice 1000 is flat.
  body["top_p"] = 1;
  body["temperature"] = 0.01;
  body["samplers"] = {"temperature", "temperature"};
  EXPECT_EQ(complete(body)["content"], likeliest);
  ordered_json many = ordered_json::array();
  for (int i = 0; i < 65; ++i)
    many.push_back("top_k");
  body["samplers"] = many;
  EXPECT_THAT(error_of(body), HasSubstr("samplers: expected at most 64"));
}

TEST_F(LlamaServer, TakesLlamaCppsOwnOrder) {
  ordered_json body = {{"prompt", "One two"},    {"n_predict", 8},       {"seed", 3},
                       {"temperature", 0.8},     {"top_k", 40},          {"top_p", 0.95},
                       {"min_p", 0.05},          {"typical_p", 1.0},     {"repeat_penalty", 1.0},
                       {"xtc_probability", 0.0}, {"xtc_threshold", 0.1}, {"top_n_sigma", -1.0},
                       {"dry_multiplier", 0.0}};
  body["samplers"] = {"penalties", "dry",   "top_n_sigma", "top_k",      "typ_p",
                      "top_p",     "min_p", "xtc",         "temperature"};
  const ordered_json whole = complete(body);
  EXPECT_FALSE(whole.contains("warnings")) << whole["warnings"].dump();
  const ordered_json want = body["samplers"];
  EXPECT_EQ(whole["generation_settings"]["samplers"], want);
  body["samplers"] = "edskypmxt";
  const ordered_json same = complete(body);
  EXPECT_EQ(same["content"], whole["content"]);
  EXPECT_EQ(same["generation_settings"]["samplers"], want);
  body["samplers"] = "edskypmxti";
  EXPECT_EQ(complete(body)["warnings"].dump(),
            R"x(["samplers: infill ignored (these models cannot fill in)"])x");
  ordered_json held = body;
  held["samplers"] = "edskypmxt";
  held["grammar"] = "root ::= \"yes\" | \"no\"";
  EXPECT_THAT(complete(held)["content"].get<std::string>(), ::testing::AnyOf("yes", "no"));
  body["samplers"] = "a";
  EXPECT_EQ(complete(body)["generation_settings"]["samplers"], ordered_json::array());
}

TEST_F(LlamaServer, DoesNotRepeatItself) {
  const ordered_json ids =
      running_->post("/tokenize", {{"content", " one two one two one"}})["tokens"];
  ASSERT_EQ(ids.size(), 5u);
  ordered_json body = {{"prompt", ids},       {"n_predict", 1},
                       {"temperature", 0},    {"return_tokens", true},
                       {"dry_multiplier", 0}, {"logit_bias", {ordered_json::array({ids[1], 50})}}};
  const auto goes_on = [&] { return complete(body)["tokens"][0] == ids[1]; };
  EXPECT_TRUE(goes_on());
  body["dry_multiplier"] = 1000;
  EXPECT_FALSE(goes_on()) << "two, after one and two and one again";
  const ordered_json settings = complete(body)["generation_settings"];
  EXPECT_EQ(settings["dry_multiplier"], 1000);
  EXPECT_EQ(settings["dry_sequence_breakers"], (ordered_json{"\n", ":", "\"", "*"}));
  body["samplers"] = {"penalties", "temperature"};
  EXPECT_TRUE(goes_on()) << "not named: off";
  body.erase("samplers");
  body["dry_allowed_length"] = 4;
  EXPECT_TRUE(goes_on());
  body.erase("dry_allowed_length");
  body["dry_sequence_breakers"] = {"two"};
  EXPECT_TRUE(goes_on()) << "nothing reaches over two";
  body["dry_sequence_breakers"] = {""};
  EXPECT_THAT(error_of(body), HasSubstr("dry_sequence_breakers"));
}

TEST_F(LlamaServer, HasTheSamplersOfItsOwn) {
  ordered_json body = {{"prompt", "One two"}, {"n_predict", 12}, {"seed", 3}, {"temperature", 0}};
  const ordered_json likeliest = complete(body)["content"];
  body["temperature"] = 1000;
  EXPECT_NE(complete(body)["content"], likeliest);
  body["top_n_sigma"] = 1e-6;
  const ordered_json sigma = complete(body);
  EXPECT_EQ(sigma["content"], likeliest);
  EXPECT_EQ(sigma["generation_settings"]["top_n_sigma"], 1e-6);
  body["top_n_sigma"] = -1;
  body["temperature"] = 1;
  body["xtc_probability"] = 1;
  body["xtc_threshold"] = 0;  // every token is a top choice: the least likely of two is left
  body["top_k"] = 2;
  const ordered_json second = complete(body);
  EXPECT_EQ(second["generation_settings"]["xtc_probability"], 1);
  EXPECT_EQ(second["generation_settings"]["top_n_sigma"], -1);
  EXPECT_NE(second["content"], likeliest);
  body["n_probs"] = 2;
  for (const ordered_json& place : complete(body)["completion_probabilities"])
    EXPECT_EQ(place["id"], place["top_logprobs"][1]["id"]);
  body["xtc_probability"] = 2;
  EXPECT_THAT(error_of(body), HasSubstr("xtc_probability"));
}

TEST_F(LlamaServer, GivesTheFieldsThatAreAskedFor) {
  const ordered_json answer =
      complete({{"prompt", "One"},
                {"n_predict", 1},
                {"response_fields", {"content", "generation_settings/n_predict", "nothing"}}});
  EXPECT_EQ(answer.size(), 3u) << answer.dump();
  EXPECT_EQ(answer["generation_settings/n_predict"], 1) << "the whole path, as llama.cpp has it";
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
  const ordered_json all = {"penalties", "dry",   "top_n_sigma", "temperature", "top_k",
                            "top_p",     "min_p", "typ_p",       "xtc"};
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
  EXPECT_EQ(props["default_generation_settings"]["params"]["samplers"][3], "temperature");
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
  EXPECT_EQ(slots[2].dump(), R"({"id":2,"n_ctx":2048,"speculative":false,"is_processing":false})");
  EXPECT_EQ(running.service.services().hub->find("second").loaded, nullptr);
  running.post("/v1/completions", {{"model", "second"}, {"prompt", "a"}, {"max_tokens", 1}});
  EXPECT_NE(running.service.services().hub->find("second").loaded, nullptr);
  EXPECT_EQ(running.get("/slots?model=second"), slots);
  EXPECT_EQ(running.client().get("/slots?model=third").status, 404);
}

}  // namespace
}  // namespace qw::server
