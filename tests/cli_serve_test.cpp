// The serve command as a program: says where it listens, answers, and ends well when told to.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/adapter_writer.h"
#include "support/process.h"

namespace qw::test {
namespace {

using ::testing::HasSubstr;

/// Starts the server, runs `body` with $port and $pid, ends it by SIGTERM; its exit code is the
/// last line. The shell speaks HTTP itself, so that nothing but bash is needed.
Ran with_server(const std::string& flags, const std::string& body) {
  const std::string script =
      "out=$(mktemp)\n" + std::string(QIANWEN_PROGRAM) + " serve --port 0 --json --ctx 512 " +
      flags +
      " > $out &\n"
      "pid=$!\n"
      "while [[ ! -s $out ]] && kill -0 $pid 2> /dev/null; do sleep 0.05; done\n"
      "port=$(sed 's/.*\"port\":\\([0-9]*\\).*/\\1/' $out)\n"
      "ask() {\n"
      "  exec 3<> /dev/tcp/127.0.0.1/$port\n"
      "  printf 'POST %s HTTP/1.0\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\n\\r\\n%s' "
      "\"$1\" ${#2} \"$2\" >&3\n"
      "  cat <&3\n"
      "}\n" +
      body + "\nkill -TERM $pid\nwait $pid\necho \"exit $?\"\nrm -f $out\n";
  return run_program("/bin/bash", {"-c", script});
}

TEST(CliServe, AnswersAndEndsWhenToldTo) {
  const Ran ran = with_server(
      "",
      R"(ask /v1/completions '{"prompt": "The capital of", "max_tokens": 3, "temperature": 0}')");
  EXPECT_THAT(ran.out, HasSubstr("HTTP/1.0 200 OK"));
  EXPECT_THAT(ran.out, HasSubstr(R"("completion_tokens":3)"));
  EXPECT_THAT(ran.out, HasSubstr("exit 0\n"));
  EXPECT_THAT(ran.err, HasSubstr(R"("path":"/v1/completions","status":200)"));
  EXPECT_THAT(ran.err, ::testing::Not(HasSubstr("The capital")));
}

TEST(CliServe, AnswersUnderWayEndBeforeTheServerDoes) {
  const Ran ran = with_server(
      "--no-access-log",
      R"(ask /v1/completions '{"prompt": "One", "max_tokens": 400, "ignore_eos": true, "seed": 1}' &
         asker=$!
         sleep 0.1
         kill -TERM $pid
         wait $asker)");
  EXPECT_THAT(ran.out, HasSubstr(R"("completion_tokens":400)"));
  EXPECT_THAT(ran.out, HasSubstr("exit 0\n"));
}

// Probes are answered while the model is loaded, and requests told when to come again. Adapters, each
// of which is loaded before anybody is served, make that long enough to be seen.
TEST(CliServe, AnswersProbesWhileLoading) {
  Adapter adapter;
  for (const char* name : {"q_proj", "o_proj"}) {
    const std::string prefix = fmt::format("model.layers.0.self_attn.{}.", name);
    adapter.add(prefix + "lora_A.weight", {Adapter::kRank, 256});
    adapter.add(prefix + "lora_B.weight", {256, Adapter::kRank});
  }
  const std::string path = adapter.write_peft();
  const Ran ran = run_program("/bin/bash", {"-c", R"x(
    program=$1 adapter=$2
    work=$(mktemp -d)
    flags=()
    for i in $(seq 60); do
      cp -r "$adapter" "$work/$i"
      flags+=(--lora-modules "a$i=$work/$i")
    done
    "$program" serve --port 0 --ctx 512 --no-access-log "${flags[@]}" 2> "$work/log" &
    pid=$!
    until port=$(sed -n 's/.*listening at .*:\([0-9]*\), loading.*/\1/p' "$work/log") && [[ $port ]] ||
          ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
    ask() {
      exec 3<> /dev/tcp/127.0.0.1/$port
      printf '%s %s HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s' "$1" "$2" ${#3} "$3" >&3
      cat <&3
    }
    ask GET /health | head -1
    ask GET /ready | head -1
    ask POST /v1/completions '{"prompt": "One", "max_tokens": 1}' | grep -E '^HTTP|^Retry-After|loading'
    until ask GET /ready | grep -q '200 OK' || ! kill -0 $pid 2> /dev/null; do sleep 0.05; done
    ask POST /v1/completions '{"prompt": "One", "max_tokens": 1}' | head -1
    kill -TERM $pid; wait $pid; echo "exit $?"
    # And once more: the end may come while it loads.
    "$program" serve --port 0 --ctx 512 --no-access-log "${flags[@]}" 2> "$work/log_of_the_second" &
    pid=$!
    until grep -q 'listening at' "$work/log_of_the_second" || ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
    kill -TERM $pid; wait $pid; echo "exit $?"
    grep -o 'ended before .* was loaded' "$work/log_of_the_second"
    rm -rf "$work"
  )x", "bash", QIANWEN_PROGRAM, path});
  EXPECT_THAT(ran.out, ::testing::StartsWith("HTTP/1.0 200 OK\r\nHTTP/1.0 503 Service Unavailable\r\n"
                                             "HTTP/1.0 503 Service Unavailable\r\n"))
      << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("Retry-After: 2"));
  EXPECT_THAT(ran.out, HasSubstr("got it still loading"));
  EXPECT_THAT(ran.out, HasSubstr("\nHTTP/1.0 200 OK\r\nexit 0\nexit 0\nended before "));
}

TEST(CliServe, MakesKeysWhoseHashesItKnows) {
  const Ran made = qianwen({"serve", "--make-key", "me"});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto json = nlohmann::json::parse(made.out);
  EXPECT_EQ(json["entry"]["name"], "me");
  const std::string file =
      (std::filesystem::temp_directory_path() / ("qw_key_" + std::to_string(::getpid()))).string();
  std::ofstream(file) << nlohmann::json{{"keys", {json["entry"]}}};
  const Ran ran = with_server("--api-key-file " + file, "ask /v1/models ''");
  std::filesystem::remove(file);
  EXPECT_THAT(ran.out, HasSubstr("405"));  // the address is for GET: told before keys are asked for
  const Ran refused = qianwen({"serve", "--api-key-file", "/nonexistent"});
  EXPECT_EQ(refused.code, 3);
}

TEST(CliServe, ToldAndCalledInTheFormatOfTheModel) {
  const std::string ask = R"x(
    for model in b c a; do
      ask /apply-template "{\"model\": \"$model\", \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}],
          \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]}" |
        grep -o -m1 -e 'Action Input' -e tool_call -e FUNCTION | head -1
    done)x";
  const std::string path = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  const Ran ran =
      with_server("--no-access-log --served-model-name a --model b=" + path + " --model c=" + path +
                      " --tool-format react --tool-format b=hermes --tool-format c=auto",
                  ask);
  EXPECT_THAT(ran.out, HasSubstr("tool_call\nFUNCTION\nAction Input\nexit 0\n")) << ran.err;
}

