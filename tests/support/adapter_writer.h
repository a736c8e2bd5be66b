// Adapters made up for tests, written in the ways in which they are published.
//
// Part of the tests; header only.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "checkpoint/gguf.h"
#include "checkpoint/torch_test_writer.h"
#include "support/tiny_checkpoint.h"

namespace qw::test {

/// Tensors of an adapter, and the ways in which they are published.
class Adapter {
 public:
  static constexpr int64_t kRank = 3;
  static constexpr double kAlpha = 4.5;

  TinyTensor& add(const std::string& name, const std::vector<int64_t>& shape) {
    TinyTensor& tensor = tensors[name];
    tensor.shape = Shape(shape, name);
    const auto stream = static_cast<uint64_t>(tensors.size());
    for (int64_t i = 0; i < tensor.shape.n_elems(); ++i)
      tensor.values.push_back(
          static_cast<float>(0.3 * random_normal(7, stream, static_cast<uint64_t>(i))));
    return tensor;
  }

  std::string write_peft() const {
    write_config();
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, tensor] : tensors)
      entries.push_back({"base_model.model." + name, DType::kF32, tensor.shape});
    SafetensorsWriter out(directory_ / "adapter_model.safetensors", entries);
    for (const auto& [name, tensor] : tensors)
      out.write(std::as_bytes(std::span(tensor.values)));
    out.finish();
    return directory_.path();
  }

  /// adapter_model.bin, a pickle, as peft wrote it before safetensors.
  std::string write_peft_pickle() const {
    using namespace torch_test;
    write_config();
    std::vector<std::pair<std::string, std::string>> items;
    std::vector<Stored> storages;
    for (const auto& [name, t] : tensors) {
      const std::string key = std::to_string(storages.size());
      const int64_t n = t.shape.n_elems();
      items.emplace_back(
          "base_model.model." + name,
          tensor(storage(key, "FloatStorage", n), 0, {t.shape[0], t.shape[1]}, {t.shape[1], 1}));
      storages.push_back(
          {key,
           n,
           {reinterpret_cast<const char*>(t.values.data()), t.values.size() * sizeof(float)}});
    }
    directory_.write("adapter_model.bin", legacy(dict(items), storages));
    return directory_.path();
  }

  std::string write_gguf(const char* architecture = "qwen2") const {
    GgufWriter writer;
    writer.entries = {{"general.architecture", GgufValue::string(architecture)},
                      {"general.type", GgufValue::string("adapter")},
                      {"adapter.type", GgufValue::string("lora")},
                      {"adapter.lora.alpha", GgufValue::f32(static_cast<float>(kAlpha))}};
    std::vector<const TinyTensor*> order;
    for (const auto& [name, tensor] : tensors) {
      writer.tensors.push_back({name, DType::kF32, tensor.shape});
      order.push_back(&tensor);
    }
    const std::string path = directory_ / "adapter.gguf";
    qw::write_gguf(path, writer, [&](size_t i, GgufSink sink) {
      sink(std::as_bytes(std::span(order[i]->values)));
    });
    return path;
  }

  std::string path() const { return directory_.path(); }
  std::map<std::string, TinyTensor> tensors;

 private:
  void write_config() const {
    directory_.write("adapter_config.json", nlohmann::json{{"peft_type", "LORA"},
                                                           {"r", kRank},
                                                           {"lora_alpha", kAlpha},
                                                           {"target_modules", {"q_proj"}}}
                                                .dump());
  }
  TempDir directory_;
};

}  // namespace qw::test
