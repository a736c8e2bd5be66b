#include "app/input.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "base/error.h"
#include "base/guarded_json.h"
#include "base/input_file.h"
#include "base/json_limits.h"

namespace qw::app {

namespace fs = std::filesystem;

std::string read_stdin() {
  return read_input("-");
}

std::string read_input(const std::string& path, size_t max_bytes) {
  return path == "-" ? read_stream(STDIN_FILENO, "standard input", &interrupted(),
                                   std::min(max_bytes, kMaxStreamBytes))
                     : read_input_file(path, &interrupted(), max_bytes);
}

nlohmann::ordered_json parse_user_json(std::string_view text, std::string_view where) {
  // Conversations and batches may be large; ids are arrays without keys, which have no limit.
  static constexpr JsonLimits kLimits{.max_keys = 5'000'000};
  try {
    return parse_guarded<nlohmann::ordered_json>(
        text, JsonLimitGuard(kLimits, ErrorKind::kInvalidArgument, where));
  } catch (const nlohmann::json::exception& error) {
    std::string_view reason = error.what();  // after the library's "[json.exception...] " tag
    reason.remove_prefix(std::min(reason.size(), reason.find("] ") + 2));
    fail(ErrorKind::kInvalidArgument, "json", "input: expected JSON, got: {} ({})",
         printable(reason, 160), printable(where, 4096));
  }
}

std::vector<int32_t> parse_ids(std::string_view text, std::string_view flag) {
  nlohmann::ordered_json json;
  try {
    json = parse_user_json(text, flag);
  } catch (const Error& error) {
    fail(ErrorKind::kInvalidArgument, "ids",
         "{}: expected a JSON array of token ids, got '{}' ({})", flag, printable(text, 60),
         error.message());
  }
  if (!json.is_array()) {
    fail(ErrorKind::kInvalidArgument, "ids", "{}: expected a JSON array of token ids, got '{}'",
         flag, printable(text));
  }
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const auto& item : json) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX) {
      fail(ErrorKind::kInvalidArgument, "ids", "{}: expected token ids from 0, got {}", flag,
           printable(item.dump()));
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

namespace {

/// std::getline with a cap, so that a stream without line ends cannot fill the memory.
bool read_line(std::istream& in, std::string& line, const std::string& path) {
  line.clear();
  for (char c = 0; in.get(c);) {
    if (c == '\n') return true;
    if (line.size() == kMaxStreamBytes) {
      fail(ErrorKind::kInvalidArgument, "input", "line: expected at most {} bytes, got more ({})",
           kMaxStreamBytes, printable(path, 4096));
    }
    line.push_back(c);
  }
  return !line.empty();
}

}  // namespace

void check_stdin() {
  if (std::ferror(stdin) == 0) return;
  interrupted().check("input");
  fail(ErrorKind::kIo, "input", "file: expected to read it, got an error (standard input)");
}

void for_each_json_line(const std::string& path,
                        const std::function<void(const nlohmann::ordered_json&, size_t)>& body,
                        const std::function<void(const Error&)>& on_bad_line) {
  std::ifstream file;
  if (path != "-") {
    std::error_code ignored;
    if (!fs::exists(path, ignored))
      fail(ErrorKind::kNotFound, "input", "file: expected JSON lines, got no such file ({})",
           printable(path, 4096));
    file.open(path, std::ios::binary);
    if (!file || fs::is_directory(path, ignored))
      fail(ErrorKind::kIo, "input", "file: expected to read it, got: {} ({})",
           file ? "a directory" : std::strerror(errno), printable(path, 4096));
  }
  std::istream& in = path == "-" ? std::cin : file;
  size_t number = 0;
  for (std::string line; read_line(in, line, path);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    nlohmann::ordered_json row;
    try {
      row = parse_user_json(line, fmt::format("{}, line {}", path, number));
    } catch (const Error& error) {
      if (!on_bad_line) throw;
      on_bad_line(error);
      continue;
    }
    body(row, number);
  }
  interrupted().check("input");
  if (path == "-") check_stdin();
  if (in.bad())
    fail(ErrorKind::kIo, "input", "file: expected to read to its end, got an error ({})",
         printable(path, 4096));
}

void name_line(size_t line, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{} (line {})", error.message(), line));
  }
}

std::string only_key_of(const nlohmann::ordered_json& row, const std::vector<std::string>& keys,
                        std::string_view where) {
  std::vector<std::string> found;
  for (const std::string& key : keys) {
    if (row.is_object() && row.contains(key)) found.push_back(key);
  }
  if (found.size() == 1) return found.front();
  fail(ErrorKind::kInvalidArgument, "input", "{}: expected an object with one of {}, got {}", where,
       fmt::join(keys, ", "),
       found.empty() ? printable(row.dump()) : fmt::format("{}", fmt::join(found, " and ")));
}

}  // namespace qw::app
