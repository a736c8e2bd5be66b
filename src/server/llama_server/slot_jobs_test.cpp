// Slots of llama.cpp's clients over HTTP: saved, restored and erased in pieces, beside others.
#include "server/llama_server/slot_jobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <thread>

#include "server/llama_server/common.h"
#include "support/engine_gate.h"
#include "support/running_service.h"

namespace qw::server {
namespace {

namespace fs = std::filesystem;

using nlohmann::ordered_json;
using qw::testing::EngineGate;
using qw::testing::HttpAnswer;
using qw::testing::HttpClient;
using qw::testing::RunningService;
using ::testing::HasSubstr;

/// A server that saves slots, in a directory of its own.
class LlamaServerSlots : public ::testing::Test {
 protected:
  void SetUp() override { fs::remove_all(directory_); }
  void TearDown() override { fs::remove_all(directory_); }
  /// piece_bytes 1: page by page. ctx: 32 tokens and more, in one slot; 0: 2048 in each of four.
  std::unique_ptr<RunningService> start(int64_t piece_bytes = int64_t{16} << 20,
                                        int64_t ctx = 0) const {
    ServiceOptions options = qw::testing::service_options();
    options.models[0].open.slot_save_path = directory_;
    options.slot_piece_bytes = piece_bytes;
    if (ctx > 0) {
      options.models[0].open.engine.ctx = ctx;
      options.models[0].open.engine.n_slots = 1;
    }
    return std::make_unique<RunningService>(options);
  }
  static ordered_json act(const RunningService& service, int slot, const std::string& action,
                          const std::string& file, int* status = nullptr) {
    return service.post(fmt::format("/slots/{}?action={}", slot, action), {{"filename", file}},
                        status);
  }
  /// A sequence of several pages under a slot's number: its answer.
  static ordered_json fill(const RunningService& service, int slot, int n_words = 100) {
    return service.post("/completion", body_of(slot, n_words));
  }
  static ordered_json body_of(int slot, int n_words) {
    std::string prompt = "Once upon a time";
    for (int i = 0; i < n_words; ++i)
      prompt += " there was a number " + std::to_string(i);
    return {{"prompt", prompt}, {"n_predict", 9}, {"seed", 3}, {"id_slot", slot}};
  }
  static HostStats stats(const RunningService& service) {
    return service.service.services().hub->find("mini").loaded->host().stats();
  }
  static bool comes_true(const std::function<bool()>& what) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!what()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  /// No page is held: all are there for whoever wants them. The stats are noted after a step.
  static bool lets_go(const RunningService& service) {
    return comes_true([&] {
      service.service.services().hub->find("mini").loaded->host().run([](Engine&) {});
      const HostStats now = stats(service);
      return now.n_free_pages == now.n_pages;
    });
  }
  std::vector<std::string> files() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (entry.path().filename() != "secret") out.push_back(entry.path().filename());
    }
    std::ranges::sort(out);
    return out;
  }
  std::string bytes(const std::string& name) const {
    std::ifstream file(directory_ + "/" + name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Each test has its own: they may run side by side.
  const std::string directory_ = ::testing::TempDir() + "llama_server_slots_" +
                                 ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(LlamaServerSlots, AreSavedRestoredByAnotherProcessAndErased) {
  std::string prompt = "Once upon a time";
  for (int i = 0; i < 40; ++i)
    prompt += " there was a number " + std::to_string(i);
  const ordered_json body = {{"prompt", prompt}, {"n_predict", 9}, {"seed", 3}, {"id_slot", 2}};
  ordered_json first;
  int n_computed = 0;
  {
    const auto service = start();
    first = service->post("/completion", body);
    EXPECT_EQ(first["id_slot"], 2);
    // All but the answer's last token, which was never computed.
    n_computed = first["tokens_evaluated"].get<int>() + first["tokens_predicted"].get<int>() - 1;
    const ordered_json saved = service->post("/slots/2?action=save", {{"filename", "a.bin"}});
    EXPECT_EQ(saved["id_slot"], 2);
    EXPECT_EQ(saved["filename"], "a.bin");
    EXPECT_EQ(saved["n_saved"], n_computed);
    EXPECT_EQ(saved["n_written"], fs::file_size(directory_ + "/a.bin"));
    EXPECT_GT(saved["timings"]["save_ms"], 0);
    // Another slot holds nothing.
    EXPECT_EQ(service->post("/slots/1?action=save", {{"filename", "b.bin"}})["n_saved"], 0);
    EXPECT_EQ(service->post("/slots/2?action=erase", ordered_json::object())["n_erased"],
              saved["n_saved"]);
    EXPECT_EQ(service->post("/completion", body)["tokens_cached"], 0);
  }
  const auto service = start();
  const ordered_json restored = service->post("/slots/0?action=restore", {{"filename", "a.bin"}});
  EXPECT_EQ(restored["n_restored"], n_computed);
  EXPECT_GT(restored["n_read"], 0);
  const ordered_json again = service->post("/completion", body);
  EXPECT_EQ(again["content"], first["content"]);
  EXPECT_EQ(again["tokens_cached"], first["tokens_evaluated"].get<int>() - 1);
  EXPECT_EQ(service->post("/slots/0?action=save", {{"filename", "c.bin"}})["n_saved"],
            restored["n_restored"]);
}

TEST_F(LlamaServerSlots, KeepTheirSalt) {
  const auto service = start();
  ordered_json body = {{"prompt", "Once upon a time there was a king who had three daughters"},
                       {"n_predict", 5},
                       {"temperature", 0},
                       {"id_slot", 1},
                       {"cache_salt", "a"}};
  const ordered_json first = service->post("/completion", body);
  const int n_computed =
      first["tokens_evaluated"].get<int>() + first["tokens_predicted"].get<int>() - 1;
  EXPECT_EQ(service->post("/slots/1?action=save", {{"filename", "a.bin"}})["n_saved"], n_computed);
  EXPECT_EQ(service->post("/slots/1?action=erase", ordered_json::object())["n_erased"], n_computed);
  const auto restore = [&](const ordered_json& more, int expected_status) {
    ordered_json request = {{"filename", "a.bin"}};
    request.update(more);
    int status = 0;
    const ordered_json answer = service->post("/slots/0?action=restore", request, &status);
    EXPECT_EQ(status, expected_status) << answer;
    return answer;
  };
  restore(ordered_json::object(), 400);
  restore({{"cache_salt", "b"}}, 400);
  EXPECT_EQ(restore({{"cache_salt", "a"}}, 200)["n_restored"], n_computed);
  EXPECT_EQ(service->post("/completion", body)["tokens_cached"],
            first["tokens_evaluated"].get<int>() - 1);
  body.erase("cache_salt");
  EXPECT_EQ(service->post("/completion", body)["tokens_cached"], 0);
}

TEST_F(LlamaServerSlots, RefuseWhatIsNoFileOfTheirs) {
  const auto service = start();
  const auto status_of = [&](const std::string& target, const ordered_json& body) {
    int status = 0;
    service->post(target, body, &status);
    return status;
  };
  for (const char* name : {"", ".", "..", "../a", "a/b", "/etc/passwd", ".hidden", "secret", "a\\b",
                           "a\nb", "a.tmp-1-1"}) {
    for (const char* action : {"save", "restore"}) {
      EXPECT_EQ(status_of(std::string("/slots/0?action=") + action, {{"filename", name}}), 400)
          << name;
    }
  }
  EXPECT_EQ(status_of("/slots/0?action=save", ordered_json::object()), 400);
  EXPECT_EQ(status_of("/slots/4?action=erase", ordered_json::object()), 400);
  EXPECT_EQ(status_of("/slots/x?action=erase", ordered_json::object()), 400);
  EXPECT_EQ(status_of("/slots/0?action=restore", {{"filename", "none"}}), 404);
  service->post("/completion",
                {{"prompt", "One two three four"}, {"n_predict", 1}, {"id_slot", 0}});
  service->post("/slots/0?action=save", {{"filename", "a"}});
  std::fstream(directory_ + "/a", std::ios::in | std::ios::out | std::ios::binary)
      .seekp(300)
      .put(1);
  for (const char* name : {"a", "none"}) {
    int status = 0;
    const std::string answer =
        service->post("/slots/0?action=restore", {{"filename", name}}, &status).dump();
    EXPECT_EQ(status, name == std::string("a") ? 400 : 404);
    EXPECT_THAT(answer, HasSubstr(fmt::format("('{}')", name)));
    EXPECT_THAT(answer, ::testing::Not(HasSubstr(directory_)));
  }
  EXPECT_EQ(service->post("/completion", {{"prompt", "One"}, {"n_predict", 1}})["tokens_predicted"],
            1);
}

TEST_F(LlamaServerSlots, WhatWasNeverFinishedGoesAtAStart) {
  fs::create_directory(directory_);
  for (const char* name : {"a.bin", "a.bin.tmp-1-1", "b.bin.tmp-1-1"})
    std::ofstream(directory_ + "/" + name) << "x";
  for (const char* name : {"a.bin", "a.bin.tmp-1-1"}) {
    fs::last_write_time(directory_ + "/" + name,
                        fs::file_time_type::clock::now() - std::chrono::hours(2));
  }
  start();
  EXPECT_TRUE(fs::exists(directory_ + "/a.bin"));
  EXPECT_FALSE(fs::exists(directory_ + "/a.bin.tmp-1-1"));
  EXPECT_TRUE(fs::exists(directory_ + "/b.bin.tmp-1-1")) << "another may write it";
}

TEST_F(LlamaServerSlots, PiecesChangeNoByte) {
  std::string whole;
  int n_saved = 0;
  {
    const auto service = start();
    fill(*service, 1);
    n_saved = act(*service, 1, "save", "whole")["n_saved"];
    whole = bytes("whole");
  }
  ASSERT_GT(n_saved, 5 * 64);
  for (const int64_t piece_bytes : {1, 800'000}) {
    const auto service = start(piece_bytes);
    const ordered_json restored = act(*service, 0, "restore", "whole");
    EXPECT_EQ(restored["n_restored"], n_saved);
    const ordered_json saved = act(*service, 0, "save", "pieces");
    EXPECT_EQ(saved["n_saved"], n_saved);
    EXPECT_EQ(saved["n_written"], whole.size());
    EXPECT_TRUE(bytes("pieces") == whole) << piece_bytes;
    const ordered_json again = fill(*service, 0);
    EXPECT_EQ(again["tokens_cached"], again["tokens_evaluated"].get<int>() - 1);
    EXPECT_TRUE(lets_go(*service));
  }
}

// The others have numbers of their own: who has none is given any, and what was under it goes.
TEST_F(LlamaServerSlots, ChangeNobodysAnswer) {
  const auto service = start(1);
  const auto ask = [&](int seed) {
    return service
        ->post("/completion", {{"prompt", fmt::format("{} birds", seed % 7)},
                               {"n_predict", 60},
                               {"temperature", 1},
                               {"ignore_eos", true},
                               {"seed", seed},
                               {"id_slot", seed % 3 == 2 ? 3 : seed % 3}})["content"]
        .get<std::string>();
  };
  std::vector<std::string> alone;
  for (int seed = 0; seed < 12; ++seed)
    alone.push_back(ask(seed));
  const ordered_json first = fill(*service, 2);
  std::vector<std::future<std::vector<std::string>>> others;
  for (int client = 0; client < 3; ++client) {
    others.push_back(std::async(std::launch::async, [&, client] {
      std::vector<std::string> out;
      for (int seed = client; seed < 12; seed += 3)
        out.push_back(ask(seed));
      return out;
    }));
  }
  for (int i = 0; i < 6; ++i) {
    const std::string file = fmt::format("{}.bin", i % 2);
    const ordered_json saved = act(*service, 2, "save", file);
    EXPECT_GT(saved.value("n_saved", 0), 0) << saved;
    if (i % 3 == 0) act(*service, 2, "erase", "");
    EXPECT_GT(act(*service, 2, "restore", file)["n_restored"], 0);
  }
  for (int client = 0; client < 3; ++client) {
    const std::vector<std::string> got = others[static_cast<size_t>(client)].get();
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_EQ(got[i], alone[static_cast<size_t>(client) + 3 * i]);
  }
  EXPECT_EQ(fill(*service, 2)["content"], first["content"]);
  EXPECT_TRUE(bytes("0.bin") == bytes("1.bin"));
  EXPECT_TRUE(lets_go(*service));
}

// What was computed under a number may have left the cache since. A file that was good stays so.
TEST_F(LlamaServerSlots, WhatIsGoneTakesNoGoodFilesPlace) {
  const auto service = start();
  fill(*service, 1);
  act(*service, 1, "save", "a");
  const std::string good = bytes("a");
  EXPECT_EQ(service->client().post("/flush_cache", "{}").status, 200);
  int status = 0;
  const ordered_json refused = act(*service, 1, "save", "a", &status);
  EXPECT_EQ(status, 409) << refused;
  EXPECT_THAT(refused.dump(), HasSubstr("got none of them; nothing was written"));
  EXPECT_EQ(bytes("a"), good);
  EXPECT_EQ(files(), std::vector<std::string>{"a"});
  EXPECT_TRUE(lets_go(*service));
  EXPECT_GT(act(*service, 1, "restore", "a")["n_restored"], 200);
}

TEST_F(LlamaServerSlots, SayHowMuchIsKeptStill) {
  ServiceOptions options = qw::testing::service_options();
  options.models[0].open.slot_save_path = directory_;
  options.models[0].open.engine.ctx = 256;  // 8 pages in all
  options.models[0].open.engine.n_slots = 2;
  const RunningService service(options);
  const auto compute = [&](int slot, int first, int n_tokens) {
    ordered_json prompt = ordered_json::array();
    for (int i = 0; i < n_tokens; ++i)
      prompt.push_back(first + i);
    service.post("/completion", {{"prompt", prompt}, {"n_predict", 1}, {"id_slot", slot}});
  };
  compute(0, 300, 130);  // 3 pages
  EXPECT_FALSE(act(service, 0, "save", "a").contains("warnings")) << "all that was computed";
  compute(1, 1000, 240);  // 4
  compute(1, 2000, 150);  // 3, for which two of the first make room, the last ones
  int status = 0;
  const ordered_json saved = act(service, 0, "save", "b", &status);
  EXPECT_EQ(status, 200);
  EXPECT_EQ(saved["n_saved"], 64) << saved;
  ASSERT_TRUE(saved.contains("warnings"));
  EXPECT_EQ(saved["warnings"][0], "id_slot: 64 of its 131 tokens are kept still");
}

// What is no file is refused, and waited for by nobody.
TEST_F(LlamaServerSlots, TakeFilesOnly) {
  const auto service = start();
  fs::create_directory(directory_ + "/directory");
  ASSERT_EQ(::mkfifo((directory_ + "/fifo").c_str(), 0600), 0);
  for (const char* name : {"directory", "fifo"}) {
    int status = 0;
    EXPECT_THAT(act(*service, 0, "restore", name, &status).dump(), HasSubstr("filename")) << name;
    EXPECT_EQ(status, 400) << name;
  }
  fill(*service, 0);
  fs::remove_all(directory_);
  int status = 0;
  const ordered_json refused = act(*service, 0, "save", "a", &status);
  EXPECT_EQ(status, 500);
  EXPECT_THAT(refused.dump(), HasSubstr("into the directory of --slot-save-path, got none there"));
}

TEST_F(LlamaServerSlots, SayHowMuchCameBackIntoASmallCache) {
  {
    const auto service = start();
    fill(*service, 0);
    act(*service, 0, "save", "a");
  }
  const auto service = start(1, /*ctx=*/256);
  int status = 0;
  const ordered_json restored = act(*service, 0, "restore", "a", &status);
  EXPECT_EQ(status, 200);
  EXPECT_EQ(restored["n_restored"], 256) << restored;
  EXPECT_EQ(restored["n_read"], 5 * 64 * 6144) << "no more than it takes to see";
  const ordered_json saved = act(*service, 0, "save", "b");
  EXPECT_EQ(saved["n_saved"], 256);
  // The beginning is right: what starts alike goes on with it, to the same answer.
  ordered_json body = body_of(0, 20);
  const ordered_json again = service->post("/completion", body);
  EXPECT_GT(again["tokens_cached"], 60);
  EXPECT_EQ(again["content"], start()->post("/completion", body)["content"]);
  EXPECT_TRUE(lets_go(*service));
}

TEST_F(LlamaServerSlots, AChangedByteIsFoundBeforeAnythingIsRestored) {
  const auto service = start(1);
  fill(*service, 0);
  act(*service, 0, "save", "a");
  act(*service, 0, "erase", "");
  const std::string whole = bytes("a");
  for (const size_t at : {size_t{3}, size_t{20}, size_t{200}, whole.size() / 2, whole.size() - 1}) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    std::ofstream(directory_ + "/b", std::ios::binary) << changed;
    int status = 0;
    act(*service, 0, "restore", "b", &status);
    EXPECT_EQ(status, 400) << at;
    EXPECT_EQ(stats(*service).n_kept_pages, 0);
  }
  EXPECT_EQ(act(*service, 0, "save", "c")["n_saved"], 0);
}

// After its first piece was copied, every way that a save can end before its end.
TEST_F(LlamaServerSlots, AFullDiskEndsASaveAndLeavesNothing) {
  const auto service = start(1);
  fill(*service, 0);
  struct rlimit limit {};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t most : {rlim_t{0}, rlim_t{1'500'000}}) {
    const struct rlimit small = {most, limit.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &small);
    int status = 0;
    const std::string answer = act(*service, 0, "save", "a", &status).dump();
    ::setrlimit(RLIMIT_FSIZE, &limit);
    EXPECT_EQ(status, 500);
    EXPECT_THAT(answer, HasSubstr("expected to write it"));
    EXPECT_THAT(answer, ::testing::Not(HasSubstr(directory_)));
    EXPECT_THAT(files(), ::testing::IsEmpty());
    EXPECT_TRUE(lets_go(*service));
  }
  std::signal(SIGXFSZ, handler);
  EXPECT_GT(act(*service, 0, "save", "a")["n_saved"], 0);
}

/// A save that stands between two of its pieces.
class SlotSaveUnderWay : public LlamaServerSlots {
 protected:
  void SetUp() override {
    LlamaServerSlots::SetUp();
    service_ = start(1);
    fill(*service_, 0);
    gate_ = std::make_unique<EngineGate>(*service_);
    client_ = std::make_unique<HttpClient>(service_->service.port());
  }
  void begin(const std::string& headers = "") {
    client_->send(HttpClient::post_text("/slots/0?action=save", R"({"filename": "a"})", headers));
    // Until it has copied one piece and is to copy another.
    ASSERT_TRUE(comes_true([&] {
      gate_->step();
      return !files().empty();
    }));
    for (int i = 0; i < 3; ++i) {
      gate_->step();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ASSERT_THAT(files(), ::testing::ElementsAre(HasSubstr("a.tmp-")));
    const HostStats now = stats(*service_);
    EXPECT_LT(now.n_free_pages, now.n_pages) << "they are held";
  }
  void TearDown() override {
    gate_.reset();
    client_.reset();
    service_.reset();
    EXPECT_THAT(files(), ::testing::Not(::testing::Contains(HasSubstr(".tmp-"))));
    LlamaServerSlots::TearDown();
  }

  std::unique_ptr<RunningService> service_;
  std::unique_ptr<EngineGate> gate_;
  std::unique_ptr<HttpClient> client_;
};

TEST_F(SlotSaveUnderWay, GoesOnWhenNothingHappens) {
  begin();
  gate_->open();
  EXPECT_EQ(client_->read().status, 200);
  EXPECT_THAT(files(), ::testing::ElementsAre("a"));
  EXPECT_TRUE(lets_go(*service_));
  EXPECT_GT(act(*service_, 1, "restore", "a")["n_restored"], 0);
}

TEST_F(SlotSaveUnderWay, EndsWhenItsClientGoes) {
  begin();
  client_->close();
  ASSERT_TRUE(comes_true([&] {
    std::promise<size_t> n;
    service_->service.services().post(
        [&] { n.set_value(service_->service.services().http->n_connections()); });
    return n.get_future().get() == 0;
  }));
  gate_->open();
  EXPECT_TRUE(comes_true([&] { return files().empty(); }));
  EXPECT_TRUE(lets_go(*service_));
}

TEST_F(SlotSaveUnderWay, EndsWithItsTime) {
  begin("x-request-timeout: 1.5\r\n");
  const HttpAnswer answer = client_->read();
  EXPECT_EQ(answer.status, 504);
  EXPECT_THAT(answer.body, HasSubstr("expected the answer within 1.5 s"));
  gate_->open();
  EXPECT_TRUE(comes_true([&] { return files().empty(); }));
  EXPECT_TRUE(lets_go(*service_));
  EXPECT_EQ(client_->get("/health").status, 200) << "the connection goes on";
}

TEST_F(SlotSaveUnderWay, EndsWithTheServer) {
  begin();
  auto opened = std::async(std::launch::async, [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    gate_->forget_model();
    gate_->open();
  });
  service_->service.drain();
  service_.reset();
  opened.get();
  EXPECT_EQ(client_->read().status, 0);
}

// Its model is no longer offered, and goes with it.
TEST_F(SlotSaveUnderWay, GoesOnWhenItsModelIsUnloaded) {
  begin();
  const std::weak_ptr<ServedModel> model = gate_->model();
  service_->service.services().hub->unload("mini");
  gate_->forget_model();
  gate_->open();
  EXPECT_EQ(client_->read().status, 200);
  EXPECT_THAT(files(), ::testing::ElementsAre("a"));
  EXPECT_TRUE(comes_true([&] { return model.expired(); }));
}

TEST_F(LlamaServerSlots, ARestoreGoesOnWhenItsModelIsUnloaded) {
  const auto service = start(1);
  fill(*service, 0);
  act(*service, 0, "save", "a");
  act(*service, 0, "erase", "");
  EngineGate gate(*service);
  HttpClient client = service->client();
  client.send(HttpClient::post_text("/slots/0?action=restore", R"({"filename": "a"})"));
  ASSERT_TRUE(comes_true([&] {
    gate.step();
    return stats(*service).n_kept_pages > 0;
  }));
  const std::weak_ptr<ServedModel> model = gate.model();
  service->service.services().hub->unload("mini");
  gate.forget_model();
  gate.open();
  EXPECT_EQ(client.read().status, 200);
  EXPECT_TRUE(comes_true([&] { return model.expired(); }));
  EXPECT_EQ(service->post("/completion", {{"prompt", "One"}, {"n_predict", 1}})["tokens_predicted"],
            1)
      << "it is loaded again";
}

// While it does, others wait without costing anything; they go on as soon as nobody wants the file.
TEST_F(LlamaServerSlots, ADiskThatHangsKeepsPagesNoLongerThanItsClientStays) {
  const auto service = start(1, /*ctx=*/1024);
  fill(*service, 0);
  std::promise<void> disk;
  service->service.services().file_worker->post(
      [hangs = disk.get_future().share()] { hangs.wait(); });
  HttpClient saver = service->client(), other = service->client();
  saver.send(HttpClient::post_text("/slots/0?action=save", R"({"filename": "a"})"));
  EXPECT_TRUE(comes_true([&] {
    const HostStats now = stats(*service);
    return now.n_free_pages < now.n_pages;
  }));
  const ordered_json body = {{"prompt", std::vector<int>(600, 100)}, {"n_predict", 5}, {"seed", 2}};
  other.send(HttpClient::post_text("/completion", body.dump()));
  EXPECT_TRUE(comes_true([&] { return stats(*service).n_waiting == 1; }));
  const int64_t n_steps = stats(*service).n_steps;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(stats(*service).n_steps, n_steps + 1) << "the engine sleeps";
  saver.close();
  EXPECT_EQ(other.read().status, 200);
  EXPECT_TRUE(lets_go(*service));
  disk.set_value();
  EXPECT_TRUE(comes_true([&] { return files().empty(); }));
}

// Others find no room while the pages are held: they wait, and go on.
TEST_F(LlamaServerSlots, OthersWaitForPagesThatAreSaved) {
  const auto service = start(1, /*ctx=*/1024);
  const ordered_json body = {{"prompt", std::vector<int>(600, 100)}, {"n_predict", 5}, {"seed", 2}};
  const ordered_json alone = service->post("/completion", body);
  ASSERT_TRUE(alone.contains("content")) << alone;
  fill(*service, 0);
  EngineGate gate(*service);
  HttpClient saver = service->client(), other = service->client();
  saver.send(HttpClient::post_text("/slots/0?action=save", R"({"filename": "a"})"));
  ASSERT_TRUE(comes_true([&] {
    gate.step();
    return !files().empty();
  }));
  other.send(HttpClient::post_text("/completion", body.dump()));
  ASSERT_TRUE(comes_true([&] { return gate.model()->host().n_open() == 1; }));
  // The engine takes it, and looks for pages. The save goes on meanwhile, by a page a step.
  ASSERT_TRUE(comes_true([&] {
    if (stats(*service).n_waiting == 1) return true;
    gate.step();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return false;
  }));
  ASSERT_THAT(files(), ::testing::ElementsAre(HasSubstr("a.tmp-"))) << "they are held still";
  gate.open();
  EXPECT_EQ(saver.read().status, 200);
  const HttpAnswer answer = other.read();
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(ordered_json::parse(answer.body)["content"], alone["content"]);
  EXPECT_TRUE(lets_go(*service));
}

}  // namespace
}  // namespace qw::server
