#include "api/open_options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"

namespace qw {

namespace {

/// 0 is every setting's default.
void check_range(int64_t value, int64_t most, std::string_view setting) {
  if (value < 0 || value > most) {
    fail(ErrorKind::kInvalidArgument, "settings", "{}: expected 0 (the default) to {}, got {}",
         setting, most, value);
  }
}

void check_kv_type(const std::string& name) {
  static constexpr std::array<std::string_view, 5> kTypes = {"f16", "bf16", "f32", "q8_0", "q4_0"};
  if (std::ranges::find(kTypes, name) != kTypes.end()) return;
  fail(ErrorKind::kInvalidArgument, "settings", "kv type: expected one of {}, got '{}'",
       fmt::join(kTypes, ", "), printable(name));
}

}  // namespace

std::string kv_type_of(const LoadSettings& settings) {
  if (!settings.kv_type.empty()) return settings.kv_type;
  return settings.device == "reference" || settings.activations == "f32" ? "f32" : "f16";
}

OpenOptions open_options(const LoadSettings& settings) {
  constexpr int64_t kMaxTokens = int64_t{1} << 31, kMaxBytes = int64_t{1} << 50;
  check_range(settings.context, kMaxTokens, "context (ctx)");
  check_range(settings.chunk, kMaxTokens, "chunk");
  OpenOptions open;
  open.device = settings.device;
  open.backend.n_threads = settings.threads;
  open.backend.isa = settings.isa;
  open.backend.activations = activation_mode_from_name(settings.activations);
  open.backend.packed_cache = settings.packed_cache;
  open.backend.deterministic = settings.deterministic;
  open.backend.check();
  open.engine.ctx = settings.context;
  open.engine.kv_type = kv_type_of(settings);
  check_kv_type(open.engine.kv_type);
  open.engine.prefix_cache = settings.prefix_cache;
  open.prefix_cache_dir = settings.prefix_cache_dir;
  check_range(settings.prefix_cache_bytes, kMaxBytes, "prefix cache bytes");
  open.prefix_cache_bytes = settings.prefix_cache_bytes;
  if (settings.chunk > 0) open.engine.chunk_tokens = settings.chunk;
  for (const auto& [path, scale] : settings.adapters)
    open.adapters.push_back({path, scale});
  open.draft_model = settings.draft_model;
  open.quiet = settings.quiet;
  if (settings.quiet) open.on_warning = [](const std::string&) {};
  return open;
}

}  // namespace qw
