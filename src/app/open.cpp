#include "app/open.h"

#include <charconv>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

// PATH[:scale]; a colon that is part of an existing path, or is not followed by a number, stays.
std::pair<std::string, double> parse_adapter(const std::string& text) {
  const size_t colon = text.rfind(':');
  std::error_code ignored;
  if (colon == std::string::npos || std::filesystem::exists(text, ignored)) return {text, 1.0};
  double scale = 0;
  const char* first = text.data() + colon + 1;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(first, last, scale);
  if (error != std::errc{} || end != last || first == last) return {text, 1.0};
  return {text.substr(0, colon), scale};
}

}  // namespace

OpenOptions open_options(const CommonOptions& options) {
  LoadSettings settings = options.load;
  settings.quiet = false;
  for (const std::string& adapter : options.adapters)
    settings.adapters.push_back(parse_adapter(adapter));
  OpenOptions open = open_options(settings);
  open.cancel = &interrupted();
  open.on_warning = [](const std::string& text) { logger().warn("{}", text); };
  return open;
}

std::unique_ptr<LoadedModel> open_for_running(const CommonOptions& options) {
  return open_for_running(options, open_options(options));
}

std::unique_ptr<LoadedModel> open_for_running(const CommonOptions& options,
                                              const OpenOptions& open) {
  init_logging(options.log_level);
  return open_model(model_path(options), open);
}

ModelFiles open_for_reading(const CommonOptions& options, bool weights_required) {
  init_logging(options.log_level);
  open_options(options);  // flags that have no effect here must still be well formed
  ModelFiles files = open_files(model_path(options), weights_required);
  for (const std::string& warning : files.warnings)
    logger().warn("{}", warning);
  return files;
}

const Tokenizer& tokenizer_of(const ModelFiles& files, const std::string& path) {
  if (!files.tokenizer) {
    fail(ErrorKind::kNotFound, "tokenizer",
         "vocabulary: expected tokenizer.json, vocab.json with merges.txt, or qwen.tiktoken, got "
         "none "
         "({})",
         printable(path, 4096));
  }
  return *files.tokenizer;
}

}  // namespace qw::app
