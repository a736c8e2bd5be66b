// Any bytes as adapter_config.json: an Error, or a rank and a scaling for every module asked for.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/peft_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const qw::PeftConfig config = qw::PeftConfig::parse(text, "adapter_config.json");
    for (const char* module : {"model.layers.0.self_attn.q_proj", "model.layers.31.mlp.down_proj",
                               "model.layers.7.mlp.experts.59.up_proj", "lm_head"}) {
      QW_CHECK(config.rank_of(module) >= 1, "{}", module);
      (void)config.scaling_of(module);
    }
  } catch (const qw::Error& error) {
    QW_CHECK(error.kind() == qw::ErrorKind::kCorrupt || error.kind() == qw::ErrorKind::kUnsupported,
             "{}", error.message());
  }
  return 0;
}
