#include "model/memory_plan.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "base/checked.h"
#include "base/error.h"
#include "model/sources.h"

namespace qw {

namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

std::string read_all(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// The number that follows `key` at the start of a line ("MemAvailable:  123 kB", "cache 456").
std::optional<int64_t> number_after(std::string_view text, std::string_view key) {
  size_t at = text.starts_with(key) ? 0 : text.find(fmt::format("\n{}", key));
  if (at == std::string_view::npos) return std::nullopt;
  at = text.find_first_of("0123456789", at + key.size() + (at == 0 ? 0 : 1));
  if (at == std::string_view::npos) return std::nullopt;
  int64_t value = 0;
  const auto result = std::from_chars(text.data() + at, text.data() + text.size(), value);
  return result.ec == std::errc{} ? std::optional(value) : std::nullopt;
}

/// What is left of one group's limit; page cache can be had back.
int64_t left_of_group(const std::string& directory, const char* limit_file, const char* usage_file,
                      const char* cache_key) {
  const auto limit = number_after(read_all(directory + "/" + limit_file), "");
  const auto usage = number_after(read_all(directory + "/" + usage_file), "");
  if (!limit || !usage) return kNoLimit;  // "max", or no such group
  const int64_t cache = number_after(read_all(directory + "/memory.stat"), cache_key).value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - cache));
}

int64_t left_of_cgroups(const std::string& proc, const std::string& root) {
  int64_t left = kNoLimit;
  std::istringstream lines(read_all(proc + "/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    // "0::/path" (v2), "4:memory:/path" (v1). Every ancestor limits, too.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && ("," + controllers + ",").find(",memory,") == std::string::npos) continue;
    std::filesystem::path group = line.substr(second + 1);
    const std::string base = v2 ? root : root + "/memory";
    while (true) {
      const std::string directory = base + group.string();
      left = std::min(left, v2 ? left_of_group(directory, "memory.max", "memory.current", "file ")
                               : left_of_group(directory, "memory.limit_in_bytes",
                                               "memory.usage_in_bytes", "total_cache "));
      if (!group.has_relative_path()) break;
      group = group.parent_path();
    }
  }
  return left;
}

int64_t left_of_address_space(const std::string& proc) {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kNoLimit;
  const int64_t pages = number_after(read_all(proc + "/self/statm"), "").value_or(0);
  const auto total = static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, kNoLimit));
  return std::max<int64_t>(0, total - pages * sysconf(_SC_PAGESIZE));
}

/// Of the program's own code, what is in memory: in smaps a mapping is a line "BEGIN-END PERMISSIONS
/// ... PATH", and lines of its sizes follow. 0 where the system does not say.
int64_t resident_code_kib(const std::string& proc) {
  std::error_code none;
  const std::string program = std::filesystem::read_symlink(proc + "/self/exe", none).string();
  if (program.empty()) return 0;
  std::istringstream lines(read_all(proc + "/self/smaps"));
  int64_t sum = 0;
  bool is_code = false;
  for (std::string line; std::getline(lines, line);) {
    const size_t permissions = line.find(' ') + 1;
    if (line.find('-') < permissions) {
      is_code = line.substr(permissions, 4).find('x') != std::string::npos &&
                line.ends_with(" " + program);
    } else if (is_code && line.starts_with("Rss:")) {
      sum += number_after(line, "Rss:").value_or(0);
    }
  }
  return sum;
}

/// f32 values per token: x, h, y, qkv, o and the widest FFN.
int64_t activation_floats(const ModelConfig& c) {
  const int64_t q = int64_t{c.n_heads} * c.head_dim, kv = int64_t{c.n_kv_heads} * c.head_dim;
  int64_t ffn = 2 * c.intermediate;
  if (c.moe) {  // gathered inputs, products and outputs of the chosen experts
    ffn = std::max(ffn, c.moe->top_k * (2 * c.hidden + 2 * c.moe->expert_intermediate) +
                            2 * c.moe->shared_intermediate + c.moe->n_experts);
  }
  return 3 * c.hidden + 2 * q + 2 * kv + ffn;
}

/// The widest input of a linear layer.
int64_t widest_input(const ModelConfig& c) {
  int64_t out = std::max({int64_t{c.hidden}, int64_t{c.n_heads} * c.head_dim});
  if (!c.moe) return std::max(out, int64_t{c.intermediate});
  return std::max({out, int64_t{c.intermediate}, int64_t{c.moe->expert_intermediate},
                   int64_t{c.moe->shared_intermediate}});
}

/// What is packed, and the pages of the files that packing and reading leave in memory.
struct WeightBytes {
  int64_t packed = 0;
  int64_t load_peak = 0;  // packed so far and the source of the layer at hand, at most
  int64_t table = 0;      // of the embedding, if its rows are read from the file; else 0
};

WeightBytes weight_bytes(const NetworkSources& sources, const Backend& backend) {
  WeightBytes out;
  const LinearSource& table = sources.embedding.parts.front();
  const int64_t own = backend.embedding_bytes(table);
  if (own == 0) out.table = table.published_bytes();
  bool is_table = true;  // for_each begins with it
  sources.for_each([&](const LinearParts& parts) {
    const bool shared = is_table && sources.tied;  // the head's product is the table's, too
    for (const LinearSource& part : parts.parts) {
      const int64_t bytes = is_table && !shared ? own : backend.packed_bytes(part);
      out.packed = checked_add(out.packed, bytes, "weights");
    }
    is_table = false;
    out.load_peak = std::max(out.load_peak, out.packed + parts.published_bytes());
  });
  return out;
}

