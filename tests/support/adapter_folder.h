// A folder of adapters for the bundled model, as tests of the server load them.
//
// Part of the tests; header only.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "support/adapter_writer.h"

namespace qw::test {

inline constexpr int64_t kMiniHidden = 256, kMiniVocab = 6016;  // of the bundled model

/// The folder that adapters may be loaded from: "plain" (deltas), "whole" (an embedding and a head
/// of its own, as modules_to_save gives), "small" (of a narrower model), "loud" (with which numbers
/// become infinite), and "out", a link that leads out of it.
class AdapterFolder {
 public:
  AdapterFolder() {
    Adapter plain, whole, small, loud;
    for (const std::string layer : {"model.layers.0.", "model.layers.5."}) {
      plain.add(layer + "self_attn.q_proj.lora_A.weight", {3, kMiniHidden});
      plain.add(layer + "self_attn.q_proj.lora_B.weight", {kMiniHidden, 3});
      plain.add(layer + "mlp.down_proj.lora_A.weight", {3, 768});
      plain.add(layer + "mlp.down_proj.lora_B.weight", {kMiniHidden, 3});
    }
    whole.add("lm_head.weight", {kMiniVocab, kMiniHidden});
    whole.add("model.embed_tokens.weight", {kMiniVocab, kMiniHidden});
    whole.add("model.layers.1.self_attn.v_proj.lora_A.weight", {3, kMiniHidden});
    whole.add("model.layers.1.self_attn.v_proj.lora_B.weight", {kMiniHidden, 3});
    small.add("model.layers.0.self_attn.q_proj.lora_A.weight", {3, 16});
    small.add("model.layers.0.self_attn.q_proj.lora_B.weight", {16, 3});
    for (const auto& [name, shape] :
         {std::pair{"lora_A", std::vector<int64_t>{3, 768}}, {"lora_B", {kMiniHidden, 3}}}) {
      for (float& value :
           loud.add(fmt::format("model.layers.0.mlp.down_proj.{}.weight", name), shape).values)
        value *= 1e25F;
    }
    for (auto& [name, adapter] : {std::pair{"plain", &plain}, std::pair{"whole", &whole},
                                  std::pair{"small", &small}, std::pair{"loud", &loud}})
      std::filesystem::copy(adapter->write_peft(), *this / name,
                            std::filesystem::copy_options::recursive);
    std::filesystem::create_directory_symlink("/", *this / "out");
  }
  std::string operator/(const std::string& name) const { return directory_.path() + "/" + name; }
  std::string path() const { return directory_.path(); }

 private:
  TempDir directory_;
};

/// One for all tests of a process: writing it takes longer than reading it.
inline const AdapterFolder& folder() {
  static const AdapterFolder made;
  return made;
}

}  // namespace qw::test
