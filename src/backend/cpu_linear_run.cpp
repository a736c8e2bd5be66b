// Running packed linear layers: all inputs are rounded, then all jobs are done, each by one loop
// over the team, however many products there are.
//
// Level 4 (backend). What a job is: cpu_linear_piece.h.
#include <algorithm>
#include <vector>

#include "backend/cpu_linear.h"
#include "backend/cpu_linear_piece.h"
#include "base/error.h"

namespace qw {

using kernels::ActBlock;
using kernels::kBlock;
using kernels::kTileRows;

namespace {

/// Work below this many activations is not worth waking the team for.
constexpr int64_t kSerialElems = 8192;
/// Jobs per thread that a step should have, so that none waits long for the last.
constexpr int64_t kJobsPerThread = 4;
/// Inputs of products begin on cache lines.
constexpr int64_t kLine = 64;

/// Items of all pieces in one row: piece i has [begins[i], begins[i + 1]).
class Items {
 public:
  void clear() { begins_.resize(1); }
  void add(int64_t n) { begins_.push_back(begins_.back() + n); }
  int64_t size() const { return begins_.back(); }
  /// body(piece, item of it) for items [begin, end).
  template <class Body>
  void for_each(int64_t begin, int64_t end, const Body& body) const {
    auto piece = static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end(), begin) -
                                     begins_.begin() - 1);
    for (int64_t i = begin; i < end; ++i) {
      while (i >= begins_[piece + 1])
        ++piece;
      body(piece, i - begins_[piece]);
    }
  }

 private:
  std::vector<int64_t> begins_{0};
};

}  // namespace

/// Kept from call to call: a step of decoding has hundreds.
struct LinearScratch {
  std::vector<LinearPiece> pieces;
  Items rows, jobs;
  Growing gathered, rounded;
  std::vector<TileScratch> threads;
};

CpuContext::CpuContext(const BackendOptions& options)
    : pool(options.n_threads > 0 ? options.n_threads : physical_cores()),
      isa(kernels::choose_isa(options.isa)),
      activations(options.activations),
      linear_scratch(std::make_unique<LinearScratch>()),
      store(options.packed_cache.empty() ? nullptr
                                         : std::make_unique<PackedStore>(options.packed_cache)) {
  linear_scratch->threads.resize(static_cast<size_t>(pool.size()));
}

CpuContext::~CpuContext() = default;

namespace {

void place_inputs(LinearScratch& scratch) {
  int64_t gathered = 0, rounded = 0;
  for (const LinearPiece& piece : scratch.pieces) {
    gathered += round_up(piece.gathered_bytes(), kLine);
    rounded += round_up(piece.rounded_bytes(), kLine);
  }
  uint8_t* to_gather = gathered != 0 ? scratch.gathered.at_least(gathered) : nullptr;
  uint8_t* to_round = rounded != 0 ? scratch.rounded.at_least(rounded) : nullptr;
  for (LinearPiece& piece : scratch.pieces) {
    piece.place_input(to_gather, to_round);
    if (to_gather != nullptr) to_gather += round_up(piece.gathered_bytes(), kLine);
    if (to_round != nullptr) to_round += round_up(piece.rounded_bytes(), kLine);
  }
}

/// Does the pieces that `context.linear_scratch` holds.
void run_pieces(CpuContext& context) {
  LinearScratch& scratch = *context.linear_scratch;
  auto& [pieces, rows, jobs, gathered, rounded, threads] = scratch;
  if (pieces.empty()) return;
  place_inputs(scratch);
  const int64_t k = pieces.front().columns(),
                wanted = ceil_div(kJobsPerThread * context.pool.size(),
                                  static_cast<int64_t>(pieces.size()));
  rows.clear();
  jobs.clear();
  for (LinearPiece& piece : pieces) {
    rows.add(piece.gathered_bytes() + piece.rounded_bytes() > 0 ? piece.rows() : 0);
    piece.plan_jobs(wanted);
    jobs.add(piece.n_jobs());
  }
  const auto prepare = [&](int64_t begin, int64_t end, int) {
    scratch.rows.for_each(begin, end,
                          [&](size_t piece, int64_t r) { scratch.pieces[piece].prepare_row(r); });
  };
  if (rows.size() <= 1 || rows.size() * k < kSerialElems) {
    prepare(0, rows.size(), 0);
  } else {
    context.pool.parallel_for(rows.size(), std::max<int64_t>(1, kSerialElems / k), prepare);
  }
  context.pool.parallel_for(jobs.size(), 1, [&](int64_t begin, int64_t end, int thread) {
    scratch.jobs.for_each(begin, end, [&](size_t piece, int64_t job) {
      scratch.pieces[piece].run_job(job, scratch.threads[static_cast<size_t>(thread)]);
    });
  });
}

const PackedLinear& packed(const CpuLinear& weight) {
  return static_cast<const PackedLinear&>(weight);
}

/// The parts of a weight in runs that want the same input: the one of that number, empty behind the
/// last.
std::span<const PackedPart> run_of_parts(const PackedLinear& weight, size_t number) {
  const std::vector<PackedPart>& parts = weight.parts;
  size_t begin = 0, end = 0;
  for (size_t i = 0; i <= number; ++i) {
    begin = end;
    while (end < parts.size() &&
           LinearPiece::form_of(parts[begin]) == LinearPiece::form_of(parts[end]))
      ++end;
  }
  return {parts.data() + begin, end - begin};
}

}  // namespace

