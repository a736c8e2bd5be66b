// /classify against a forward pass in doubles, on a checkpoint made here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "support/running_service.h"
#include "support/tiny_checkpoint.h"

namespace qw::server {
namespace {

using qw::test::TinyCheckpoint;
using qw::testing::RunningService;
using qw::testing::service_options;
using ::testing::HasSubstr;
using Vector = std::vector<double>;

constexpr int kClasses = 3;

struct TinyClassifier : TinyCheckpoint {
  TinyClassifier() {
    config["architectures"] = {"Qwen2ForSequenceClassification"};
    config["id2label"] = {{"0", "bad"}, {"1", "so so"}, {"2", "good"}};
    tensors.erase("lm_head.weight");
    add("score.weight", {kClasses, 16});
    for (float& value : tensors["score.weight"].values)
      value *= 3;  // so that the classes differ
  }
};

/// Qwen2 as the papers have it, in doubles: the reference.
class Reference {
 public:
  explicit Reference(const TinyCheckpoint& tiny) : tiny_(tiny) {}

  Vector probabilities(const std::vector<int>& ids) const {
    std::vector<Vector> x;
    for (const int id : ids) {
      const auto& table = tiny_.tensors.at("model.embed_tokens.weight").values;
      x.emplace_back(table.begin() + id * kHidden, table.begin() + (id + 1) * kHidden);
    }
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      attend(prefix, x);
      for (Vector& row : x)
        add(row, feed_forward(prefix + "mlp.", norm(prefix + "post_attention_layernorm", row)));
    }
    Vector out = matrix("score", norm("model.norm", x.back()));
    softmax(out);
    return out;
  }

 private:
  static constexpr int kHidden = 16, kHeads = 4, kKvHeads = 2, kHeadDim = 4;

  static void add(Vector& a, const Vector& b) {
    for (size_t i = 0; i < a.size(); ++i)
      a[i] += b[i];
  }
  static void softmax(Vector& values) {
    double sum = 0;
    for (double& value : values)
      sum += value = std::exp(value);
    for (double& value : values)
      value /= sum;
  }
  Vector matrix(const std::string& name, const Vector& x) const {
    const auto& weight = tiny_.tensors.at(name + ".weight").values;
    Vector out(weight.size() / x.size());
    for (size_t i = 0; i < weight.size(); ++i)
      out[i / x.size()] += static_cast<double>(weight[i]) * x[i % x.size()];
    const auto bias = tiny_.tensors.find(name + ".bias");
    if (bias == tiny_.tensors.end()) return out;
    for (size_t i = 0; i < out.size(); ++i)
      out[i] += static_cast<double>(bias->second.values[i]);
    return out;
  }
  Vector norm(const std::string& name, Vector x) const {
    const double mean = std::inner_product(x.begin(), x.end(), x.begin(), 0.0) / kHidden;
    for (size_t i = 0; i < x.size(); ++i)
      x[i] *= static_cast<double>(tiny_.tensors.at(name + ".weight").values[i]) /
              std::sqrt(mean + 1e-6);
    return x;
  }
  Vector feed_forward(const std::string& prefix, const Vector& x) const {
    Vector gate = matrix(prefix + "gate_proj", x);
    const Vector up = matrix(prefix + "up_proj", x);
    for (size_t i = 0; i < gate.size(); ++i)
      gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    return matrix(prefix + "down_proj", gate);
  }
  static void rotate(Vector& heads, size_t position) {
    for (size_t head = 0; head < heads.size(); head += kHeadDim) {
      for (size_t i = 0; i < kHeadDim / 2; ++i) {
        const double angle =
            static_cast<double>(position) * std::pow(1e4, -2.0 * static_cast<double>(i) / kHeadDim);
        double &a = heads[head + i], &b = heads[head + i + kHeadDim / 2];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
  }
  void attend(const std::string& prefix, std::vector<Vector>& x) const {
    std::vector<Vector> q, k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Vector h = norm(prefix + "input_layernorm", x[t]);
      q.push_back(matrix(prefix + "self_attn.q_proj", h));
      k.push_back(matrix(prefix + "self_attn.k_proj", h));
      v.push_back(matrix(prefix + "self_attn.v_proj", h));
      rotate(q.back(), t);
      rotate(k.back(), t);
    }
    for (size_t t = 0; t < x.size(); ++t) {
      Vector mixed(kHidden);
      for (size_t head = 0; head < kHeads; ++head) {
        const size_t kv = head / (kHeads / kKvHeads) * kHeadDim, own = head * kHeadDim;
        Vector weights;
        for (size_t s = 0; s <= t; ++s) {
          double sum = 0;
          for (size_t i = 0; i < kHeadDim; ++i)
            sum += q[t][own + i] * k[s][kv + i];
          weights.push_back(sum / std::sqrt(static_cast<double>(kHeadDim)));
        }
        softmax(weights);
        for (size_t s = 0; s <= t; ++s) {
          for (size_t i = 0; i < kHeadDim; ++i)
            mixed[own + i] += weights[s] * v[s][kv + i];
        }
      }
      add(x[t], matrix(prefix + "self_attn.o_proj", mixed));
    }
  }

  const TinyCheckpoint& tiny_;
};

ServiceOptions options_for(const TinyCheckpoint& tiny) {
  ServiceOptions options = service_options();
  ModelSpec& spec = options.models[0];
  spec.name = "tiny";
  spec.path = tiny.write();
  spec.open.device = "reference";
  spec.open.engine.kv_type = "f32";
  spec.open.engine.ctx = 64;
  return options;
}

TEST(Classify, GivesTheProbabilitiesOfTheReference) {
  const TinyClassifier tiny;
  const RunningService running(options_for(tiny));
  const std::vector<std::vector<int>> texts = {{3, 14, 15, 9, 2}, {7}, {1, 1, 2, 3, 5, 8, 13, 21}};
  const Json answer = running.post("/classify", {{"input", texts}});
  ASSERT_TRUE(answer.contains("data")) << answer;
  ASSERT_EQ(answer["data"].size(), texts.size());
  EXPECT_EQ(answer["object"], "list");
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 14);
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto& item = answer["data"][i];
    const Vector expected = Reference(tiny).probabilities(texts[i]);
    EXPECT_EQ(item["num_classes"], kClasses);
    EXPECT_EQ(item["index"], i);
    double sum = 0;
    for (size_t c = 0; c < kClasses; ++c) {
      EXPECT_NEAR(item["probs"][c].get<double>(), expected[c], 1e-5) << i << " " << c;
      sum += item["probs"][c].get<double>();
    }
    EXPECT_NEAR(sum, 1, 1e-12);
    const auto best = std::ranges::max_element(expected) - expected.begin();
    EXPECT_EQ(item["label"], (std::vector{"bad", "so so", "good"})[static_cast<size_t>(best)]);
  }
}

