// Any bytes as a JSON configuration: an Error or an object whose fields can be asked for.
#include <cstdint>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/hf_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const nlohmann::ordered_json config = qw::parse_json_object(text, "config.json");
    // Each getter by itself: one that throws must not hide the others.
    const auto attempt = [](auto read) {
      try {
        (void)read();
      } catch (const qw::Error& error) {
        QW_CHECK(error.kind() == qw::ErrorKind::kCorrupt, "{}", error.message());
      }
    };
    for (const char* key : {"hidden_size", "rope_theta", "model_type", "tie_word_embeddings"}) {
      attempt([&] { return qw::required_int(config, key, "config.json"); });
      attempt([&] { return qw::required_real(config, key, "config.json"); });
      attempt([&] { return qw::required_bool(config, key, "config.json"); });
      attempt([&] { return qw::required_string(config, key, "config.json"); });
    }
  } catch (const qw::Error& error) {
    QW_CHECK(error.kind() == qw::ErrorKind::kCorrupt, "{}", error.message());
  }
  return 0;
}
