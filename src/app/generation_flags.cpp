#include "app/generation_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>

namespace qw::app {

namespace {

// "top_k" -> "--top-k", with a short form where people expect one.
std::string flag_names(const std::string& name) {
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  if (name == "max_new_tokens") flag = "-n," + flag;
  if (name == "num_return_sequences") flag += ",--n";
  if (name == "prompt_lookup_num_tokens") flag += ",--prompt-lookup";
  return flag;
}

}  // namespace

bool GenerationFlags::given(std::string_view name) const {
  return std::any_of(values.begin(), values.end(), [&](const auto& entry) {
    return entry.first == name && !entry.second.empty();
  });
}

GenerationConfig GenerationFlags::over(GenerationConfig config) const {
  for (const auto& [name, texts] : values) {
    for (const std::string& text : texts)
      config.set_text(name, text, ParameterSource::kUser);
  }
  for (const std::string& text : stop)
    config.set_text("stop_strings", text, ParameterSource::kUser);
  if (ignore_eos) config.set_text("ignore_eos", "true", ParameterSource::kUser);
  // A temperature (or another sampling parameter) given by hand asks for sampling.
  const bool asks_for_sampling = given("temperature") || given("top_k") || given("top_p") ||
                                 given("min_p") || given("typical_p");
  if (asks_for_sampling && !given("do_sample") && !config.do_sample && config.penalty_alpha == 0) {
    config.set_text("do_sample", "true", ParameterSource::kUser);
  }
  return config;
}

std::shared_ptr<GenerationFlags> add_generation_flags(CLI::App& app) {
  auto flags = std::make_shared<GenerationFlags>();
  const auto& names = GenerationConfig::names();
  flags->values.reserve(names.size());  // options point into it
  for (const std::string& name : names) {
    if (name == "stop_strings" || name == "ignore_eos" || name == "seed") continue;
    flags->values.emplace_back(name, std::vector<std::string>{});
    auto* option =
        app.add_option(flag_names(name), flags->values.back().second, name)->group("Generation");
    option->expected(1)->allow_extra_args(false)->multi_option_policy(
        CLI::MultiOptionPolicy::TakeLast);
  }
  app.add_option("--stop", flags->stop, "Text that ends the answer; may be repeated")
      ->group("Generation")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", flags->ignore_eos, "Go on after end tokens")->group("Generation");
  return flags;
}

}  // namespace qw::app
