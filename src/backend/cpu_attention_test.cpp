// Attention and KV cache of the CPU backend: against a naive double-precision formula for every
// cache type and shape, and the equalities that the numeric contract promises, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend/backend.h"
#include "base/error.h"
#include "base/rng.h"
#include "kernels/isa_kernels.h"

namespace qw {
namespace {

constexpr uint64_t kSeed = 7;

struct Case {
  int n_heads = 4, n_kv_heads = 2, head_dim = 16;
  int64_t window = 0;
  DType type = DType::kF32;
  float scale = 0.3F;
};

int64_t columns(const Case& c) {
  return int64_t{c.n_heads + 2 * c.n_kv_heads} * c.head_dim;
}

/// Row `position` of sequence `id`: the same whatever it is batched or chunked with.
std::vector<float> qkv_row(const Case& c, int id, int64_t position) {
  std::vector<float> row(static_cast<size_t>(columns(c)));
  for (size_t i = 0; i < row.size(); ++i) {
    row[i] = static_cast<float>(random_normal(kSeed, static_cast<uint64_t>(id),
                                              static_cast<uint64_t>(position) * row.size() + i));
  }
  return row;
}

float angle(int64_t position, int i) {
  return static_cast<float>(position) * std::pow(10.0F, -static_cast<float>(i) * 0.25F);
}

/// Sequence `id`, of which tokens [begin, end) are computed now.
struct Piece {
  int id;
  int32_t begin, end;
};

/// A cache with a table of pages per sequence, and steps over it.
class Runner {
 public:
  Runner(const Case& c, int n_threads, uint64_t page_order = 0, int64_t n_pages = 96,
         std::string isa = "")
      : case_(c), page_order_(page_order) {
    BackendOptions options;
    options.n_threads = n_threads;
    options.isa = std::move(isa);
    backend_ = make_cpu_backend(options);
    page_tokens_ = backend_->kv_page_tokens();
    kv_ = backend_->make_kv({2, c.n_kv_heads, c.head_dim, n_pages, c.type});
    free_.resize(static_cast<size_t>(n_pages));
    std::iota(free_.begin(), free_.end(), 0);
    if (page_order_ != 0) {
      for (size_t i = free_.size() - 1; i > 0; --i)
        std::swap(free_[i], free_[random_bits(page_order, 1, i) % (i + 1)]);
    }
  }

  /// One step over the pieces; the attention output [T, n_heads * head_dim].
  std::vector<float> step(const std::vector<Piece>& pieces, int layer = 1) {
    plan_ = {};
    plan_.seq_begin = {0};
    plan_.page_begin = {0};
    std::vector<float> rows, cos, sin;
    for (const Piece& piece : pieces) {
      std::vector<int32_t>& table = tables_[static_cast<size_t>(piece.id)];
      while (static_cast<int32_t>(table.size()) * page_tokens_ < piece.end) {
        table.push_back(free_.back());
        free_.pop_back();
      }
      for (int32_t p = piece.begin; p < piece.end; ++p) {
        plan_.tokens.push_back(0);
        plan_.positions.push_back(p);
        plan_.slots.push_back(table[static_cast<size_t>(p / page_tokens_)] * page_tokens_ +
                              p % page_tokens_);
        const std::vector<float> row = qkv_row(case_, piece.id, p);
        rows.insert(rows.end(), row.begin(), row.end());
        for (int i = 0; i < case_.head_dim / 2; ++i) {
          cos.push_back(std::cos(angle(p, i)));
          sin.push_back(std::sin(angle(p, i)));
        }
      }
      plan_.seq_begin.push_back(static_cast<int32_t>(plan_.tokens.size()));
      plan_.seq_context.push_back(piece.end);
      plan_.pages.insert(plan_.pages.end(), table.begin(), table.end());
      plan_.page_begin.push_back(static_cast<int32_t>(plan_.pages.size()));
    }
    const AttentionSpec spec{case_.n_heads, case_.n_kv_heads, case_.head_dim, case_.scale,
                             case_.window};
    const auto qkv = backend_->allocate(plan_.n_tokens(), columns(case_));
    const auto o = backend_->allocate(plan_.n_tokens(), int64_t{case_.n_heads} * case_.head_dim);
    if (spoil_ >= 0) rows[static_cast<size_t>(spoil_)] = spoiled_;
    backend_->upload_rows(rows.data(), qkv->view);
    backend_->begin_step(plan_, cos, sin);
    backend_->rope_store_kv(qkv->view, *kv_, layer, spec);
    backend_->paged_attention(qkv->view, *kv_, layer, spec, o->view);
    std::vector<float> out(static_cast<size_t>(o->view.rows * o->view.cols));
    backend_->download(o->view, out.data());
    return out;
  }

