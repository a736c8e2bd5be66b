// A model without weights for tests: its logits are a hash of the tokens in the KV cache.
//
// Level 6 (engine), tests only. Every slot of the cache holds the token and position written to it,
// so a wrong page, a missing copy or a stale slot changes the logits: what the engine does to the
// cache is checked through what it generates.
#pragma once

#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "model/model.h"
#include "text/tokenizer.h"

namespace qw {

/// A tokenizer whose token i is texts[i], which must differ; 256 tokens of one byte each come
/// after.
inline std::shared_ptr<const Tokenizer> fake_tokenizer(const std::vector<std::string>& texts) {
  TokenizerSpec spec;
  spec.source = "made up";
  spec.alphabet = TokenAlphabet::kByteFallback;
  spec.split = SplitPattern::kNone;
  spec.tokens = texts;
  for (int byte = 0; byte < 256; ++byte)
    spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
  return std::make_shared<const Tokenizer>(spec);
}

class FakeKv : public KvCache {
 public:
  FakeKv(int64_t n_pages, int page_tokens_in)
      : tokens(static_cast<size_t>(n_pages * page_tokens_in), -1), positions(tokens.size(), -1) {
    page_tokens = page_tokens_in;
    spec.n_pages = n_pages;
  }
  void copy_page(int32_t from, int32_t to, int n_tokens) override {
    for (int i = 0; i < n_tokens; ++i) {
      tokens.at(static_cast<size_t>(to * page_tokens + i)) =
          tokens.at(static_cast<size_t>(from * page_tokens + i));
      positions.at(static_cast<size_t>(to * page_tokens + i)) =
          positions.at(static_cast<size_t>(from * page_tokens + i));
    }
  }
  int64_t page_bytes() const override { return page_tokens * int64_t{2 * sizeof(int32_t)}; }
  void read_page(int32_t page, std::span<std::byte> out) const override {
    const auto size = static_cast<size_t>(page_tokens) * sizeof(int32_t);
    std::memcpy(out.data(), tokens.data() + page * page_tokens, size);
    std::memcpy(out.data() + size, positions.data() + page * page_tokens, size);
  }
  void write_page(int32_t page, std::span<const std::byte> in) override {
    const auto size = static_cast<size_t>(page_tokens) * sizeof(int32_t);
    std::memcpy(tokens.data() + page * page_tokens, in.data(), size);
    std::memcpy(positions.data() + page * page_tokens, in.data() + size, size);
  }
  std::string layout_name() const override { return fmt::format("fake, {} tokens", page_tokens); }
  std::vector<int32_t> tokens, positions;
};

/// Only what an engine asks of a backend.
class FakeBackend : public Backend {
 public:
  explicit FakeBackend(int page_tokens) : page_tokens_(page_tokens) {}
  std::string_view name() const override { return "fake"; }
  int n_threads() const override { return 1; }
  int kv_page_tokens() const override { return page_tokens_; }
  int64_t kv_bytes(const KvSpec& spec) const override { return spec.n_pages; }

  std::unique_ptr<RowsBuffer> allocate(int64_t, int64_t) override { unused(); }
  std::unique_ptr<LinearWeight> pack_linear(std::span<const LinearSource>) override { unused(); }
  std::unique_ptr<EmbeddingWeight> pack_embedding(const LinearSource&) override { unused(); }
  std::unique_ptr<DeviceVector> upload(std::span<const float>) override { unused(); }
  std::unique_ptr<Backend> make_packer() const override { unused(); }
  std::unique_ptr<KvCache> make_kv(const KvSpec&) override { unused(); }
  void download(const Rows&, float*) const override { unused(); }
  void upload_rows(const float*, const Rows&) const override { unused(); }
  void begin_step(const BatchPlan&, std::span<const float>, std::span<const float>) override {
    unused();
  }
  void embed(const EmbeddingWeight&, int64_t, int64_t, const Rows&) override { unused(); }
  void add_rms_norm(const Rows&, const Rows&, const DeviceVector&, float, const Rows&) override {
    unused();
  }
  void linear(const Rows&, const Linear&, const Rows&, Epilogue,
              std::span<const int32_t>) override {
    unused();
  }
  void rope_store_kv(const Rows&, KvCache&, int, const AttentionSpec&) override { unused(); }
  void paged_attention(const Rows&, const KvCache&, int, const AttentionSpec&,
                       const Rows&) override {
    unused();
  }
  void silu_mul(const Rows&) override { unused(); }
  void moe_ffn(const Rows&, const MoeWeights&, const Rows&, float*) override { unused(); }
  std::optional<NumericFault> take_fault() override { return std::nullopt; }

 private:
  [[noreturn]] static void unused() {
    throw std::logic_error("the fake backend does no arithmetic");
  }
  int page_tokens_;
};

class FakeModel : public Model {
 public:
  static constexpr int kHidden = 8;

  explicit FakeModel(int64_t vocab = 50, int page_tokens = 4)
      : backend_(page_tokens), page_tokens_(page_tokens) {
    config_.vocab = vocab;
    config_.max_positions = 256;
    install_adapter(std::make_unique<StagedAdapter>());  // 0
  }
  const ModelConfig& config() const override { return config_; }
  void set_max_positions(int64_t n) { config_.max_positions = n; }
  Backend& backend() const override { return backend_; }
  std::unique_ptr<StagedAdapter> stage_adapters(const std::vector<AdapterSpec>&,
                                                const StageOptions&) override {
    return std::make_unique<StagedAdapter>();
  }
  std::string content_name(int32_t adapter, size_t) const override {
    return content.empty() || adapter < 0 ? content : fmt::format("adapter {}", adapter);
  }
  std::unique_ptr<KvCache> make_kv(int64_t n_pages, DType) const override {
    return std::make_unique<FakeKv>(n_pages, page_tokens_);
  }
  int64_t weight_bytes() const override { return 0; }
  int64_t read_bytes_per_token() const override { return 0; }
  std::vector<LayerInfo> layers() const override { return {}; }

