#include "server/model_facts.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <span>

#include "base/sha256.h"
#include "checkpoint/checkpoint.h"

namespace qw::server {

namespace {

/// "6.7M", "1.8B".
std::string size_text(int64_t n) {
  if (n >= 1'000'000'000) return fmt::format("{:.1f}B", static_cast<double>(n) * 1e-9);
  if (n >= 1'000'000) return fmt::format("{:.1f}M", static_cast<double>(n) * 1e-6);
  return fmt::format("{:.1f}K", static_cast<double>(n) * 1e-3);
}

std::string quantization_of(const Checkpoint& checkpoint, const QuantizationConfig& config) {
  std::string name = config.method;
  if (name.empty()) {
    std::map<std::string_view, size_t> bytes;
    for (const RawTensor& tensor : checkpoint.tensors.all())
      bytes[name_of(tensor.dtype)] += tensor.bytes.size();
    if (bytes.empty()) return "unknown";
    name = std::ranges::max_element(bytes, {}, [](const auto& item) { return item.second; })->first;
  }
  for (char& c : name)
    c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return config.method.empty() ? name : fmt::format("{} {} bits", name, config.bits);
}

}  // namespace

ModelFacts read_model_facts(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  ModelFacts facts;
  facts.config = ModelConfig::from_checkpoint(*checkpoint);
  facts.family = facts.config.moe ? "qwen2_moe" : "qwen2";
  facts.format = checkpoint->kind == Checkpoint::Kind::kGguf ? "gguf" : "safetensors";
  facts.parameter_size = size_text(facts.config.n_parameters());
  facts.quantization = quantization_of(*checkpoint, facts.config.quantization);
  facts.file_bytes = checkpoint->file_bytes();
  Sha256 hash;
  for (const std::string& file : checkpoint->weight_files) {
    struct stat status {};
    if (::stat(file.c_str(), &status) != 0) continue;
    facts.modified = std::max<int64_t>(facts.modified, status.st_mtime);
    const std::string line =
        fmt::format("{} {} {}\n", std::filesystem::path(file).filename().string(), status.st_size,
                    status.st_mtime);
    hash.update(std::as_bytes(std::span(line)));
  }
  facts.digest = to_hex(hash.finish());
  return facts;
}

}  // namespace qw::server
