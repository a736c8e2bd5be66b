// The conversation of qianwen chat: on a terminal, with its signals, and from a pipe, to its end.
#include <csignal>
#include <nlohmann/json.hpp>

#include "support/cli_fixture.h"
#include "support/golden.h"
#include "support/terminal.h"

namespace qw {
namespace {

using nlohmann::json;
using test::kBundled;
using test::qianwen;
using test::Ran;
using testing::HasSubstr;

class CliChat : public test::CliTest {
 protected:
  Ran on_terminal(const std::vector<test::TerminalStep>& steps) const {
    return test::run_on_terminal(QIANWEN_PROGRAM, {"chat", kBundled, "--temperature", "0"}, steps,
                                 {"XDG_STATE_HOME=" + folder_.string(), "TERM=xterm"});
  }
  std::string history() const {
    std::ifstream in(folder_ / "qianwen" / "history");
    return {std::istreambuf_iterator<char>(in), {}};
  }
};

TEST_F(CliChat, SaysOnceWhatHasNoEffectBehindItsPrompt) {
  const Ran ran = qianwen({"chat", kBundled, "--temperature", "0", "--max-new-tokens", "4",
                           "--min-length", "3", "--forced-bos-token-id", "5"},
                          {.input = "Hello!\nAgain.\n"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  for (const std::string part : {"min_length 3 has no effect: the length of the prompt alone is",
                                 "forced_bos_token_id 5 has no effect: it follows"}) {
    const size_t first = ran.err.find(part);
    ASSERT_NE(first, std::string::npos) << part << " in " << ran.err;
    EXPECT_EQ(ran.err.find(part, first + 1), std::string::npos) << ran.err;
  }
}

TEST_F(CliChat, AnswersOnATerminalUntilCtrlD) {
  const Ran ran = on_terminal({{"> ", "What is the capital of Japan?\r"},
                               {"The capital of Japan is Tokyo.", ""},
                               {"tok/s", ""},
                               {"> ", "\x04"}});
  EXPECT_FALSE(ran.timed_out) << ran.out;
  EXPECT_EQ(ran.code, 0) << ran.out;
  EXPECT_THAT(history(), HasSubstr("Japan"));
}

TEST_F(CliChat, TerminationEndsItAtThePromptAndKeepsTheHistory) {
  const Ran ran = on_terminal({{"> ", ":seed 7\r"}, {"> ", "", SIGTERM}});
  EXPECT_FALSE(ran.timed_out) << ran.out;
  EXPECT_EQ(ran.code, 130) << ran.out;
  EXPECT_THAT(ran.out, HasSubstr("qianwen: error: [cancel]"));
  EXPECT_THAT(history(), HasSubstr(":seed"));
}

TEST_F(CliChat, AClosedTerminalEndsItAndKeepsTheHistory) {
  for (const test::TerminalStep& end :
       std::vector<test::TerminalStep>{{"> ", "", SIGHUP}, {.shown = "> ", .hang_up = true}}) {
    SCOPED_TRACE(end.hang_up ? "hang up" : "signal");
    std::filesystem::remove_all(folder_ / "qianwen");
    const Ran ran = on_terminal({{"> ", ":seed 7\r"}, end});
    EXPECT_FALSE(ran.timed_out) << ran.out;
    EXPECT_EQ(ran.code, 130) << ran.out;
    EXPECT_THAT(history(), HasSubstr(":seed"));
  }
}

TEST_F(CliChat, AClosedTerminalEndsItWhereHangUpsAreIgnored) {
  const std::string command = "trap '' HUP; exec " + std::string(QIANWEN_PROGRAM) + " chat";
  // Several times: where in its work the hang-up meets the program is a matter of luck.
  for (int round = 0; round < 6; ++round) {
    const std::string typed = round % 2 == 0 ? ":seed 7\r" : "What is the capital of Japan?\r";
    const Ran ran = test::run_on_terminal("/bin/sh", {"-c", command},
                                          {{.shown = "> ", .typed = typed, .hang_up = true}},
                                          {"XDG_STATE_HOME=" + folder_.string(), "TERM=xterm"});
    EXPECT_FALSE(ran.timed_out) << ran.out;
    EXPECT_LT(ran.code, 128) << ran.out;
    EXPECT_TRUE(std::filesystem::exists(folder_ / "qianwen" / "history"));
  }
}

TEST_F(CliChat, AClosedInputOrAnEmptyQuestionIsRefused) {
  test::expect_failure(qianwen({"chat"}, {.close_stdin = true}), 7, "standard input");
  EXPECT_EQ(qianwen({"chat"}, {.input = ""}).code, 0) << "an empty input is no closed one";
  test::expect_failure(qianwen({"chat", "-p", ""}), 2, "prompt");
}

TEST_F(CliChat, InterruptEndsAnAnswerAndTerminationTheProgram) {
  const std::vector<test::TerminalStep> endless = {{"> ", ":set ignore_eos=true\r"},
                                                   {"> ", ":set max_new_tokens=1500\r"},
                                                   {"> ", ":set do_sample=false\r"},
                                                   {"> ", "What is the capital of Japan?\r"},
                                                   {"Tokyo", "", SIGINT},
                                                   {"interrupted]", ""},
                                                   {"> ", "What is the capital of Japan?\r"},
                                                   {"Tokyo", "", SIGTERM}};
  const Ran ran = on_terminal(endless);
  EXPECT_FALSE(ran.timed_out) << ran.out;
  EXPECT_EQ(ran.code, 130) << ran.out;
  EXPECT_THAT(history(), HasSubstr("Japan"));
}

TEST_F(CliChat, TheLastMessageOfAPipeIsNotLost) {
  const std::vector<std::string> args = {"chat", kBundled, "--temperature", "0"};
  EXPECT_EQ(qianwen(args, {.input = "What is the capital of Japan?\\"}).out,
            "The capital of Japan is Tokyo.\n");
  EXPECT_EQ(qianwen(args, {.input = "\"\"\"What is the capital\nof Japan?\"\"\""}).code, 0);
  test::expect_failure(qianwen(args, {.input = "\"\"\"What is\nthe capital"}), 2, "\"\"\"");
}

TEST_F(CliChat, UndoKeepsTheSystemMessageAndLoadingStartsOver) {
  const std::string path = write(
      "c.json", R"([{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}])");
  const auto history_after = [&](const std::string& commands) {
    return qianwen({"chat", kBundled}, {.input = ":load " + path + "\n" + commands}).out;
  };
  EXPECT_EQ(history_after(":undo\n:history\n"), "[system] S\n");
  test::expect_failure(qianwen({"chat", kBundled}, {.input = ":load " + path + "\n:undo\n:undo\n"}),
                       2, "undo");
  // A seed gives the same answer to a loaded conversation, whatever was said before.
  const std::string question =
      write("q.json", R"([{"role": "user", "content": "Tell me about your day."},
                          {"role": "assistant", "content": ""}])");
  const auto answer = [&](const std::string& before) {
    const Ran ran =
        qianwen({"chat", kBundled, "--temperature", "1.5", "--top-k", "0", "--seed", "3", "--json"},
                {.input = before + ":load " + question + "\n:regen\n"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    const size_t last = ran.out.rfind('\n', ran.out.size() - 2);
    return json::parse(ran.out.substr(last == std::string::npos ? 0 : last + 1))["ids"];
  };
  EXPECT_EQ(answer(""), answer("Hello!\n"));
  const Ran stats = qianwen({"chat", kBundled}, {.input = "Hello!\n:load " + path + "\n:stats\n"});
  EXPECT_THAT(stats.err, HasSubstr("context: 0 of"));
}

}  // namespace
}  // namespace qw
