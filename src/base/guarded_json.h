// Reads foreign JSON within limits, in time in proportion to its size.
//
// Level 0 (base); includes the JSON library. The library's own parser with a callback looks through
// the whole list (or object) around an object each time that one ends: a list of 200,000 empty
// objects, 600 kB, takes it 25 s (Zen 4, November 2026). This one builds values as the library does
// without a callback.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "base/json_limits.h"

namespace qw {

/// Builds a value while JsonLimitGuard, and whatever else wants to see the events (RepeatedKeys),
/// look on.
template <typename Json, typename See>
class GuardedJsonBuilder : public nlohmann::detail::json_sax_dom_parser<Json> {
  using Base = nlohmann::detail::json_sax_dom_parser<Json>;
  using Event = typename Json::parse_event_t;

 public:
  GuardedJsonBuilder(Json& out, JsonLimitGuard guard, See& see)
      : Base(out), guard_(std::move(guard)), see_(see) {}

  bool null() { return value() && Base::null(); }
  bool boolean(bool given) { return value() && Base::boolean(given); }
  bool number_integer(typename Json::number_integer_t given) {
    return value() && Base::number_integer(given);
  }
  bool number_unsigned(typename Json::number_unsigned_t given) {
    return value() && Base::number_unsigned(given);
  }
  bool number_float(typename Json::number_float_t given, const std::string& text) {
    return value() && Base::number_float(given, text);
  }
  bool string(std::string& given) { return value() && Base::string(given); }
  bool start_object(std::size_t n) { return start(Event::object_start) && Base::start_object(n); }
  bool start_array(std::size_t n) { return start(Event::array_start) && Base::start_array(n); }
  bool end_object() { return end(Event::object_end) && Base::end_object(); }
  bool end_array() { return end(Event::array_end) && Base::end_array(); }
  bool key(std::string& given) {
    Json name = given;
    return note(Event::key, name) && Base::key(given);
  }

 private:
  bool note(Event event, Json& parsed) {
    see_(event, parsed);
    return guard_(depth_, event, parsed);
  }
  bool value() { return note(Event::value, nothing_); }
  bool start(Event event) {
    const bool goes_on = note(event, nothing_);
    ++depth_;
    return goes_on;
  }
  bool end(Event event) {
    --depth_;
    return note(event, nothing_);
  }

  JsonLimitGuard guard_;
  See& see_;
  Json nothing_;
  int depth_ = 0;
};

/// The value of `text`. see(event, parsed): told of everything that comes, keys with their names.
/// Errors: those of the guard; Json::parse_error, Json::out_of_range.
template <typename Json, typename See>
Json parse_guarded(std::string_view text, JsonLimitGuard guard, See&& see) {
  Json out;
  GuardedJsonBuilder<Json, std::remove_reference_t<See>> builder(out, std::move(guard), see);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return out;
}
template <typename Json>
Json parse_guarded(std::string_view text, JsonLimitGuard guard) {
  return parse_guarded<Json>(text, std::move(guard), [](auto, const Json&) {});
}

/// The same; discarded where `text` is no JSON or holds a number out of range.
template <typename Json>
Json parse_guarded_or_discard(std::string_view text, JsonLimitGuard guard) {
  try {
    return parse_guarded<Json>(text, std::move(guard));
  } catch (const nlohmann::detail::exception&) {
    return Json(Json::value_t::discarded);
  }
}

}  // namespace qw
