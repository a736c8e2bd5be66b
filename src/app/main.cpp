// The qianwen program: finds the subcommand, runs it, turns errors into one line and an exit code.
//
// Level 8 (app).
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/version.h"
#include "base/error.h"
#include "base/log.h"

namespace {

using qw::Error;
using qw::ErrorKind;

int report(ErrorKind kind, const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "qianwen: error: %s\n", message.c_str());
  return qw::exit_code(kind);
}

// CLI11 throws for --help and --version too; those print and succeed.
int report_parse(const CLI::App& root, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) {
    std::ostringstream out;
    root.exit(error, out, out);
    qw::app::print_result(out.str());
    return 0;
  }
  if (dynamic_cast<const CLI::ValidationError*>(&error) != nullptr) {
    // Of a validator of ours, which says what it expected.
    return report(ErrorKind::kInvalidArgument,
                  std::string("[command line] ") + qw::printable(error.what(), 400));
  }
  return report(ErrorKind::kInvalidArgument,
                "[command line] arguments: expected those of qianwen help COMMAND, got: " +
                    qw::printable(error.what(), 400));
}

bool is_command(const CLI::App& root, const std::string& name) {
  return !root.get_subcommands([&](const CLI::App* app) { return app->get_name() == name; })
              .empty();
}

int run(int argc, char** argv) {
  CLI::App root(
      "Qwen1.5, whole and native: chat with, run, measure and inspect any published checkpoint",
      "qianwen");
  root.set_version_flag("--version", qw::app::version_text());
  root.require_subcommand(1);
  root.set_help_flag("-h,--help", "This text; qianwen help COMMAND for one command");
  root.fallthrough(false);

  std::vector<qw::app::Command> commands = {
      qw::app::register_chat(root),     qw::app::register_generate(root),
      qw::app::register_score(root),    qw::app::register_perplexity(root),
      qw::app::register_tokenize(root), qw::app::register_detokenize(root),
      qw::app::register_render(root),   qw::app::register_inspect(root),
      qw::app::register_merge(root),    qw::app::register_extract(root),
      qw::app::register_plan(root),     qw::app::register_info(root),
      qw::app::register_bench(root),    qw::app::register_imatrix(root),
      qw::app::register_serve(root),    qw::app::register_replay(root),
      qw::app::register_quantize(root), qw::app::register_convert(root),
      qw::app::register_compare(root),
  };
  std::string topic;
  CLI::App* help = root.add_subcommand("help", "Help on a command");
  help->add_option("COMMAND", topic, "The command");
  std::string shell;
  CLI::App* completion =
      root.add_subcommand("completion", "Shell completion script for bash, zsh or fish");
  completion->add_option("SHELL", shell, "bash, zsh or fish")->required();

  if (argc > 1 && argv[1][0] != '-' && !is_command(root, argv[1])) {
    return report(ErrorKind::kInvalidArgument,
                  "[command line] command: expected one that qianwen --help lists, got '" +
                      qw::printable(argv[1]) + "'");
  }
  try {
    root.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return report_parse(root, error);
  }
  if (help->parsed()) {
    if (!topic.empty() && !is_command(root, topic)) {
      return report(ErrorKind::kInvalidArgument,
                    "[command line] help: expected a command, got '" + qw::printable(topic) + "'");
    }
    qw::app::print_result(topic.empty() ? root.help()
                                        : root.get_subcommand(topic)->help(root.get_name()));
    return 0;
  }
  if (completion->parsed()) {
    qw::app::print_result(qw::app::completion_script(root, shell));
    return 0;
  }
  for (auto& command : commands) {
    if (command.app->parsed()) command.run();
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    qw::app::occupy_standard_streams();
    qw::init_logging("info");
    qw::app::install_signal_handlers();
    return run(argc, argv);
  } catch (const qw::app::ClosedPipe&) {
    return qw::exit_code(ErrorKind::kIo);
  } catch (const Error& error) {
    return report(error.kind(), error.message());
  } catch (const std::bad_alloc&) {
    return report(ErrorKind::kOutOfMemory, "[memory] allocation: expected memory, got none");
  } catch (const std::exception& error) {
    return report(ErrorKind::kInternal,
                  std::string("[internal] program: expected no unforeseen error, got: ") +
                      qw::printable(error.what(), 400));
  }
}
