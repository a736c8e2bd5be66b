#include "support/golden.h"

#include <cstdlib>
#include <filesystem>

#include "base/mapped_file.h"
#include "checkpoint/safetensors.h"

namespace qw::test {

std::optional<std::string> find_golden(const std::string& relative) {
  namespace fs = std::filesystem;
  const fs::path source = QIANWEN_SOURCE_DIR;
  const char* from_env = std::getenv("QIANWEN_SHARED");
  const fs::path shared = from_env != nullptr ? fs::path(from_env) : source / ".." / "shared";
  for (const fs::path& root : {source / "tests" / "golden", shared / "golden"}) {
    if (fs::exists(root / relative)) return (root / relative).string();
  }
  return std::nullopt;
}

nlohmann::json read_json(const std::string& path) {
  return nlohmann::json::parse(read_text_file(path));
}

std::map<std::string, RawTensor> read_tensors(const std::string& path) {
  std::map<std::string, RawTensor> out;
  for (RawTensor& tensor : read_safetensors(MappedFile::open(path)).tensors) {
    const std::string name = tensor.name;
    out.emplace(name, std::move(tensor));
  }
  return out;
}

}  // namespace qw::test
