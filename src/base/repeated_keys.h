// Keys that a JSON object has more than once, found while it is read.
//
// Level 0 (base), without the JSON library itself.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/error.h"

namespace qw {

/// Keys that an object has more than once, as a callback for the parser beside the guard: JSON's
/// readers differ in what they make of them.
template <typename Json>
class RepeatedKeys {
 public:
  void see(typename Json::parse_event_t event, const Json& parsed) {
    using Kind = typename Json::parse_event_t;
    switch (event) {
      case Kind::object_start:
      case Kind::array_start:
        next_item();
        open_.emplace_back().is_array = event == Kind::array_start;
        break;
      case Kind::object_end:
      case Kind::array_end:
        open_.pop_back();
        break;
      case Kind::key:
        see_key(parsed.template get_ref<const std::string&>());
        break;
      case Kind::value:
        next_item();
        break;
    }
  }
  /// Where they stand, "messages[2].role", each as often as it is repeated; the first so many.
  const std::vector<std::string>& found() const { return found_; }
  /// Of all.
  size_t n_found() const { return n_found_; }

 private:
  static constexpr size_t kMost = 32;
  /// An object or a list that is being read, and the place in it.
  struct Open {
    bool is_array = false;
    size_t n_items = 0;  // of a list, with the one under way
    std::string key;     // of an object
    std::unordered_set<std::string> keys;
  };

  void next_item() {
    if (!open_.empty() && open_.back().is_array) ++open_.back().n_items;
  }
  void see_key(const std::string& key) {
    Open& object = open_.back();
    object.key = key;
    if (!object.keys.insert(key).second && n_found_++ < kMost) found_.push_back(path());
  }
  std::string path() const {
    std::string out;
    for (const Open& place : open_) {
      if (place.is_array) {
        out += fmt::format("[{}]", place.n_items - 1);
      } else {
        if (!out.empty()) out += '.';
        out += printable(place.key);
      }
    }
    return out;
  }

  std::vector<Open> open_;
  std::vector<std::string> found_;
  size_t n_found_ = 0;
};

}  // namespace qw
