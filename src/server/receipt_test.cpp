// Receipts over HTTP: every dialect gives one, its hash holds, and it says all that it takes to
// compute the same tokens again.
#include "server/receipt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Receipts : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    running_ = new RunningService;
    const ServiceOptions options = service_options();
    loaded_ = open_model(options.models[0].path, options.models[0].open).release();
  }
  static void TearDownTestSuite() {
    delete running_;
    delete loaded_;
    running_ = nullptr;
    loaded_ = nullptr;
  }
  /// Computes again with another model object; the ids of all answers of all requests.
  static Json replayed(const Json& receipt) {
    const auto engine = loaded_->make_engine();
    Json out = Json::array();
    for (Request& request : requests_of_receipt(receipt, *loaded_)) {
      const RequestResult result = engine->generate(std::move(request));
      for (const Completion& completion : result.completions)
        out.push_back(completion.ids);
    }
    return out;
  }
  static Json recorded(const Json& receipt) {
    Json out = Json::array();
    for (const Json& request : receipt["requests"]) {
      for (const Json& answer : request["answers"])
        out.push_back(answer["ids"]);
    }
    return out;
  }
  static void expect_replays(const Json& receipt) {
    ASSERT_TRUE(receipt.is_object()) << receipt;
    check_receipt(receipt);
    EXPECT_EQ(replayed(receipt), recorded(receipt));
    EXPECT_FALSE(recorded(receipt)[0].empty());
  }
  /// The JSON of a stream's lines, with "data: " before it or not.
  static std::vector<Json> pieces_of(const std::string& stream) {
    std::vector<Json> out;
    std::istringstream lines(stream);
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("data: ")) line.erase(0, 6);
      Json json = Json::parse(line, nullptr, false);
      if (json.is_object()) out.push_back(std::move(json));
    }
    return out;
  }
  static Json receipt_in(const Json& piece) {
    return piece.contains("response") && piece["response"].is_object()
               ? piece["response"].value("receipt", Json())
               : piece.value("receipt", Json());
  }
  static Json chat(Json more) {
    Json body = {{"messages", {{{"role", "user"}, {"content", "Tell me a story about rain."}}}},
                 {"max_tokens", 24},
                 {"receipt", true}};
    body.update(more);
    return running_->post("/v1/chat/completions", body);
  }

  static RunningService* running_;
  static LoadedModel* loaded_;
};
RunningService* Receipts::running_ = nullptr;
LoadedModel* Receipts::loaded_ = nullptr;

TEST_F(Receipts, SampledAnswersAreComputedAgain) {
  const Json answer = chat({{"seed", 11},
                            {"temperature", 1.1},
                            {"top_p", 0.9},
                            {"n", 3},
                            {"logit_bias", {{"30", -2.5}}},
                            {"repetition_penalty", 1.05},
                            {"ignore_eos", true}});
  const Json& receipt = answer["receipt"];
  expect_replays(receipt);
  EXPECT_EQ(receipt["seed"], 11);
  EXPECT_EQ(receipt["sampler"]["top_p"], 0.9);
  EXPECT_EQ(receipt["requests"][0]["answers"].size(), 3u);
  EXPECT_EQ(recorded(receipt)[0].size(), 24u);
  EXPECT_EQ(receipt["requests"][0]["prompt"].size(), answer["usage"]["prompt_tokens"]);
  EXPECT_NE(recorded(receipt)[0], recorded(receipt)[1]);
}

TEST_F(Receipts, AnOrderOfSamplersIsKept) {
  const Json body = {{"prompt", "One two"},
                     {"n_predict", 24},
                     {"seed", 9},
                     {"temperature", 1.5},
                     {"top_p", 0.8},
                     {"top_k", 40},
                     {"repeat_penalty", 1.2},
                     {"xtc_probability", 0.5},
                     {"n_cmpl", 2},
                     {"samplers", {"top_p", "penalties", "xtc", "top_k", "temperature"}},
                     {"receipt", true}};
  Json answers = running_->post("/completion", body);
  ASSERT_TRUE(answers.is_array()) << answers;
  const Json receipt = answers.back()["receipt"];
  expect_replays(receipt);
  EXPECT_EQ(receipt["sampler"]["sampler_order"],
            (Json{"top_p", "penalties", "xtc", "top_k", "temperature"}));
  Json usual = receipt;
  usual["sampler"]["sampler_order"] = Json::array();
  EXPECT_NE(replayed(usual), recorded(receipt)) << "in another order it is another answer";
  Json without = receipt;
  without["sampler"]["xtc_probability"] = 0;
  EXPECT_NE(replayed(without), recorded(receipt));
}

