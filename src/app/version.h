// What --version prints, and shell completion made from the commands themselves.
//
// Level 8 (app).
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace qw::app {

/// Version, git hash, compiler, ISA paths built.
std::string version_text();
/// The commit of the build; "-dirty" at its end: with edits.
std::string build_commit();
/// A completion script for "bash", "zsh" or "fish". Errors: invalid_argument.
std::string completion_script(const CLI::App& root, const std::string& shell);

}  // namespace qw::app
