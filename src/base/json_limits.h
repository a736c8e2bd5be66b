// Caps on foreign JSON for parse_guarded (guarded_json.h): refused while it is read, not after.
//
// Level 0 (base), without the JSON library itself. Two things make a small file dangerous: deep
// nesting, because copying and printing a value recurse, and many keys, because ordered_json finds
// keys by linear search.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace qw {

/// Far above any published file, far below what could hurt.
struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 64;
  int64_t max_keys = 100'000;        // of all objects together
  int64_t max_object_keys = 10'000;  // of one object
};

/// parse_guarded<Json>(text, JsonLimitGuard(limits, kind, file)) throws Error{kind} naming `file`
/// at the first value beyond the limits; max_bytes is for the caller to check. Both must outlive
/// it.
class JsonLimitGuard {
 public:
  JsonLimitGuard(const JsonLimits& limits, ErrorKind kind, std::string_view file)
      : limits_(limits), kind_(kind), file_(file) {}

  template <typename Event, typename Json>
  bool operator()(int depth, Event event, Json&) {
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= limits_.max_depth) refuse("nesting", limits_.max_depth, "levels");
      if (event == Event::object_start) open_objects_.push_back(0);
    } else if (event == Event::object_end) {
      open_objects_.pop_back();
    } else if (event == Event::key) {
      if (++n_keys_ > limits_.max_keys) refuse("keys of all objects", limits_.max_keys, "keys");
      if (++open_objects_.back() > limits_.max_object_keys) {
        refuse("keys of one object", limits_.max_object_keys, "keys");
      }
    }
    return true;
  }

 private:
  [[noreturn]] void refuse(std::string_view what, int64_t limit, std::string_view unit) const {
    fail(kind_, "json", "{}: expected at most {} {}, got more ({})", what, limit, unit,
         printable(file_, 4096));
  }

  const JsonLimits& limits_;
  ErrorKind kind_;
  std::string_view file_;
  std::vector<int64_t> open_objects_;
  int64_t n_keys_ = 0;
};

}  // namespace qw
