#include "app/version.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "base/error.h"
#include "kernels/isa.h"

namespace qw::app {

extern const char* const kGitHash;  // cmake/git_hash.cmake writes it at every build

std::string build_commit() {
  return kGitHash;
}

std::string version_text() {
  return fmt::format("qianwen {} ({})\ncompiler: {}\nISA paths: {}", QIANWEN_VERSION, kGitHash,
#if defined(__clang__)
                     "clang " __clang_version__,
#else
                     "gcc " __VERSION__,
#endif
                     fmt::join(kernels::built_isa_paths(), ", "));
}

namespace {

struct Entry {
  std::string name, description;
  std::vector<std::string> flags;
};

std::vector<Entry> entries(const CLI::App& root) {
  std::vector<Entry> list;
  for (const CLI::App* command : root.get_subcommands(nullptr)) {
    Entry entry{command->get_name(), command->get_description(), {}};
    for (const CLI::Option* option : command->get_options(nullptr)) {
      for (const std::string& name : option->get_lnames())
        entry.flags.push_back("--" + name);
    }
    list.push_back(std::move(entry));
  }
  return list;
}

std::string bash_script(const std::vector<Entry>& list) {
  std::string names, cases;
  for (const Entry& entry : list) {
    names += (names.empty() ? "" : " ") + entry.name;
    cases += fmt::format("    {}) words=\"{}\" ;;\n", entry.name, fmt::join(entry.flags, " "));
  }
  return fmt::format(
      "_qianwen() {{\n"
      "  local word=\"${{COMP_WORDS[COMP_CWORD]}}\" words=\"\"\n"
      "  if (( COMP_CWORD == 1 )); then\n"
      "    COMPREPLY=($(compgen -W \"{}\" -- \"$word\"))\n    return\n  fi\n"
      "  case \"${{COMP_WORDS[1]}}\" in\n{}  esac\n"
      "  if [[ \"$word\" == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
      "  else\n    COMPREPLY=($(compgen -f -- \"$word\"))\n  fi\n}}\n"
      "complete -o filenames -F _qianwen qianwen\n",
      names, cases);
}

std::string fish_script(const std::vector<Entry>& list) {
  std::string script;
  for (const Entry& entry : list) {
    script += fmt::format("complete -c qianwen -n __fish_use_subcommand -a {} -d '{}'\n",
                          entry.name, entry.description);
    for (const std::string& flag : entry.flags) {
      script += fmt::format("complete -c qianwen -n '__fish_seen_subcommand_from {}' -l {}\n",
                            entry.name, flag.substr(2));
    }
  }
  return script;
}

}  // namespace

std::string completion_script(const CLI::App& root, const std::string& shell) {
  const std::vector<Entry> list = entries(root);
  if (shell == "bash") return bash_script(list);
  if (shell == "zsh") return "autoload -U +X bashcompinit && bashcompinit\n" + bash_script(list);
  if (shell == "fish") return fish_script(list);
  fail(ErrorKind::kInvalidArgument, "completion", "shell: expected bash, zsh or fish, got '{}'",
       printable(shell));
}

}  // namespace qw::app
