#include "engine/sampler_order.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "checkpoint/hf_config.h"
#include "engine/generation_config.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(std::string_view name, std::string_view got) {
  fail(ErrorKind::kInvalidArgument, "generation",
       "{}: expected a list of at most {} of the samplers {}, got {}", name,
       GenerationConfig::kMaxSamplerOrder, fmt::join(sampler_names(), ", "), got);
}

SamplerKind read_sampler(std::string_view name, std::string_view text) {
  const std::optional<SamplerKind> kind = sampler_named(text);
  if (!kind) refuse(name, fmt::format("'{}'", printable(text)));
  return *kind;
}

}  // namespace

std::vector<std::string_view> sampler_names() {
  std::vector<std::string_view> out;
  for (const SamplerName& row : kSamplerNames)
    out.push_back(row.name);
  return out;
}

std::vector<SamplerKind> read_sampler_order(std::string_view name, const Json& value) {
  std::vector<SamplerKind> out;
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    for (size_t at = 0; at <= text.size();) {
      const size_t end = std::min(text.find(',', at), text.size());
      out.push_back(read_sampler(name, std::string_view(text).substr(at, end - at)));
      at = end + 1;
    }
    return out;
  }
  if (!value.is_array()) refuse(name, describe_json(value));
  for (const Json& entry : value) {
    if (!entry.is_string()) refuse(name, describe_json(entry));
    out.push_back(read_sampler(name, entry.get<std::string>()));
  }
  return out;
}

std::vector<SamplerKind> GenerationConfig::samplers() const {
  std::vector<SamplerKind> out, rest;
  for (const SamplerName& row : kSamplerNames) {
    if (std::ranges::find(sampler_order, row.kind) != sampler_order.end()) continue;
    (is_penalty(row.kind) ? out : rest).push_back(row.kind);
  }
  out.insert(out.end(), sampler_order.begin(), sampler_order.end());
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

}  // namespace qw
