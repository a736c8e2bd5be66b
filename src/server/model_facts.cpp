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

/// What llama.cpp calls the numbers of general.file_type (enum llama_ftype).
constexpr std::pair<uint64_t, std::string_view> kFileTypes[] = {
    {0, "F32"},      {1, "F16"},      {2, "Q4_0"},    {3, "Q4_1"},    {7, "Q8_0"},
    {8, "Q5_0"},     {9, "Q5_1"},     {10, "Q2_K"},   {11, "Q3_K_S"}, {12, "Q3_K_M"},
    {13, "Q3_K_L"},  {14, "Q4_K_S"},  {15, "Q4_K_M"}, {16, "Q5_K_S"}, {17, "Q5_K_M"},
    {18, "Q6_K"},    {19, "IQ2_XXS"}, {20, "IQ2_XS"}, {21, "Q2_K_S"}, {22, "IQ3_XS"},
    {23, "IQ3_XXS"}, {24, "IQ1_S"},   {25, "IQ4_NL"}, {26, "IQ3_S"},  {27, "IQ3_M"},
    {28, "IQ2_S"},   {29, "IQ2_M"},   {30, "IQ4_XS"}, {31, "IQ1_M"},  {32, "BF16"},
    {36, "TQ1_0"},   {37, "TQ2_0"},   {40, "Q1_0"},   {41, "Q2_0"}};

/// Of the file's own mixture of types; "": it does not say.
std::string_view file_type_of(const Checkpoint& checkpoint) {
  constexpr std::string_view kKey = "general.file_type";
  const GgufValue* value = checkpoint.gguf ? checkpoint.gguf->find(kKey) : nullptr;
  const auto* number = value == nullptr ? nullptr : std::get_if<uint64_t>(&value->value);
  if (number == nullptr) return "";
  const auto* known =
      std::ranges::find(kFileTypes, *number, &std::pair<uint64_t, std::string_view>::first);
  return known == std::end(kFileTypes) ? "" : known->second;
}

std::string quantization_of(const Checkpoint& checkpoint, const QuantizationConfig& config) {
  if (const std::string_view name = file_type_of(checkpoint); !name.empty())
    return std::string(name);
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
  const bool is_mixed = std::ranges::any_of(
      config.rules, [](const ModuleRule& rule) { return rule.bits.has_value(); });
  return config.method.empty()
             ? name
             : fmt::format("{} {} bits{}", name, config.bits, is_mixed ? " and others" : "");
}

/// Sorted; none of "", nor of what is gone.
std::vector<std::string> files_of_adapter(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) return {path};
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.is_regular_file(error)) out.push_back(entry.path().string());
  }
  std::ranges::sort(out);
  return out;
}

}  // namespace

ModelFacts read_model_facts(const std::string& path, const std::string& adapter_path) {
  const auto checkpoint = Checkpoint::open(path);
  ModelFacts facts;
  facts.config = ModelConfig::from_checkpoint(*checkpoint);
  facts.family = facts.config.moe ? "qwen2_moe" : "qwen2";
  facts.format = checkpoint->kind == Checkpoint::Kind::kGguf ? "gguf" : "safetensors";
  facts.parameter_size = size_text(facts.config.n_parameters());
  facts.quantization = quantization_of(*checkpoint, facts.config.quantization);
  facts.file_bytes = checkpoint->file_bytes();
  Sha256 hash;
  std::vector<std::string> files = checkpoint->weight_files;
  for (std::string& file : files_of_adapter(adapter_path))
    files.push_back(std::move(file));
  for (const std::string& file : files) {
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
