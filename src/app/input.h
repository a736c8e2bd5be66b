// What commands are given: JSON, ids, lines of JSON, text; from flags, files, pipes, standard
// input.
//
// Level 8 (app).
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace qw::app {

/// The whole of standard input. Errors: io, invalid_argument (too large), cancelled.
std::string read_stdin();
/// The whole of a file or stream; "-" is standard input. Errors: as read_input_file.
std::string read_input(const std::string& path, size_t max_bytes = size_t{1} << 30);

/// JSON that a user gave: parsed under limits of depth and keys, so that printing it in a message
/// is safe. `where` names it. Errors: invalid_argument.
nlohmann::ordered_json parse_user_json(std::string_view text, std::string_view where);
/// "[1, 2, 3]" -> ids. Errors: invalid_argument.
std::vector<int32_t> parse_ids(std::string_view text, std::string_view flag);

/// Throws Error{kIo} when reading standard input by the streams failed: a descriptor that was never
/// open looks to them like an empty input. Errors: io, cancelled (a signal ended the reading).
void check_stdin();

/// Lines of a JSON-lines file or stream ("-": standard input), as they come, with their numbers
/// for messages; empty lines skipped. A line that is no JSON is given to `on_bad_line`, and the
/// next one follows; without it that is an error.
/// Errors: not_found, io, invalid_argument (not JSON, a line too long), cancelled.
void for_each_json_line(const std::string& path,
                        const std::function<void(const nlohmann::ordered_json&, size_t line)>& body,
                        const std::function<void(const Error&)>& on_bad_line = {});

/// Runs the work of one line; an Error of it is thrown on with the line's number added.
void name_line(size_t line, const std::function<void()>& work);

/// The one of `keys` that a line of a batch holds: two say different things, and none says nothing.
/// `where` names the line. Errors: invalid_argument.
std::string only_key_of(const nlohmann::ordered_json& row, const std::vector<std::string>& keys,
                        std::string_view where);

}  // namespace qw::app