  /// A value of the next steps' qkv replaced.
  void spoil(int64_t index, float value) {
    spoil_ = index;
    spoiled_ = value;
  }
  Backend& backend() { return *backend_; }
  KvCache& kv() { return *kv_; }
  std::vector<int32_t>& table(int id) { return tables_[static_cast<size_t>(id)]; }

 private:
  Case case_;
  uint64_t page_order_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> kv_;
  int page_tokens_ = 0;
  std::vector<int32_t> free_;
  std::vector<int32_t> tables_[8];
  BatchPlan plan_;
  int64_t spoil_ = -1;
  float spoiled_ = 0;
};

/// The whole sequence in chunks of at most `chunk` tokens.
std::vector<float> chunked(Runner& runner, int id, int32_t length, int32_t chunk) {
  std::vector<float> out;
  for (int32_t begin = 0; begin < length; begin += chunk) {
    const std::vector<float> part = runner.step({{id, begin, std::min(length, begin + chunk)}});
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<double> rotated(const Case& c, const std::vector<float>& row, int64_t column,
                            int64_t position) {
  const int half = c.head_dim / 2;
  std::vector<double> out(static_cast<size_t>(c.head_dim));
  for (int i = 0; i < half; ++i) {
    const double cos = std::cos(angle(position, i)), sin = std::sin(angle(position, i));
    const double a = row[static_cast<size_t>(column + i)],
                 b = row[static_cast<size_t>(column + half + i)];
    out[static_cast<size_t>(i)] = a * cos - b * sin;
    out[static_cast<size_t>(half + i)] = b * cos + a * sin;
  }
  return out;
}

/// softmax(scale q k^T) v in double, straight from the formula, nothing rounded on the way.
std::vector<double> naive(const Case& c, int id, int64_t length) {
  const int64_t hd = c.head_dim, group = c.n_heads / c.n_kv_heads;
  std::vector<std::vector<float>> rows;
  for (int64_t p = 0; p < length; ++p)
    rows.push_back(qkv_row(c, id, p));
  std::vector<double> out(static_cast<size_t>(length * c.n_heads * hd));
  for (int64_t head = 0; head < c.n_heads; ++head) {
    const int64_t k_column = (c.n_heads + head / group) * hd,
                  v_column = k_column + c.n_kv_heads * hd;
    std::vector<std::vector<double>> keys;
    for (int64_t p = 0; p < length; ++p)
      keys.push_back(rotated(c, rows[static_cast<size_t>(p)], k_column, p));
    for (int64_t i = 0; i < length; ++i) {
      const std::vector<double> q = rotated(c, rows[static_cast<size_t>(i)], head * hd, i);
      double total = 0;
      std::vector<double> sum(static_cast<size_t>(hd));
      for (int64_t j = c.window > 0 ? std::max<int64_t>(0, i - c.window + 1) : 0; j <= i; ++j) {
        const auto& k = keys[static_cast<size_t>(j)];
        const double e = std::exp(static_cast<double>(c.scale) *
                                  std::inner_product(q.begin(), q.end(), k.begin(), 0.0));
        total += e;
        for (int64_t d = 0; d < hd; ++d)
          sum[static_cast<size_t>(d)] +=
              e *
              static_cast<double>(rows[static_cast<size_t>(j)][static_cast<size_t>(v_column + d)]);
      }
      for (int64_t d = 0; d < hd; ++d)
        out[static_cast<size_t>((i * c.n_heads + head) * hd + d)] =
            sum[static_cast<size_t>(d)] / total;
    }
  }
  return out;
}

double largest_difference(const std::vector<float>& got, const std::vector<double>& want) {
  double out = got.size() == want.size() ? 0 : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < got.size() && i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(difference <= out)) out = difference;
  }
  return out;
}

std::vector<std::string> isa_paths() {
  std::vector<std::string> out;
  for (const kernels::IsaKernels* row : kernels::isa_kernels(kernels::detect_isa())) {
    if (row->attention != nullptr) out.emplace_back(name_of(row->level));
  }
  return out;
}

std::string describe(const Case& c) {
  return fmt::format("{} heads over {}, head_dim {}, window {}, {}", c.n_heads, c.n_kv_heads,
                     c.head_dim, c.window, name_of(c.type));
}

/// Largest error of an output element; values are standard normal. Rounding of the cache's type
/// dominates, but for f32.
double tolerance(DType type) {
  switch (type) {
    case DType::kF32:
      return 1e-5;
    case DType::kF16:
      return 4e-3;
    case DType::kBF16:
      return 3e-2;
    case DType::kQ8_0:
      return 5e-2;
    default:
      return 0.8;
  }
}

std::vector<Case> shapes() {
  std::vector<Case> out;
  for (const int head_dim : {6, 16, 64, 80, 128}) {
    const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
    out.push_back({4, 4, head_dim, 0, DType::kF32, scale});
    out.push_back({4, 2, head_dim, 0, DType::kF32, scale});
    out.push_back({7, 1, head_dim, 0, DType::kF32, scale});
    out.push_back({4, 2, head_dim, 70, DType::kF32, scale});
    out.push_back({2, 1, head_dim, 1, DType::kF32, scale});
  }
  return out;
}

TEST(CpuAttention, MatchesTheFormulaForEveryShapeTypeAndIsa) {
  constexpr int kLength = 150;  // three pages, the last one partly filled
  for (Case c : shapes()) {
    const std::vector<double> want = naive(c, 0, kLength);
    for (const std::string& isa : isa_paths()) {
      for (const DType type :
           {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
        c.type = type;
        Runner whole(c, 2, 1, 8, isa);
        EXPECT_LE(largest_difference(whole.step({{0, 0, kLength}}), want), tolerance(type))
            << describe(c) << " " << isa;
      }
    }
  }
}

TEST(CpuAttention, MatchesTheFormulaAtPageAndSpanBoundaries) {
  for (const int64_t window : {int64_t{0}, int64_t{64}, int64_t{513}}) {
    const Case c{2, 1, 16, window, DType::kF32, 0.25F};
    const std::vector<double> want = naive(c, 0, 1100);
    for (const int32_t length :
         {1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1024, 1025, 1100}) {
      Runner runner(c, 2);
      const std::vector<double> prefix(want.begin(),
                                       want.begin() + length * c.n_heads * c.head_dim);
      EXPECT_LE(largest_difference(runner.step({{0, 0, length}}), prefix), 1e-5)
          << length << " window " << window;
    }
  }
}

TEST(CpuAttention, ChunkingChangesNoBit) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    for (const int64_t window : {int64_t{0}, int64_t{100}}) {
      const Case c{6, 2, 16, window, type, 0.25F};
      constexpr int32_t kLength = 600;  // more than one span
      Runner whole(c, 2);
      const std::vector<float> want = whole.step({{0, 0, kLength}});
      for (const int32_t chunk : {1, 7, 64, 96, 599}) {
        Runner runner(c, 2);
        EXPECT_TRUE(same_bits(chunked(runner, 0, kLength, chunk), want))
            << describe(c) << " chunk " << chunk;
      }
    }
  }
}

TEST(CpuAttention, SpansLieOnOneGridWhateverTheWindow) {
  // A window longer than a span: where a tile's first page lies must not move the spans.
  const Case c{2, 2, 16, 600, DType::kF16, 0.25F};
  constexpr int32_t kLength = 1500;
  Runner whole(c, 2);
  const std::vector<float> want = whole.step({{0, 0, kLength}});
  for (const int32_t chunk : {5, 70, 299}) {
    Runner runner(c, 2);
    EXPECT_TRUE(same_bits(chunked(runner, 0, kLength, chunk), want)) << chunk;
  }
}

TEST(CpuAttention, ThreadsChangeNoBit) {
  const Case c{4, 1, 80, 0, DType::kF16, 0.11F};
  Runner alone(c, 1);
  const std::vector<float> want =
      chunked(alone, 0, 1300, 1299);  // a prefill and a decode over 3 spans
  for (const int n_threads : {2, 4}) {
    Runner team(c, n_threads);
    EXPECT_TRUE(same_bits(chunked(team, 0, 1300, 1299), want)) << n_threads;
  }
}

TEST(CpuAttention, BatchMatesAndPageOrderChangeNoBit) {
  for (const DType type : {DType::kF16, DType::kQ8_0}) {
    const Case c{4, 2, 64, 0, type, 0.125F};
    Runner alone(c, 2);
    const std::vector<float> prefill = alone.step({{0, 0, 200}});
    const std::vector<float> decode = alone.step({{0, 200, 201}});
    for (const uint64_t order : {0, 3, 4}) {
      Runner crowd(c, 2, order);
      crowd.step({{1, 0, 333}, {2, 0, 5}});
      std::vector<float> got = crowd.step({{2, 5, 6}, {0, 0, 200}, {1, 333, 400}});
      const auto width = static_cast<int64_t>(c.n_heads) * c.head_dim;
      EXPECT_TRUE(same_bits({got.begin() + width, got.begin() + 201 * width}, prefill)) << order;
      got = crowd.step({{1, 400, 401}, {0, 200, 201}});
      EXPECT_TRUE(same_bits({got.begin() + width, got.end()}, decode)) << order;
    }
  }
}

TEST(CpuAttention, StaleBytesBehindTheContextAreNeverSeen) {
  // A page that held NaN and infinity is handed to a new sequence.
  const Case c{2, 2, 16, 0, DType::kF32, 0.25F};
  Runner clean(c, 1), dirty(c, 1);
  const std::vector<float> want = clean.step({{0, 0, 70}});
  for (int64_t i = 0; i < 30 * columns(c); ++i) {
    dirty.spoil(i, i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                              : std::numeric_limits<float>::infinity());
    if (i % 97 == 0) dirty.step({{1, 0, 128}});
  }
  dirty.backend().take_fault();
  dirty.spoil(-1, 0);
  dirty.table(0) = dirty.table(1);
  EXPECT_TRUE(same_bits(dirty.step({{0, 0, 70}}), want));
  EXPECT_FALSE(dirty.backend().take_fault().has_value());
}

TEST(CpuAttention, ValuesThatAreNotFiniteAreReportedWithTheirRow) {
  const Case c{4, 2, 16, 0, DType::kF32, 0.25F};
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    Case typed = c;
    typed.type = type;
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      for (const int column : {3, 4 * 16 + 5, 6 * 16 + 7}) {  // in q, k, v
        Runner runner(typed, 2);
        runner.spoil(90 * columns(c) + column, value);
        runner.step({{0, 0, 100}});
        const auto fault = runner.backend().take_fault();
        ASSERT_TRUE(fault.has_value())
            << describe(typed) << " column " << column << " value " << value;
        EXPECT_FALSE(runner.backend().take_fault().has_value());
      }
    }
    Runner runner(typed, 2);
    runner.spoil(90 * columns(c) + 3, std::numeric_limits<float>::quiet_NaN());
    runner.step({{0, 0, 100}});
    EXPECT_EQ(runner.backend().take_fault().value_or(NumericFault{}).row, 90);
  }
}