  void forward(const BatchPlan& plan, KvCache& cache, float* logits,
               ForwardObserver* observer) override {
    auto& kv = dynamic_cast<FakeKv&>(cache);
    ++n_forwards;
    n_computed += plan.n_tokens();
    for (const int32_t adapter : plan.adapters)
      QW_CHECK(adapter < 0 || installed.contains(adapter), "adapter {} is gone", adapter);
    if (throw_after >= 0 && n_forwards > throw_after)
      fail(ErrorKind::kCorrupt, "model", "layer 3: not a number");
    max_rows = std::max(max_rows, plan.logit_rows.size());
    n_rows += std::ssize(plan.logit_rows);
    for (int64_t t = 0; t < plan.n_tokens(); ++t) {
      largest_token = std::max(largest_token, plan.tokens[static_cast<size_t>(t)]);
      kv.tokens.at(static_cast<size_t>(plan.slots[static_cast<size_t>(t)])) =
          plan.tokens[static_cast<size_t>(t)];
      kv.positions.at(static_cast<size_t>(plan.slots[static_cast<size_t>(t)])) =
          plan.positions[static_cast<size_t>(t)];
    }
    for (int64_t t = 0; t < plan.n_tokens(); ++t) {
      const auto row = static_cast<size_t>(t);
      if (plan.tokens[row] != broken_token || plan.positions[row] < broken_from) continue;
      ++n_broken;
      throw NumericError("[model] hidden state: not finite (layer 3)", t);
    }
    std::vector<uint64_t> hashes(static_cast<size_t>(plan.n_tokens()));
    for (int64_t s = 0; s < plan.n_seqs(); ++s)
      hash_sequence(plan, kv, static_cast<size_t>(s), hashes);
    if (observer != nullptr && observer->wants("hidden.norm")) {
      std::vector<float> hidden;
      for (const uint64_t h : hashes) {
        for (uint64_t i = 0; i < kHidden; ++i)
          hidden.push_back(static_cast<float>(random_normal(h, 1, i)));
      }
      observer->on_value("hidden.norm", plan.n_tokens(), kHidden, hidden.data());
    }
    for (size_t r = 0; r < plan.logit_rows.size(); ++r) {
      const uint64_t h = hashes[static_cast<size_t>(plan.logit_rows[r])];
      for (int64_t v = 0; v < config_.vocab; ++v) {
        const auto row = static_cast<size_t>(plan.logit_rows[r]);
        const auto token = static_cast<uint64_t>(v), last = static_cast<uint64_t>(plan.tokens[row]);
        double value = random_normal(h, 0, token);
        if (habit != 0) value += habit * random_normal(last, 1, token);
        if (noise != 0) value += noise * random_normal(h, 2, token);
        logits[static_cast<int64_t>(r) * config_.vocab + v] = static_cast<float>(value);
      }
      const bool is_nan = plan.tokens[static_cast<size_t>(plan.logit_rows[r])] == nan_token;
      if (is_nan || (broken_after >= 0 && n_forwards > broken_after))
        logits[static_cast<int64_t>(r) * config_.vocab] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  std::string content;                          // a name of its weights; "": none
  int64_t n_forwards = 0, n_computed = 0;       // tokens
  int64_t broken_after = -1, throw_after = -1;  // forwards that go well
  int32_t broken_token = -1;  // a hidden state of this token, from that position on, is not finite
  int64_t broken_from = 0, n_broken = 0;
  int32_t nan_token = -1;  // the logits after this token begin with NaN
  size_t max_rows = 0;
  int64_t n_rows = 0;
  /// How much a token follows from the last one alone: text with a habit repeats itself.
  double habit = 0;
  /// How much it differs from a model without, which it then guesses less well.
  double noise = 0;
  int32_t largest_token = -1;   // that was ever computed
  std::set<int32_t> installed;  // adapters

 protected:
  void put_adapter(int32_t id, StagedAdapter&) override { installed.insert(id); }
  void take_adapter(int32_t id, StagedAdapter&) noexcept override { installed.erase(id); }

 private:
  /// The hash of a row is over adapter and tokens 0 .. its position, read through the page table.
  void hash_sequence(const BatchPlan& plan, const FakeKv& kv, size_t s,
                     std::vector<uint64_t>& hashes) const {
    uint64_t h = static_cast<uint64_t>(plan.adapters[s] + 2);
    int32_t hashed = 0;
    for (int32_t row = plan.seq_begin[s]; row < plan.seq_begin[s + 1]; ++row) {
      const int32_t position = plan.positions[static_cast<size_t>(row)];
      for (; hashed <= position; ++hashed) {
        const int32_t page =
            plan.pages.at(static_cast<size_t>(plan.page_begin[s] + hashed / page_tokens_));
        const auto slot = static_cast<size_t>(page * page_tokens_ + hashed % page_tokens_);
        QW_CHECK(kv.positions.at(slot) == hashed, "slot {} holds position {}, expected {}", slot,
                 kv.positions[slot], hashed);
        h = random_bits(h, static_cast<uint64_t>(kv.tokens[slot]), static_cast<uint64_t>(hashed));
      }
      hashes[static_cast<size_t>(row)] = h;
    }
    QW_CHECK(plan.seq_context[s] == hashed, "context {} after {} tokens", plan.seq_context[s],
             hashed);
  }

  mutable FakeBackend backend_;
  ModelConfig config_;
  int page_tokens_;
};

}  // namespace qw
