#include "checkpoint/weight_files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/guarded_json.h"
#include "base/mapped_file.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/lfs_pointer.h"

namespace qw {

namespace {

namespace fs = std::filesystem;
using Format = WeightFiles::Format;

constexpr int kShardDigits = 5;
constexpr int kMaxShards = 4096;  // as many files as can be mapped at a time
constexpr std::string_view kIndexSuffix = ".index.json";
// The largest published index (a mixture of experts) names some 20 thousand tensors in 2 MB.
constexpr JsonLimits kIndexLimits{
    .max_bytes = size_t{64} << 20, .max_keys = 1'000'000, .max_object_keys = 1'000'000};

std::string join_path(const std::string& directory, std::string_view name) {
  return (fs::path(directory) / name).string();
}

std::string names_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  const size_t n_shown = std::min(names.size(), kShown);
  std::string text = fmt::format(
      "{}", fmt::join(names.begin(), names.begin() + static_cast<ptrdiff_t>(n_shown), ", "));
  if (names.size() > n_shown) text += fmt::format(" and {} more", names.size() - n_shown);
  return printable(text, 1024);
}

std::vector<std::string> with_ending(const std::vector<std::string>& names, std::string_view prefix,
                                     std::string_view ending) {
  std::vector<std::string> out;
  std::ranges::copy_if(names, std::back_inserter(out), [&](const std::string& name) {
    return name.starts_with(prefix) && name.ends_with(ending);
  });
  return out;
}

bool has(const std::vector<std::string>& names, std::string_view name) {
  return std::ranges::binary_search(names, name);
}

// All files of the set that `shard` belongs to. Errors: not_found for the first that is missing.
std::vector<std::string> complete_set(ShardName shard, const std::string& directory) {
  std::vector<std::string> paths;
  for (shard.number = 1; shard.number <= shard.count; ++shard.number) {
    const std::string name = format_shard_name(shard);
    const std::string path = join_path(directory, name);
    if (!path_exists(path)) {
      fail(ErrorKind::kNotFound, "checkpoint", "shard {} of {}: expected {}, got no such file ({})",
           shard.number, shard.count, printable(name), printable(directory, 4096));
    }
    paths.push_back(path);
  }
  return paths;
}

// The one file, or the one set of shards, that these names make up; nullopt when they are several.
std::optional<std::vector<std::string>> single_set(const std::vector<std::string>& names,
                                                   const std::string& directory) {
  if (names.empty()) return std::nullopt;
  const auto first = parse_shard_name(names.front());
  if (!first) {
    if (names.size() > 1) return std::nullopt;
    return std::vector{join_path(directory, names.front())};
  }
  for (const std::string& name : names) {
    const auto shard = parse_shard_name(name);
    if (!shard || shard->stem != first->stem || shard->count != first->count) return std::nullopt;
  }
  return complete_set(*first, directory);
}

[[noreturn]] void fail_ambiguous(std::string_view what, const std::vector<std::string>& names,
                                 const std::string& directory) {
  fail(ErrorKind::kUnsupported, "checkpoint",
       "{}: expected one file or one set of shards, got {} ({})", what, names_of(names),
       printable(directory, 4096));
}

WeightFiles from_index(const std::string& directory, const std::string& index_name, Format format) {
  WeightFiles out{.format = format,
                  .paths = {},
                  .index_path = join_path(directory, index_name),
                  .weight_map = {}};
  const std::string text = read_text_file(out.index_path, kIndexLimits.max_bytes);
  refuse_lfs_pointer(text, "index", out.index_path);
  const std::string where = printable(out.index_path, 4096);
  nlohmann::json index;  // a sorted map: weight_map may hold tens of thousands of names
  try {
    index = parse_guarded<nlohmann::json>(
        text, JsonLimitGuard(kIndexLimits, ErrorKind::kCorrupt, out.index_path));
  } catch (const nlohmann::json::parse_error& error) {
    fail(ErrorKind::kCorrupt, "checkpoint",
         "index: expected valid JSON, got an error at byte {} ({})", error.byte, where);
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::kCorrupt, "checkpoint",
         "index: expected valid JSON, got a number out of range ({})", where);
  }
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    fail(ErrorKind::kCorrupt, "checkpoint",
         "index: expected an object with weight_map {{tensor: file}}, got none ({})", where);
  }
  std::set<std::string> names;
  for (const auto& [tensor, value] : map->items()) {
    const std::string name = value.is_string() ? value.get<std::string>() : std::string();
    // A plain name only: an index must not reach out of its directory.
    if (name.empty() || name == "." || name == ".." ||
        name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      fail(ErrorKind::kCorrupt, "checkpoint",
           "index entry of {}: expected a file name, got {} ({})", printable(tensor),
           value.is_string() ? printable(name) : "no string", where);
    }
    out.weight_map.emplace_back(tensor, join_path(directory, name));
    names.insert(name);
  }
  if (names.size() > kMaxShards) {
    fail(ErrorKind::kUnsupported, "checkpoint", "index: expected at most {} files, got {} ({})",
         kMaxShards, names.size(), where);
  }
  for (const std::string& name : names) {
    out.paths.push_back(join_path(directory, name));
    if (!path_exists(out.paths.back())) {
      fail(ErrorKind::kNotFound, "checkpoint",
           "shard: expected {} as the index says, got no such file ({})", printable(name), where);
    }
  }
  return out;
}

WeightFiles single(Format format, std::vector<std::string> paths) {
  return WeightFiles{
      .format = format, .paths = std::move(paths), .index_path = {}, .weight_map = {}};
}