TEST_F(Receipts, ASeedThatNobodyGaveIsWrittenDown) {
  const Json receipt = chat({{"temperature", 1.0}})["receipt"];
  EXPECT_GT(receipt["seed"].get<uint64_t>(), 0u);
  expect_replays(receipt);
}

TEST_F(Receipts, ConstraintsAreComputedAgain) {
  const Json schema = {{"type", "object"},
                       {"properties", {{"city", {{"type", "string"}, {"maxLength", 8}}}}},
                       {"required", {"city"}}};
  for (const Json& more :
       {Json{{"guided_json", schema}}, Json{{"guided_regex", "[a-f]{5}"}},
        Json{{"guided_choice", {"yes", "perhaps"}}}, Json{{"guided_grammar", "root ::= \"ab\"+"}},
        Json{{"response_format", {{"type", "json_object"}}}},
        Json{{"structured_outputs", {{"choice", {"no", "perhaps"}}}}},
        Json{{"allowed_token_ids", {40, 41, 42, 43}}}, Json{{"bad_words", {"rain"}}}}) {
    Json body = more;
    body["seed"] = 5;
    body["temperature"] = 1.3;
    SCOPED_TRACE(body.dump());
    const Json receipt = chat(body)["receipt"];
    expect_replays(receipt);
    // Without its constraint it would be another answer: the receipt needs it.
    Json bare = receipt;
    bare["constraint"] = nullptr;
    bare["allowed_token_ids"] = nullptr;
    bare["sampler"]["bad_words_ids"] = Json::array();
    if (!more.contains("bad_words")) {
      EXPECT_NE(replayed(bare), recorded(receipt));
    }
  }
}

