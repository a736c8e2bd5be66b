// What no merged weight may become.
#include "quantize/adapter_merge.h"

#include <gtest/gtest.h>

#include "quantize/checkpoint_test_support.h"
#include "support/adapter_writer.h"

namespace qw {
namespace {

using quantize::test::Bench;
using test::Adapter;

const quantize::test::TinyShape kShape{.hidden = 64, .intermediate = 128, .vocab = 48};

/// An adapter of everything that can be changed; whose values `spoil` changes.
struct Spoilt {
  explicit Spoilt(const std::function<void(Adapter&)>& spoil) {
    adapter.add("model.layers.1.self_attn.q_proj.lora_A.weight", {3, 64});
    adapter.add("model.layers.1.self_attn.q_proj.lora_B.weight", {64, 3});
    adapter.add("model.embed_tokens.lora_embedding_A", {3, 48});
    adapter.add("model.embed_tokens.lora_embedding_B", {64, 3});
    adapter.add("lm_head.weight", {48, 64});
    adapter.add("model.norm.weight", {64});
    spoil(adapter);
    path = adapter.write_peft();
  }
  Adapter adapter;
  std::string path;
};

TEST(AdapterMerge, RefusesValuesThatAreNotFinite) {
  Bench bench(kShape);
  bench.open();
  const auto merge = [&](const std::string& path) {
    return AdapterMerge(bench.config, bench.sources, {{path, 1.0}});
  };
  merge(Spoilt([](Adapter&) {}).path);
  for (const auto& [name, module] :
       {std::pair<std::string, std::string>{"model.layers.1.self_attn.q_proj.lora_A.weight",
                                            "model.layers.1.self_attn.q_proj"},
        {"model.layers.1.self_attn.q_proj.lora_B.weight", "model.layers.1.self_attn.q_proj"},
        {"model.embed_tokens.lora_embedding_A", "embed_tokens"},
        {"model.embed_tokens.lora_embedding_B", "embed_tokens"},
        {"lm_head.weight", "lm_head"},
        {"model.norm.weight", "model.norm"}}) {
    for (const float value : {NAN, INFINITY, -INFINITY}) {
      const Spoilt spoilt(
          [&, name = name](Adapter& adapter) { adapter.tensors[name].values.back() = value; });
      expect_error(ErrorKind::kCorrupt, {module, "expected finite values", spoilt.path},
                   [&] { merge(spoilt.path); });
    }
  }
  const Spoilt sound([](Adapter&) {});
  for (const double scale : {double{NAN}, double{INFINITY}}) {
    expect_error(ErrorKind::kInvalidArgument, {"scale of " + sound.path, "expected a number"}, [&] {
      AdapterMerge(bench.config, bench.sources, {{sound.path, scale}});
    });
  }
}

TEST(AdapterMerge, RefusesProductsThatNoFloatHolds) {
  Bench bench(kShape);
  bench.open();
  const Spoilt spoilt([](Adapter& adapter) {
    for (const char* of : {"A", "B"})
      adapter.tensors[std::string("model.layers.1.self_attn.q_proj.lora_") + of + ".weight"]
          .values.back() = 1e30F;
  });
  const AdapterMerge merge(bench.config, bench.sources, {{spoilt.path, 1.0}});
  const LinearSource& base = bench.sources.layers[1].qkv.parts.front();
  const RowDecoder rows = merge.rows({Slot::kQ, 1}, base);
  std::vector<float> out(static_cast<size_t>(base.n * base.k));
  rows(0, base.n - 1, out.data());
  expect_error(ErrorKind::kCorrupt, {base.name, "expected finite values, got inf", spoilt.path},
               [&] { rows(base.n - 1, 1, out.data()); });
}

}  // namespace
}  // namespace qw