// safetensors under another name than model.safetensors.
std::optional<WeightFiles> find_other_safetensors(const std::vector<std::string>& names,
                                                  const std::string& directory) {
  constexpr std::string_view kExtension = ".safetensors";
  const auto indices = with_ending(names, "", std::string(kExtension) + std::string(kIndexSuffix));
  if (indices.size() == 1) return from_index(directory, indices.front(), Format::kSafetensors);
  if (indices.size() > 1) fail_ambiguous("safetensors index", indices, directory);
  auto files = with_ending(names, "", kExtension);
  std::erase(files, "adapter_model.safetensors");  // a LoRA beside its base is not the base
  if (files.empty()) return std::nullopt;
  if (auto set = single_set(files, directory)) return single(Format::kSafetensors, *std::move(set));
  // AutoGPTQ: gptq_model-4bit-128g.safetensors, whatever else lies there.
  if (auto set = single_set(with_ending(files, "gptq_model", kExtension), directory)) {
    return single(Format::kSafetensors, *std::move(set));
  }
  fail_ambiguous("safetensors without an index", files, directory);
}

std::optional<WeightFiles> find_torch(const std::vector<std::string>& names,
                                      const std::string& directory) {
  if (has(names, "pytorch_model.bin"))
    return single(Format::kTorch, {join_path(directory, "pytorch_model.bin")});
  if (has(names, "pytorch_model.bin.index.json")) {
    return from_index(directory, "pytorch_model.bin.index.json", Format::kTorch);
  }
  // Other *.bin files (training_args.bin, optimizer.bin) are not weights.
  for (const std::string_view prefix : {"pytorch_model-", "gptq_model"}) {
    const auto files = with_ending(names, prefix, ".bin");
    if (files.empty()) continue;
    if (auto set = single_set(files, directory)) return single(Format::kTorch, *std::move(set));
    fail_ambiguous("PyTorch files", files, directory);
  }
  return std::nullopt;
}

Format format_by_content(const std::string& path) {
  const auto file = MappedFile::open(path);
  const std::string_view text = file->text();
  refuse_lfs_pointer(text, "weights", path);
  if (text.starts_with("GGUF")) return Format::kGguf;
  if (text.starts_with("PK\x03\x04") || text.starts_with(std::string_view("\x80\x02\x8a\x0a", 4)))
    return Format::kTorch;
  if (text.size() > 9 && text[8] == '{') return Format::kSafetensors;
  fail(ErrorKind::kUnsupported, "checkpoint",
       "file: expected .safetensors, .gguf or a PyTorch .bin, got another kind of file ({})",
       printable(path, 4096));
}

}  // namespace

std::optional<ShardName> parse_shard_name(std::string_view file_name) {
  // STEM-NNNNN-of-NNNNN.EXT, read from the right: the stem may hold anything.
  constexpr size_t kTail = 2 * kShardDigits + 5;  // "-NNNNN-of-NNNNN"
  const size_t dot = file_name.rfind('.');
  if (dot == std::string_view::npos || dot < kTail) return std::nullopt;
  const std::string_view tail = file_name.substr(dot - kTail, kTail);
  if (tail[0] != '-' || tail.substr(1 + kShardDigits, 4) != "-of-") return std::nullopt;
  ShardName shard{.stem = std::string(file_name.substr(0, dot - kTail)),
                  .extension = std::string(file_name.substr(dot))};
  const auto number = [](std::string_view digits, int& out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    return error == std::errc() && end == digits.data() + digits.size() && out > 0;
  };
  if (!number(tail.substr(1, kShardDigits), shard.number) ||
      !number(tail.substr(kTail - kShardDigits), shard.count) || shard.number > shard.count ||
      shard.count > kMaxShards) {
    return std::nullopt;
  }
  return shard;
}

std::string format_shard_name(const ShardName& shard) {
  return fmt::format("{}-{:05}-of-{:05}{}", shard.stem, shard.number, shard.count, shard.extension);
}

std::vector<std::string> list_files(const std::string& directory) {
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  std::vector<std::string> names;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    std::error_code broken_link;
    if (entries->is_regular_file(broken_link)) names.push_back(entries->path().filename().string());
  }
  if (error) {
    fail(error == std::errc::no_such_file_or_directory ? ErrorKind::kNotFound : ErrorKind::kIo,
         "checkpoint", "directory: expected to list it, got: {} ({})", error.message(),
         printable(directory, 4096));
  }
  std::ranges::sort(names);
  return names;
}

WeightFiles find_weight_files(const std::string& directory) {
  const std::vector<std::string> names = list_files(directory);
  if (has(names, "model.safetensors"))
    return single(Format::kSafetensors, {join_path(directory, "model.safetensors")});
  if (has(names, "model.safetensors.index.json")) {
    return from_index(directory, "model.safetensors.index.json", Format::kSafetensors);
  }
  if (auto found = find_other_safetensors(names, directory)) return *std::move(found);
  if (auto found = find_torch(names, directory)) return *std::move(found);
  const auto ggufs = with_ending(names, "", ".gguf");
  if (ggufs.empty()) return {};
  if (auto set = single_set(ggufs, directory)) return single(Format::kGguf, *std::move(set));
  fail_ambiguous("GGUF files", ggufs, directory);
}

WeightFiles weight_files_of(const std::string& path) {
  const fs::path file(path);
  const std::string extension = file.extension().string();
  const Format format = extension == ".safetensors" ? Format::kSafetensors
                        : extension == ".gguf"      ? Format::kGguf
                        : extension == ".bin"       ? Format::kTorch
                                                    : format_by_content(path);
  const auto shard = parse_shard_name(file.filename().string());
  if (shard && format != Format::kGguf)
    return single(format, complete_set(*shard, file.parent_path().string()));
  return single(format, {path});  // a GGUF says itself whether it is a part
}

}  // namespace qw
