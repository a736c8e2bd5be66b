#include "app/open.h"

#include <charconv>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

// PATH[:scale]; a colon that is part of an existing path, or is not followed by a number, stays.
AdapterSpec parse_adapter(const std::string& text) {
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

void require_at_least(int64_t value, int64_t least, std::string_view flag) {
  if (value < least) {
    fail(ErrorKind::kInvalidArgument, "command line", "{}: expected at least {}, got {}", flag,
         least, value);
  }
}

}  // namespace

std::string kv_type_of(const CommonOptions& options) {
  if (!options.kv_type.empty()) return options.kv_type;
  return options.device == "reference" || options.activations == "f32" ? "f32" : "f16";
}

OpenOptions open_options(const CommonOptions& options) {
  require_at_least(options.threads, 0, "--threads");
  require_at_least(options.ctx, 0, "--ctx");
  require_at_least(options.chunk, 0, "--chunk");
  constexpr int kMaxThreads = 1024;
  if (options.threads > kMaxThreads) {
    fail(ErrorKind::kInvalidArgument, "command line", "--threads: expected at most {}, got {}",
         kMaxThreads, options.threads);
  }
  OpenOptions open;
  open.device = options.device;
  open.backend.n_threads = options.threads;
  open.backend.isa = options.isa;
  open.backend.activations = activation_mode_from_name(options.activations);
  open.backend.deterministic = options.deterministic;
  open.engine.ctx = options.ctx;
  open.engine.kv_type = kv_type_of(options);
  if (options.chunk > 0) open.engine.chunk_tokens = options.chunk;
  for (const std::string& adapter : options.adapters)
    open.adapters.push_back(parse_adapter(adapter));
  open.cancel = &interrupted();
  open.on_warning = [](const std::string& text) { spdlog::warn("{}", text); };
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
  ModelFiles files = open_files(model_path(options), weights_required);
  for (const std::string& warning : files.warnings)
    spdlog::warn("{}", warning);
  return files;
}

const Tokenizer& tokenizer_of(const ModelFiles& files, const std::string& path) {
  if (!files.tokenizer) {
    fail(ErrorKind::kNotFound, "tokenizer",
         "expected tokenizer.json, vocab.json with merges.txt, or qwen.tiktoken, got none ({})",
         printable(path, 4096));
  }
  return *files.tokenizer;
}

}  // namespace qw::app
