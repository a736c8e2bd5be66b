// Whose request goes first: what a priority does between clients, with keys and without.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "server/access.h"
#include "server/model_hub.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

using qw::testing::HttpClient;
using qw::testing::RunningService;
using qw::testing::service_options;
using Json = nlohmann::ordered_json;

enum class Keys { kNone, kPlain, kAdministrators };

/// Whether the second client's request with such a priority starts before one of the first that
/// came earlier. The server has one place, which somebody else holds until both wait.
bool passes(Keys keys, int64_t priority, bool is_same_client = false, bool is_sglang = false) {
  std::vector<std::string> headers;
  Json entries = Json::array();
  for (const char* name : {"holder", "first", "second"}) {
    const KeyRing::NewKey made = KeyRing::make(name, keys == Keys::kAdministrators);
    entries.push_back(Json::parse(made.entry));
    headers.push_back(keys == Keys::kNone ? "" : "x-api-key: " + made.key + "\r\n");
  }
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("qw_turns_" + std::to_string(::getpid()) + ".json");
  std::ofstream(file) << Json{{"keys", entries}};
  ServiceOptions options = service_options();
  options.models[0].open.engine.n_slots = 1;
  if (keys != Keys::kNone) options.key_file = file.string();
  const RunningService running(options);
  std::filesystem::remove(file);

  const auto n_open = [&] {
    return running.service.services().hub->find("mini").loaded->host().n_open();
  };
  const auto wait_for = [&](int64_t n) {
    for (int i = 0; i < 3000 && n_open() != n; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(n_open(), n);
  };
  const auto send = [&](HttpClient& client, size_t who, int64_t its_priority) {
    const std::string name(1, static_cast<char>('a' + who));
    Json body = {{"prompt", "The " + name}, {"max_tokens", 500},        {"ignore_eos", true},
                 {"stream", true},          {"priority", its_priority}, {"user", name}};
    if (is_sglang) {
      body = {{"text", "The " + name},
              {"sampling_params", {{"max_new_tokens", 500}, {"ignore_eos", true}}},
              {"stream", true},
              {"priority", its_priority}};
    }
    client.send(HttpClient::post_text(is_sglang ? "/generate" : "/v1/completions", body.dump(),
                                      headers[who]));
  };
  std::optional<HttpClient> holder(running.service.port());
  HttpClient first = running.client(), second = running.client();
  send(*holder, 0, 0);
  holder->read_until("data:");
  send(first, 1, 0);
  wait_for(2);
  send(second, is_same_client ? 1 : 2, priority);
  wait_for(3);
  holder.reset();
  second.read_until("data:");
  return n_open() == 2;  // the first one waits: it has not ended
}

TEST(Turns, APriorityPassesOtherClientsWithoutKeysAndByAdministratorsOnly) {
  EXPECT_FALSE(passes(Keys::kNone, 0));
  EXPECT_TRUE(passes(Keys::kNone, -1));
  EXPECT_FALSE(passes(Keys::kPlain, -1000));
  EXPECT_TRUE(passes(Keys::kAdministrators, -1));
}

TEST(Turns, APriorityOrdersAClientsOwnRequests) {
  EXPECT_TRUE(passes(Keys::kPlain, -1, true));
  EXPECT_FALSE(passes(Keys::kPlain, 0, true));
}

TEST(Turns, InSglangsDialectTheHigherPriorityGoesFirst) {
  EXPECT_TRUE(passes(Keys::kPlain, 1, true, true));
  EXPECT_FALSE(passes(Keys::kPlain, -1, true, true));
}

}  // namespace
}  // namespace qw::server
