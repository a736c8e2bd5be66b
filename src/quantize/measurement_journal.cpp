#include "quantize/measurement_journal.h"

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace qw::quantize {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& directory) {
  fail(ErrorKind::kInvalidArgument, "quantize",
       "measurements: expected those of this model, calibration and options to go on with, got "
       "another's (remove {}, or give another --output)",
       printable(directory, 4096));
}

[[noreturn]] void fail_errno(const char* action, const std::string& path) {
  const int number = errno;
  fail(ErrorKind::kIo, "quantize", "measurements: expected to {} them, got {} ({})", action,
       std::strerror(number), printable(path, 4096));
}

/// A measurement's line. Errors: Json::exception.
std::pair<std::string, std::vector<double>> parse_line(std::string_view line) {
  const Json json = Json::parse(line);
  std::vector<double> values;
  for (const Json& value : json.at("values"))
    values.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                     : value.get<double>());
  return {json.at("of").get<std::string>(), std::move(values)};
}

}  // namespace

MeasurementJournal::MeasurementJournal(std::string directory, const std::string& job)
    : directory_(std::move(directory)), path_((fs::path(directory_) / "journal.jsonl").string()) {
  std::error_code error;
  if (fs::exists(path_, error)) {
    read(job);
  } else {
    if (fs::exists(directory_, error) && !fs::is_empty(directory_, error)) refuse(directory_);
    fs::create_directory(directory_, error);
    if (error) {
      fail(ErrorKind::kIo, "quantize", "measurements: expected to make a directory, got {} ({})",
           error.message(), printable(directory_, 4096));
    }
    const std::string first = Json{{"job", job}}.dump() + "\n";
    write_file_atomically(path_, std::as_bytes(std::span(first)));
  }
  file_.emplace(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  if (file_->get() < 0) fail_errno("open", path_);
}

void MeasurementJournal::read(const std::string& job) {
  is_resumed_ = true;
  const std::string text = read_text_file(path_);
  size_t begin = 0;
  for (size_t end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const auto line = std::string_view(text).substr(begin, end - begin);
    try {
      if (begin > 0) {
        auto [name, values] = parse_line(line);
        known_.insert_or_assign(std::move(name), std::move(values));
      } else if (Json::parse(line).at("job") != job) {
        refuse(directory_);
      }
    } catch (const Json::exception&) {
      // A machine that lost its power may leave a last line of anything.
      if (begin == 0 || text.find('\n', end + 1) != std::string::npos) refuse(directory_);
      break;
    }
  }
  if (begin == 0) refuse(directory_);
  std::error_code error;
  if (begin < text.size()) fs::resize_file(path_, begin, error);
  if (error) {
    fail(ErrorKind::kIo, "quantize", "measurements: expected to cut off a line, got {} ({})",
         error.message(), printable(path_, 4096));
  }
}

std::optional<std::vector<double>> MeasurementJournal::find(const std::string& name) const {
  const auto found = known_.find(name);
  if (found == known_.end()) return std::nullopt;
  return found->second;
}

void MeasurementJournal::add(const std::string& name, const std::vector<double>& values) {
  const std::string line = Json{{"of", name}, {"values", values}}.dump() + "\n";
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = ::write(file_->get(), rest.data(), rest.size());
    if (n < 0 && errno != EINTR) fail_errno("write", path_);
    if (n > 0) rest.remove_prefix(static_cast<size_t>(n));
  }
  if (::fdatasync(file_->get()) != 0) fail_errno("sync", path_);
  known_.insert_or_assign(name, values);
}

void MeasurementJournal::remove() {
  file_.reset();
  std::error_code error;
  fs::remove_all(directory_, error);
  if (error) {
    fail(ErrorKind::kIo, "quantize", "measurements: expected to remove them, got {} ({})",
         error.message(), printable(directory_, 4096));
  }
}

}  // namespace qw::quantize