TEST(Classify, TellsClassifiersFromModelsThatGenerate) {
  const TinyClassifier tiny;
  const RunningService running(options_for(tiny)), causal;
  int status = 0;
  const auto refused = running.post("/v1/completions", {{"prompt", {1, 2}}}, &status);
  EXPECT_EQ(status, 400);
  EXPECT_THAT(refused.dump(), HasSubstr("expected one that generates text"));
  const auto other = causal.post("/classify", {{"input", "Hi"}}, &status);
  EXPECT_EQ(status, 400);
  EXPECT_THAT(other.dump(), HasSubstr("the architecture Qwen2ForSequenceClassification"));
  EXPECT_THAT(other.dump(), HasSubstr("got mini, a Qwen2ForCausalLM"));
}

TEST(Classify, EndsWhenItsTimeIsOver) {
  const TinyClassifier tiny;
  ServiceOptions options = options_for(tiny);
  options.models[0].open.engine.ctx = 512;
  const RunningService running(options);
  // Fewer than may wait: what was cancelled leaves the queue with the next step.
  std::vector<std::vector<int>> texts(400, std::vector<int>(500, 3));
  for (size_t i = 0; i < texts.size(); ++i) {  // and no two that begin alike
    for (size_t digit = 0; digit < 4; ++digit)
      texts[i][digit] = 1 + static_cast<int>(i >> (3 * digit) & 7);
  }
  int status = 0;
  running.post("/classify", {{"input", texts}, {"timeout", 0.001}}, &status);
  EXPECT_EQ(status, 504);
  running.post("/classify", {{"input", {7}}, {"timeout", 60}}, &status);
  EXPECT_EQ(status, 200);
}

TEST(Classify, NamesWhatIsWrongWithACheckpoint) {
  // When it is loaded.
  const auto error_of = [](const TinyCheckpoint& tiny) -> std::string {
    try {
      const ServedModel model(options_for(tiny).models[0],
                              [](const std::function<void()>& task) { task(); });
      return model.classifier()->labels().front();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCorrupt) << error.message();
      return error.message();
    }
  };
  TinyClassifier unnamed;
  unnamed.config.erase("id2label");
  EXPECT_EQ(error_of(unnamed), "LABEL_0");
  TinyClassifier labels;
  labels.config["id2label"].erase("2");
  EXPECT_THAT(error_of(labels), HasSubstr("id2label: expected a name for each of 3 classes"));
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{kClasses, 8}, {0, 16}}) {
    TinyClassifier shape;
    shape.tensors.erase("score.weight");
    shape.add("score.weight", sizes);
    EXPECT_THAT(error_of(shape), HasSubstr("score.weight"));
  }
  TinyClassifier infinite;
  infinite.tensors["score.weight"].values[17] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(error_of(infinite), HasSubstr("expected finite numbers"));
  TinyClassifier headless;
  headless.tensors.erase("score.weight");
  const ServiceOptions options = options_for(headless);
  EXPECT_THROW(open_model(options.models[0].path, options.models[0].open), Error);
}

}  // namespace
}  // namespace qw::server