TEST(CpuAttention, CopiedPageGivesTheSameBits) {
  const Case c{4, 2, 80, 0, DType::kQ4_0, 0.11F};
  Runner plain(c, 1), forked(c, 1);
  plain.step({{0, 0, 100}});
  forked.step({{0, 0, 100}});
  forked.kv().copy_page(forked.table(0)[1], 50, 100 - 64);
  forked.table(0)[1] = 50;
  EXPECT_TRUE(same_bits(forked.step({{0, 100, 101}}), plain.step({{0, 100, 101}})));
}

TEST(CpuKv, BytesAreExact) {
  const auto backend = make_cpu_backend({});
  const int64_t tokens = 10 * backend->kv_page_tokens();
  const auto per_element = [&](DType type, int head_dim) {
    const KvSpec spec{3, 2, head_dim, 10, type};
    EXPECT_EQ(backend->kv_bytes(spec), backend->make_kv(spec)->resident_bytes);
    return static_cast<double>(backend->kv_bytes(spec)) /
           static_cast<double>(tokens * 3 * 2 * 2 * head_dim);
  };
  EXPECT_EQ(per_element(DType::kF32, 64), 4.0);
  EXPECT_EQ(per_element(DType::kF16, 128), 2.0);
  EXPECT_EQ(per_element(DType::kBF16, 80), 2.0);
  EXPECT_EQ(per_element(DType::kQ8_0, 64), 34.0 / 32);
  EXPECT_EQ(per_element(DType::kQ4_0, 128), 18.0 / 32);
  EXPECT_THROW(backend->kv_bytes({3, 2, 64, 10, DType::kQ4_K}), Error);
  EXPECT_THROW(backend->kv_bytes({3, 2, 7, 10, DType::kF16}), Error);
  EXPECT_THROW(backend->kv_bytes({3, 2, 64, int64_t{1} << 60, DType::kF16}), Error);
}

}  // namespace
}  // namespace qw