void run_cpu_linears(std::span<const CpuLinearProduct> products, CpuContext& context) {
  std::vector<LinearPiece>& pieces = context.linear_scratch->pieces;
  // Parts of unequal forms take turns, so that one input at a time is kept.
  for (size_t number = 0;; ++number) {
    pieces.clear();
    for (const auto& [weight, call] : products) {
      const std::span<const PackedPart> parts = run_of_parts(packed(*weight), number);
      if (call.m > 0 && !parts.empty()) pieces.emplace_back(packed(*weight), parts, call);
    }
    if (pieces.empty()) return;
    run_pieces(context);
  }
}

void run_cpu_linear(const CpuLinear& weight, const CpuLinearCall& call, CpuContext& context) {
  const CpuLinearProduct product{&weight, call};
  run_cpu_linears({&product, 1}, context);
}

int64_t linear_working_bytes(int64_t m, int64_t k, int n_threads) {
  const int64_t rows = round_up<int64_t>(m, kTileRows), n_blocks = ceil_div<int64_t>(k, kBlock);
  // Blocks of 8-bit activations take at least what bf16 pairs take.
  const int64_t gathered = m * k * int64_t{sizeof(float)},
                rounded = rows * n_blocks * int64_t{sizeof(ActBlock)};
  return Growing::grown(gathered) + Growing::grown(rounded) +
         n_threads * TileScratch::working_bytes(m, k);
}

bool can_run_gated(const CpuLinear& weight, int64_t m) {
  const std::vector<PackedPart>& parts = packed(weight).parts;
  if (parts.size() != 2 || parts[0].n != parts[1].n) return false;
  const kernels::LinearKernel& kernel = *parts[0].kernel;
  return parts[1].kernel == &kernel &&
         LinearPiece::form_of(parts[0]) == LinearPiece::form_of(parts[1]) &&
         kernel.expand != nullptr && kernel.tile_panels % 2 == 0 && m > kernel.few_rows;
}

std::optional<BadProductRow> run_cpu_gated(std::span<const CpuLinearProduct> products,
                                           SiluMulFn silu_mul, CpuContext& context) {
  std::vector<LinearPiece>& pieces = context.linear_scratch->pieces;
  std::vector<BadRow> bad(products.size());
  pieces.clear();
  for (size_t i = 0; i < products.size(); ++i) {
    const auto& [weight, call] = products[i];
    QW_CHECK(can_run_gated(*weight, call.m) && call.bias == nullptr && !call.accumulate,
             "gated product of {} rows", call.m);
    pieces.emplace_back(packed(*weight), packed(*weight).parts, call,
                        LinearGate{silu_mul, &bad[i]});
  }
  run_pieces(context);
  for (size_t i = 0; i < bad.size(); ++i) {
    if (bad[i].row() >= 0) return BadProductRow{i, bad[i].row()};
  }
  return std::nullopt;
}

}  // namespace qw
