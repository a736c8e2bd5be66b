// Where the expected values lie, and how tests read them.
//
// Part of the tests. Copies of the smaller goldens are in tests/golden; the rest is looked for in
// QIANWEN_SHARED (default: ../shared beside the project), and tests that need it skip without.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tensor/raw_tensor.h"

namespace qw::test {

/// The path of "gptq/int3_g128" and the like, in the project or in the shared folder.
std::optional<std::string> find_golden(const std::string& relative);

nlohmann::json read_json(const std::string& path);

/// Tensors of one safetensors file by name; they keep the mapping alive.
std::map<std::string, RawTensor> read_tensors(const std::string& path);

}  // namespace qw::test
