// A directory of adapters of the bundled model, made up.
#pragma once

#include <filesystem>
#include <string>

#include "support/adapter_writer.h"

namespace qw::soak {

/// "plain" (deltas) and "whole" (a head of its own, as modules_to_save gives).
class AdapterFolder {
 public:
  AdapterFolder() {
    constexpr int64_t kHidden = 256, kVocab = 6016;
    test::Adapter plain, whole;
    for (const std::string layer : {"model.layers.0.", "model.layers.5."}) {
      plain.add(layer + "self_attn.q_proj.lora_A.weight", {3, kHidden});
      plain.add(layer + "self_attn.q_proj.lora_B.weight", {kHidden, 3});
    }
    whole.add("lm_head.weight", {kVocab, kHidden});
    std::filesystem::copy(plain.write_peft(), path() + "/plain",
                          std::filesystem::copy_options::recursive);
    std::filesystem::copy(whole.write_peft(), path() + "/whole",
                          std::filesystem::copy_options::recursive);
  }
  std::string path() const { return directory_.path(); }

 private:
  TempDir directory_;
};

}  // namespace qw::soak
