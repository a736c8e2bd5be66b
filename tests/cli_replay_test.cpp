// qianwen replay: the same tokens from a receipt, or in which way they differ.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "server/receipt.h"
#include "support/process.h"
#include "support/running_service.h"

namespace qw::test {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::Not;

class CliReplay : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const qw::testing::RunningService running;
    const ordered_json schema = {{"type", "object"},
                                 {"properties", {{"n", {{"type", "integer"}, {"maximum", 99}}}}},
                                 {"required", {"n"}}};
    reply_ =
        new ordered_json(running.post("/v1/completions", {{"prompt", {"One", "Give me a number"}},
                                                          {"seed", 9},
                                                          {"n", 2},
                                                          {"temperature", 1.2},
                                                          {"max_tokens", 12},
                                                          {"guided_json", schema},
                                                          {"receipt", true}}));
  }
  static void TearDownTestSuite() {
    delete reply_;
    reply_ = nullptr;
  }
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() /
             ("qw_receipt_" + std::to_string(::getpid()) + ".json"))
                .string();
  }
  void TearDown() override { std::filesystem::remove(path_); }
  Ran replay(const ordered_json& json, std::vector<std::string> flags = {}) const {
    std::ofstream(path_) << json;
    flags.insert(flags.begin(), {"replay", path_});
    return qianwen(flags);
  }
  static ordered_json receipt() { return (*reply_)["receipt"]; }
  /// With a hash that holds, so that nobody sees that it was changed.
  static ordered_json sealed(ordered_json receipt) {
    receipt["sha256"] = server::receipt_sha256(receipt);
    return receipt;
  }

  static ordered_json* reply_;
  std::string path_;
};
ordered_json* CliReplay::reply_ = nullptr;

TEST_F(CliReplay, SaysThatTheTokensAreTheSame) {
  for (const ordered_json& json : {receipt(), *reply_}) {
    const Ran ran = replay(json);
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("same: 4 answers of "));
    EXPECT_THAT(ran.err, HasSubstr("version of the program"));  // the test's server says "test"
    EXPECT_THAT(ran.err, Not(HasSubstr("weights")));
  }
  const ordered_json machine = ordered_json::parse(replay(receipt(), {"--json"}).out);
  EXPECT_EQ(machine["same"], true);
  EXPECT_EQ(machine["answers"], 4);
}

// In every form that a server gives one.
TEST_F(CliReplay, FindsTheReceiptOfAnyReply) {
  const qw::testing::RunningService running;
  std::vector<ordered_json> replies = {
      running.post("/completion",
                   {{"prompt", {"One", "Two"}}, {"n_predict", 3}, {"receipt", true}}),
      running.post("/generate", {{"text", {"One", "Two"}},
                                 {"sampling_params", {{"max_new_tokens", 3}}},
                                 {"receipt", true}}),
      running.post(
          "/generate",
          {{"text", "One"}, {"sampling_params", {{"max_new_tokens", 3}}}, {"receipt", true}}),
      running.post("/api/generate", {{"prompt", "One"},
                                     {"options", {{"num_predict", 3}}},
                                     {"stream", false},
                                     {"receipt", true}})};
  EXPECT_TRUE(replies[0].is_array());
  EXPECT_TRUE(replies[1].is_array());
  const ordered_json messages = {{{"role", "user"}, {"content", "Hi"}}};
  for (const bool stream : {false, true}) {
    const auto last = [&](const std::string& target, ordered_json body) {
      body["receipt"] = true;
      body["stream"] = stream;
      return stream ? running.stream(target, body).back() : running.post(target, body);
    };
    replies.push_back(last("/v1/responses", {{"input", "Hi"}, {"max_output_tokens", 3}}));
    replies.push_back(last("/v1/messages", {{"messages", messages}, {"max_tokens", 3}}));
    replies.push_back(last("/v1/chat/completions", {{"messages", messages}, {"max_tokens", 3}}));
    replies.push_back(last("/v1/completions", {{"prompt", "One"}, {"max_tokens", 3}}));
    replies.push_back(last("/completion", {{"prompt", "One"}, {"n_predict", 3}}));
    replies.push_back(
        last("/generate", {{"text", "One"}, {"sampling_params", {{"max_new_tokens", 3}}}}));
  }
  for (const ordered_json& reply : replies) {
    const Ran ran = replay(reply);
    EXPECT_EQ(ran.code, 0) << reply << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("same: "));
  }
  EXPECT_EQ(replay(ordered_json::array()).code, 2);
  EXPECT_EQ(replay({{"response", 1}}).code, 2);
}

