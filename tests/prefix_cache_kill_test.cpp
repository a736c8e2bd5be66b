// The server killed at any moment: the next one serves, reads what was kept, and says the same.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/rng.h"
#include "support/http_client.h"
#include "support/process.h"

namespace qw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class KilledServer : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override {
    stop(SIGKILL);
    fs::remove_all(directory_);
  }

  void start() {
    const std::string out = directory_ + "/out";
    fs::remove(out);
    child_ = ::fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      if (std::freopen(out.c_str(), "w", stdout) == nullptr) ::_exit(1);
      if (std::freopen((directory_ + "/log").c_str(), "a", stderr) == nullptr) ::_exit(1);
      // A cache so small that blocks are evicted all the time, and files that go, too.
      test::become_program(QIANWEN_PROGRAM,
                           {"serve", "--port", "0", "--json", "--ctx", "512", "--slots", "2",
                            "--threads", "2", "--no-access-log", "--prefix-cache-dir",
                            directory_ + "/cache", "--prefix-cache-bytes", cache_bytes_},
                           {});
    }
    for (int i = 0; i < 600; ++i) {
      std::ifstream in(out);
      std::string line;
      if (std::getline(in, line) && line.ends_with('}')) {
        port_ = json::parse(line)["port"].get<uint16_t>();
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    FAIL() << "the server did not start";
  }
  int stop(int signal) {
    if (child_ <= 0) return 0;
    ::kill(child_, signal);
    int status = 0;
    ::waitpid(child_, &status, 0);
    child_ = -1;
    return status;
  }

  static json body_of(uint64_t number) {
    // Prompts begin alike by threes: two pages and more.
    json ids = json::array();
    for (uint64_t i = 0; i < 150 + 10 * (number % 3); ++i)
      ids.push_back(1000 + random_bits(number / 3, 1, i) % 500);
    return {{"prompt", ids}, {"max_tokens", 8},    {"temperature", 0.8},
            {"seed", 7},     {"ignore_eos", true}, {"logprobs", 1}};
  }
  /// The choice that is answered; null: the server has gone.
  json ask(uint64_t number, int64_t* n_cached = nullptr) const {
    try {
      qw::testing::HttpClient client(port_);
      const qw::testing::HttpAnswer answer = client.post("/v1/completions", body_of(number).dump());
      if (answer.status == 0) return nullptr;
      EXPECT_EQ(answer.status, 200) << answer.body;
      const json parsed = json::parse(answer.body);
      if (n_cached != nullptr)
        *n_cached = parsed["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
      return parsed["choices"][0];
    } catch (const std::exception&) {
      return nullptr;
    }
  }

  const std::string directory_ = ::testing::TempDir() + "killed_server";
  std::string cache_bytes_ = "2500000";
  pid_t child_ = -1;
  uint16_t port_ = 0;
};

TEST_F(KilledServer, ServesAgainWithTheSameBits) {
  constexpr uint64_t kPrompts = 6;
  start();
  std::vector<json> expected;
  for (uint64_t i = 0; i < kPrompts; ++i)
    expected.push_back(ask(i));
  stop(SIGKILL);
  for (uint64_t round = 0; round < 6; ++round) {
    start();
    std::vector<std::thread> clients;
    for (uint64_t client = 0; client < 2; ++client) {
      clients.emplace_back([&, client] {
        for (uint64_t i = 0; i < 1000; ++i) {
          const uint64_t number = random_bits(round, client, i) % (2 * kPrompts);
          const json answer = ask(number);
          if (answer.is_null()) return;
          if (number < kPrompts) {
            EXPECT_EQ(answer, expected[number]) << number;
          }
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(random_bits(round, 9, 0) % 700));
    stop(SIGKILL);
    for (std::thread& client : clients)
      client.join();
  }
  // With room for all: within a minute it is anybody's turn to be evicted.
  cache_bytes_ = "25000000";
  start();
  int64_t n_cached = 0;
  for (uint64_t i = 0; i < kPrompts; ++i) {
    int64_t n = 0;
    EXPECT_EQ(ask(i, &n), expected[i]);
    n_cached += n;
  }
  EXPECT_GT(n_cached, 0);
  const int status = stop(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  // And once more, after an orderly end: the last prompts were kept.
  start();
  int64_t n = 0;
  EXPECT_EQ(ask(kPrompts - 1, &n), expected[kPrompts - 1]);
  EXPECT_EQ(n, 128);
}

}  // namespace
}  // namespace qw
