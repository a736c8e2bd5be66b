#include "app/budget_attempts.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

}  // namespace

BudgetAttempts::BudgetAttempts(std::string path, std::string job)
    : path_(std::move(path)), job_(std::move(job)) {
  std::error_code error;
  if (!std::filesystem::exists(path_, error)) return;
  const ordered_json found = ordered_json::parse(read_text_file(path_), nullptr, false);
  try {
    if (found.at("job") == job_) {
      for (const ordered_json& one : found.at("measured"))
        measured_.emplace_back(one.at("bits").get<std::vector<int>>(), one.at("kl").get<double>());
      begun_ = found.at("begun").get<std::vector<int>>();
      is_resumed_ = true;
      return;
    }
  } catch (const ordered_json::exception&) {
    // Told below.
  }
  fail(ErrorKind::kInvalidArgument, "quantize",
       "attempts: expected those of this model, calibration and options to go on with, got "
       "another's (remove {}, or give another --output)",
       printable(path_, 4096));
}

std::optional<double> BudgetAttempts::measured(const std::vector<int>& bits) const {
  const auto found = std::ranges::find(measured_, bits, &decltype(measured_)::value_type::first);
  if (found == measured_.end()) return std::nullopt;
  return found->second;
}

void BudgetAttempts::begin(const std::vector<int>& bits) {
  begun_ = bits;
  save();
}

void BudgetAttempts::finish(double kl) {
  measured_.emplace_back(std::move(begun_), kl);
  begun_.clear();
  save();
}

void BudgetAttempts::remove() {
  std::error_code error;
  std::filesystem::remove(path_, error);
  if (!error) return;
  fail(ErrorKind::kIo, "quantize", "attempts: expected to remove them, got {} ({})",
       error.message(), printable(path_, 4096));
}

void BudgetAttempts::save() const {
  ordered_json list = ordered_json::array();
  for (const auto& [bits, kl] : measured_)
    list.push_back({{"bits", bits}, {"kl", kl}});
  const ordered_json all = {{"job", job_}, {"measured", std::move(list)}, {"begun", begun_}};
  const std::string text = all.dump(1) + "\n";
  write_file_atomically(path_, std::as_bytes(std::span(text)));
}

}  // namespace qw::app