TEST_F(CliReplay, NamesTheFirstDifference) {
  ordered_json changed = receipt();
  ordered_json& ids = changed["requests"][1]["answers"][1]["ids"];
  const int before = ids[3];
  ids[3] = before + 1;
  const Ran ran = replay(sealed(changed));
  EXPECT_NE(ran.code, 0);
  EXPECT_THAT(ran.err,
              HasSubstr("answer 1 of request 1: expected the receipt's tokens, got another at "
                        "position 3"));
  const ordered_json machine = ordered_json::parse(replay(sealed(changed), {"--json"}).out);
  EXPECT_EQ(machine["same"], false);
  EXPECT_EQ(machine["first_difference"]["position"], 3);
  EXPECT_EQ(machine["first_difference"]["now"], before);
}

TEST_F(CliReplay, SaysWhatIsNotAsItWas) {
  ordered_json changed = receipt();
  changed["model"]["files"][0]["sha256"] = std::string(64, '0');
  changed["program"]["build"] = "another";
  const Ran ran = replay(sealed(changed));
  EXPECT_EQ(ran.code, 0);  // the tokens are the same all the same
  EXPECT_THAT(ran.err, HasSubstr("weights: the receipt's is"));
  EXPECT_THAT(ran.err, HasSubstr("build of the program: the receipt's is \"another\""));
}

TEST_F(CliReplay, RefusesWhatIsNoReceipt) {
  ordered_json changed = receipt();
  changed["seed"] = 10;
  EXPECT_EQ(replay(changed).code, 2);
  EXPECT_THAT(replay(changed).err, HasSubstr("the receipt was changed"));
  EXPECT_EQ(replay({{"a", 1}}).code, 2);
  EXPECT_EQ(qianwen({"replay"}).code, 2);
  EXPECT_EQ(qianwen({"replay", "/nonexistent"}).code, 3);
}

TEST_F(CliReplay, RefusesReceiptsThatNobodyWrote) {
  const auto refused = [&](const std::function<void(ordered_json&)>& change) {
    ordered_json changed = receipt();
    change(changed);
    const Ran ran = replay(sealed(changed));
    EXPECT_EQ(ran.code, 2) << ran.err;
    EXPECT_THAT(ran.out, Not(HasSubstr("same")));
    EXPECT_THAT(ran.err, Not(HasSubstr("internal"))) << ran.err;
    return ran.err;
  };
  EXPECT_THAT(refused([](auto& json) { json["requests"] = ordered_json::array(); }),
              HasSubstr("requests: expected at least one"));
  EXPECT_THAT(refused([](auto& json) { json["requests"][1].erase("answers"); }),
              HasSubstr("answers"));
  EXPECT_THAT(refused([](auto& json) { json["requests"][0]["answers"] = ordered_json::array(); }),
              HasSubstr("answers: expected at least one, got none (request 0)"));
  EXPECT_THAT(refused([](auto& json) { json["requests"][0] = 7; }), HasSubstr("requests"));
  EXPECT_THAT(refused([](auto& json) { json["requests"][0]["answers"][0].erase("ids"); }),
              HasSubstr("ids"));
  EXPECT_THAT(refused([](auto& json) { json["requests"][0]["answers"][0]["ids"] = "1"; }),
              HasSubstr("ids"));
  EXPECT_THAT(refused([](auto& json) { json["requests"][0]["answers"][0].erase("finish_reason"); }),
              HasSubstr("finish_reason"));
  EXPECT_THAT(refused([](auto& json) { json["program"]["isa"] = {1}; }), HasSubstr("program.isa"));
  EXPECT_THAT(refused([](auto& json) { json["context"] = "long"; }), HasSubstr("context"));
}

TEST_F(CliReplay, CountsAnswers) {
  ordered_json fewer = receipt(), more = receipt();
  fewer["requests"][0]["answers"].erase(1);
  more["requests"][0]["answers"].push_back(more["requests"][0]["answers"][0]);
  const Ran one = replay(sealed(fewer)), three = replay(sealed(more));
  EXPECT_NE(one.code, 0);
  EXPECT_THAT(one.err, HasSubstr("answer 1 of request 0"));
  EXPECT_NE(three.code, 0);
  EXPECT_THAT(three.err, HasSubstr("answer 2 of request 0"));
}

}  // namespace
}  // namespace qw::test