std::string mib(int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

int64_t adapter_bytes(const AdapterFile& file, const ModelConfig& config, const Backend& backend) {
  constexpr int64_t kFloat = sizeof(float);
  int64_t sum = 0;
  const auto add = [&](int64_t n, int64_t k) {
    const int64_t n_elems = checked_mul(n, k, "adapter", file.path);
    sum =
        checked_add(sum, checked_mul(n_elems, kFloat, "adapter", file.path), "adapter", file.path);
  };
  for (const LowRankDelta& delta : file.deltas) {
    add(delta.a.n, delta.a.k);
    add(delta.b.n, delta.b.k);
    add(static_cast<int64_t>(delta.magnitude.size()), 1);
  }
  for (const Replacement& replacement : file.replacements)
    sum = checked_add(sum, backend.packed_bytes(replacement.weight), "adapter", file.path);
  for (const NormReplacement& norm : file.norms)
    add(static_cast<int64_t>(norm.weight.size()), 1);
  if (!file.embedding_deltas.empty()) add(config.vocab, config.hidden);
  return sum;
}

int64_t program_memory_bytes(const std::string& proc) {
  const std::string status = read_all(proc + "/self/status");
  const int64_t code = number_after(status, "VmExe:").value_or(0);
  return (number_after(status, "VmRSS:").value_or(0) +
          std::max<int64_t>(0, code - resident_code_kib(proc))) *
         1024;
}

int64_t available_memory_bytes(const std::string& proc, const std::string& cgroups) {
  const auto kib = number_after(read_all(proc + "/meminfo"), "MemAvailable:");
  const int64_t machine = kib ? checked_mul<int64_t>(*kib, 1024, "MemAvailable") : kNoLimit;
  return std::min({machine, left_of_cgroups(proc, cgroups), left_of_address_space(proc)});
}

MemoryForecast forecast_memory(const Checkpoint& checkpoint, const ModelConfig& config,
                               const Backend& backend, const MemoryRequest& request) {
  const auto check = [](std::string_view name, int64_t value) {
    constexpr int64_t kMost = int64_t{1} << 31;
    if (value < 1 || value > kMost)
      fail(ErrorKind::kInvalidArgument, "memory", "{}: expected 1 to {}, got {}", name, kMost,
           value);
  };
  check("context", request.ctx);
  check("slots", request.n_slots);
  check("tokens per step", request.chunk_tokens);
  check("rows of logits", request.logit_rows);

  MemoryForecast out;
  const WeightBytes weights = weight_bytes(open_network(checkpoint, config), backend);
  out.weights = weights.packed;
  for (const AdapterSpec& adapter : request.adapters) {
    const int64_t bytes = adapter_bytes(read_adapter(adapter.path), config, backend);
    out.weights = checked_add(out.weights, bytes, "weights");
  }
  const int64_t page_tokens = backend.kv_page_tokens();
  const int64_t page_bytes = backend.kv_bytes({.n_layers = config.n_layers,
                                               .n_kv_heads = config.n_kv_heads,
                                               .head_dim = config.head_dim,
                                               .n_pages = 1,
                                               .type = request.kv_type});
  const int64_t pages =
      checked_mul(ceil_div(request.ctx, page_tokens), request.n_slots, "pages of the KV cache");
  out.kv = checked_mul(pages, page_bytes, "KV cache");
  out.kv_per_token = ceil_div(page_bytes, page_tokens);
  constexpr int64_t kFloat = sizeof(float);
  out.activations =
      checked_mul(activation_floats(config) * kFloat, request.chunk_tokens, "activations");
  out.logits = checked_mul(config.vocab * kFloat, request.logit_rows, "logits");
  const MoeConfig moe = config.moe.value_or(MoeConfig{});
  out.working = backend.working_bytes(
      {.rows = request.chunk_tokens,
       .columns = widest_input(config),
       .n_experts = moe.n_experts,
       .experts_per_token = moe.top_k,
       .expert_columns = config.moe ? std::max<int64_t>(config.hidden, moe.expert_intermediate) : 0,
       .hidden = config.hidden,
       .vocab = config.vocab,
       .logit_rows = request.logit_rows,
       .n_heads = config.n_heads,
       .head_dim = config.head_dim,
       .ctx = request.ctx});
  out.program = request.program_bytes;
  // A token that was never met brings in the pages that the system reads around its row. What
  // packing the largest matrix held counts where it was more than all that comes later.
  constexpr int64_t kReadAround = 128 << 10;
  const int64_t tokens = checked_mul(request.ctx, request.n_slots, "tokens");
  out.file_pages = std::max(std::min(weights.table, checked_mul(tokens, kReadAround, "file pages")),
                            weights.load_peak + out.program - out.needed());
  out.available = request.limit_bytes > 0 ? request.limit_bytes
                                          : available_memory_bytes() + request.program_bytes;
  out.available = std::max<int64_t>(0, out.available - request.promised_bytes);
  const int64_t room = out.available - (out.needed() - out.kv);
  out.largest_ctx = room <= 0 ? 0 : room / page_bytes / request.n_slots * page_tokens;
  return out;
}

void require_memory(const MemoryForecast& forecast, const MemoryRequest& request) {
  if (forecast.fits()) return;
  const std::string advice =
      forecast.largest_ctx > 0
          ? fmt::format("a context of {} tokens would fit", forecast.largest_ctx)
          : std::string("no context would fit");
  fail(
      ErrorKind::kOutOfMemory, "memory",
      "{} tokens x {} slots: expected to need at most {} (available), got {} (weights {}, KV cache "
      "{}, activations {}, logits {}, working {}, program {}; {})",
      request.ctx, request.n_slots, mib(forecast.available), mib(forecast.needed()),
      mib(forecast.weights), mib(forecast.kv), mib(forecast.activations), mib(forecast.logits),
      mib(forecast.working), mib(forecast.program), advice);
}

}  // namespace qw
