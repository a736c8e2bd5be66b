// generation_config.json as a fuzzer writes it: an Error at worst, and what was accepted validates.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "engine/generation_config.h"
#include "engine/logits_process.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  qw::GenerationConfig config;
  try {
    config.read_json(text, "generation_config.json");
    config.applied();
    config.without_effect();
    constexpr int64_t kVocab = 64;
    config.validate(kVocab);
    // What validates must also run.
    std::vector<float> values(kVocab, 0.5f);
    const std::vector<int32_t> ids = {1, 2, 3, 1, 2};
    qw::LogitsRow row(values);
    qw::make_pipeline(config, std::span(ids).first(3), 100, kVocab).apply({ids, 3}, row);
  } catch (const qw::Error&) {
  }
  return 0;
}