TEST(CliServe, RefusesWhatItCannotServe) {
  EXPECT_EQ(qianwen({"serve", "/nonexistent"}).code, 3);
  EXPECT_EQ(qianwen({"serve", "--port", "70000"}).code, 2);
  EXPECT_EQ(qianwen({"serve", "--host", "example.invalid"}).code, 2);
  EXPECT_EQ(qianwen({"serve", "--model", "x"}).code, 2);
  for (const char* origin : {"chat.example", "https://chat.example/", "https://", ""}) {
    const Ran ran = qianwen({"serve", "--cors-origin", origin, "--openapi"});
    EXPECT_EQ(ran.code, 2) << origin;
    EXPECT_THAT(ran.err, HasSubstr("expected SCHEME://HOST[:PORT]")) << origin;
  }
  EXPECT_EQ(qianwen({"serve", "--cors-origin", "https://chat.example", "--cors-origin", "*",
                     "--allowed-host", "llm.example", "--openapi"})
                .code,
            0);
  EXPECT_EQ(qianwen({"serve", "--allowed-host", "llm.example:80", "--openapi"}).code, 2);
  EXPECT_THAT(qianwen({"serve", "--model", "a=b", "--model", "a=c"}).err, HasSubstr("twice"));
  const Ran format = qianwen({"serve", "--tool-format", "xml", "--openapi"});
  EXPECT_EQ(format.code, 2);
  EXPECT_THAT(format.err, HasSubstr("auto, qwen, react or hermes"));
  EXPECT_THAT(qianwen({"serve", "--tool-format", "other=react", "--openapi"}).err,
              HasSubstr("'other'"));
}

}  // namespace
}  // namespace qw::test
