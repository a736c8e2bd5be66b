// Golden files of rows for the unit tests of text/: where they lie and how they are read.
//
// Part of the tests; header only, so that a folder's unit tests need no other library. Files that
// may not enter the project are looked for in QIANWEN_SHARED (default: ../shared beside it).
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace qw::test {

inline std::string project_golden(const std::string& relative) {
  return std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/" + relative;
}

/// The path of something in the shared folder; empty when it is not there (skip the test then).
inline std::string shared_file(const std::string& relative) {
  const char* root = std::getenv("QIANWEN_SHARED");
  const std::string path =
      (root ? root : std::string(QIANWEN_SOURCE_DIR) + "/../shared") + "/" + relative;
  return std::filesystem::exists(path) ? path : std::string();
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline nlohmann::json read_json_file(const std::string& path) {
  return nlohmann::json::parse(read_bytes(path));
}

/// The objects of a JSON Lines file; throws when there are none.
inline std::vector<nlohmann::json> read_rows(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) rows.push_back(nlohmann::json::parse(line));
  }
  if (rows.empty()) throw std::runtime_error("no rows in " + path);
  return rows;
}

}  // namespace qw::test