TEST_F(Receipts, ToolCallsAreComputedAgain) {
  const Json tools = Json::parse(R"([{"type": "function", "function": {"name": "weather",
      "description": "The weather.", "parameters": {"type": "object",
      "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}}}])");
  const Json answer = chat({{"tools", tools},
                            {"tool_choice", "required"},
                            {"seed", 3},
                            {"temperature", 1.0},
                            {"max_tokens", 80}});
  const Json& receipt = answer["receipt"];
  expect_replays(receipt);
  EXPECT_EQ(receipt["tools"]["format"], "qwen");
  EXPECT_EQ(receipt["tools"]["structure"]["functions"][0]["name"], "weather");
  EXPECT_EQ(structure_json(structure_of_json(receipt["tools"]["structure"])),
            receipt["tools"]["structure"]);
  // Calls, or an answer of a form: without it, it would be another.
  const Json in_form = chat({{"messages", {{{"role", "user"}, {"content", "Hello!"}}}},
                             {"tools", tools},
                             {"guided_regex", "[A-Z][a-z !?]{10,40}"},
                             {"temperature", 0},
                             {"max_tokens", 40}});
  ASSERT_TRUE(in_form["choices"][0]["message"]["content"].is_string()) << in_form.dump();
  expect_replays(in_form["receipt"]);
  Json bare = in_form["receipt"];
  bare["constraint"] = nullptr;
  EXPECT_NE(replayed(bare), recorded(in_form["receipt"]));
  // Where none may be made, a text that begins none, though the model is told of tools by hand.
  const Json question = {{"role", "user"}, {"content", "What is the weather in Paris?"}};
  const std::string prompt =
      running_->post("/apply-template", {{"messages", {question}}, {"tools", tools}})["prompt"];
  const size_t begin = prompt.find('\n') + 1;
  const std::string told = prompt.substr(begin, prompt.find("<|im_end|>") - begin);
  const Json none = chat({{"messages", {{{"role", "system"}, {"content", told}}, question}},
                          {"tools", tools},
                          {"tool_choice", "none"},
                          {"temperature", 0}})["receipt"];
  expect_replays(none);
  bare = none;
  bare["tools"] = nullptr;
  EXPECT_NE(replayed(bare), recorded(none));
}

TEST_F(Receipts, EveryDialectGivesOneWholeAndStreamed) {
  const Json messages = {{{"role", "user"}, {"content", "Hi"}}};
  struct Way {
    std::string path;
    Json body;
  };
  const std::vector<Way> ways = {
      {"/v1/chat/completions", {{"messages", messages}, {"max_tokens", 6}}},
      {"/v1/completions", {{"prompt", {"One", "Two"}}, {"max_tokens", 6}}},
      {"/v1/responses", {{"input", "Hi"}, {"max_output_tokens", 6}}},
      {"/v1/messages", {{"messages", messages}, {"max_tokens", 6}}},
      {"/completion", {{"prompt", "Hi"}, {"n_predict", 6}}},
      {"/generate", {{"text", "Hi"}, {"sampling_params", {{"max_new_tokens", 6}}}}},
      {"/api/chat", {{"messages", messages}, {"options", {{"num_predict", 6}}}}},
      {"/api/generate", {{"prompt", "Hi"}, {"options", {{"num_predict", 6}}}}}};
  for (const Way& way : ways) {
    SCOPED_TRACE(way.path);
    Json body = way.body;
    body["receipt"] = true;
    body["stream"] = false;
    const Json answer = running_->post(way.path, body);
    ASSERT_TRUE(answer.contains("receipt")) << answer;
    expect_replays(answer["receipt"]);
    EXPECT_FALSE(answer.contains("warnings")) << answer["warnings"];
    body["stream"] = true;
    const std::vector<Json> pieces = pieces_of(running_->client().post(way.path, body.dump()).body);
    ASSERT_GT(pieces.size(), 1u);
    for (const Json& piece : pieces)
      EXPECT_EQ(receipt_in(piece).is_object(), &piece == &pieces.back()) << piece;
    expect_replays(receipt_in(pieces.back()));
    body.erase("receipt");
    EXPECT_THAT(running_->client().post(way.path, body.dump()).body,
                ::testing::Not(HasSubstr("\"receipt\"")));
  }
}

TEST_F(Receipts, SayWhatTheModelAndTheProgramAre) {
  const Json receipt = chat({{"temperature", 0}})["receipt"];
  const Json& model = receipt["model"];
  EXPECT_EQ(model["name"], "mini");
  std::vector<std::string> files;
  for (const Json& file : model["files"]) {
    files.push_back(file["file"]);
    EXPECT_EQ(file["sha256"], sha256_of_file(service_options().models[0].path + "/" +
                                             file["file"].get<std::string>()));
  }
  EXPECT_THAT(files, Contains("model.safetensors"));
  EXPECT_THAT(files, Contains("config.json"));
  EXPECT_EQ(model["tokenizer"].get<std::string>().size(), 64u);
  EXPECT_EQ(model["chat_template"].get<std::string>().size(), 64u);
  EXPECT_EQ(receipt["program"]["version"], "test");
  EXPECT_EQ(receipt["context"], 2048);
  EXPECT_THAT(receipt_differences(receipt, receipt), IsEmpty());
}

TEST_F(Receipts, DifferencesAreNamed) {
  const Json receipt = chat({{"temperature", 0}})["receipt"];
  const auto with = [&](const char* pointer, const Json& value) {
    Json other = receipt;
    other[Json::json_pointer(pointer)] = value;
    const auto differences = receipt_differences(receipt, other);
    return differences.size() == 1 ? differences[0] : std::to_string(differences.size());
  };
  EXPECT_THAT(with("/model/files/0/sha256", "00"), HasSubstr("weights: the receipt's is"));
  EXPECT_THAT(with("/model/tokenizer", "00"), HasSubstr("tokenizer"));
  EXPECT_THAT(with("/model/chat_template", "00"), HasSubstr("chat template"));
  EXPECT_THAT(with("/program/build", "x"), HasSubstr("build of the program"));
  EXPECT_THAT(with("/program/isa", "x"), HasSubstr("instruction set"));
  EXPECT_THAT(with("/program/kv_type", "x"), HasSubstr("KV cache"));
  EXPECT_THAT(with("/context", 1), HasSubstr("context"));
}

TEST_F(Receipts, ChangedOnesAreRefused) {
  Json receipt = chat({{"temperature", 0}})["receipt"];
  check_receipt(receipt);
  // The order of members does not matter, what they say does.
  const Json sorted = Json::parse(nlohmann::json(receipt).dump());
  EXPECT_EQ(receipt_sha256(sorted), receipt["sha256"]);
  receipt["seed"] = receipt["seed"].get<uint64_t>() + 1;
  EXPECT_THROW(check_receipt(receipt), RequestError);
  EXPECT_THROW(check_receipt(Json::object()), RequestError);
  EXPECT_THROW(check_receipt(Json::array()), RequestError);
  receipt["sampler"]["top_p"] = 3;
  receipt["sha256"] = receipt_sha256(receipt);
  check_receipt(receipt);
  EXPECT_THROW(requests_of_receipt(receipt, *loaded_), Error);
}

}  // namespace
}  // namespace qw::server
