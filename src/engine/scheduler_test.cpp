// The scheduler alone, under random loads: pages are conserved, the oldest is never starved, and
// no step exceeds its budget.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"

namespace qw {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_bits(seed_, 1, next_++) % static_cast<uint64_t>(n));
  }

 private:
  uint64_t seed_, next_ = 0;
};

struct Load {
  UnitId unit;
  std::vector<SeqId> seqs;
  int64_t end_len;
};

/// One random life of a scheduler: units arrive, decode, fork and end, until all are done.
void live(uint64_t seed) {
  Random random(seed);
  SchedulerOptions options;
  options.page_tokens = static_cast<int>(1 + random.below(6));
  options.n_pages = 20 + random.below(30);
  options.max_tokens = 1 + random.below(20);
  options.max_families = 1 + random.below(6);
  options.max_rows = 1 + random.below(5);
  Scheduler scheduler(options);
  std::vector<Load> loads;
  int64_t arrived = 0, ended = 0;
  const int64_t total = 25;
  for (int step_no = 0; ended < total; ++step_no) {
    ASSERT_LT(step_no, 20000) << "starvation, seed " << seed;
    while (arrived < total && random.below(3) == 0) {
      const int64_t width = 1 + random.below(3);
      const int64_t prompt = 1 + random.below(options.page_tokens * 4);
      const int64_t end_len = prompt + 1 + random.below(12);
      ++arrived;
      if (scheduler.pages_at_worst(prompt, end_len, width) > options.n_pages) {
        ++ended;  // refused before the queue
        continue;
      }
      Load load{scheduler.add_unit(arrived), {}, end_len};
      Sequence spec;
      for (int64_t i = 0; i < prompt; ++i)
        spec.tokens.push_back(static_cast<int32_t>(random.below(3)));
      spec.prompt_len = prompt;
      spec.lineage = arrived;
      load.seqs.push_back(scheduler.add_sequence(load.unit, spec));
      for (int64_t w = 1; w < width; ++w)
        load.seqs.push_back(scheduler.add_sequence(load.unit, spec));
      loads.push_back(load);
    }
    StepPlan step = scheduler.schedule();
    ASSERT_LE(step.batch.n_tokens(), options.max_tokens);
    std::set<int32_t> slots(step.batch.slots.begin(), step.batch.slots.end());
    ASSERT_EQ(ssize(slots), step.batch.n_tokens()) << "two tokens in one slot, seed " << seed;
    for (const StepPlan::Chunk& chunk : step.chunks) {
      ASSERT_EQ(chunk.begin, scheduler.sequence(chunk.seq).n_computed);
    }
    ASSERT_FALSE(!loads.empty() && step.chunks.empty()) << "work and no step, seed " << seed;
    scheduler.commit(step);
    scheduler.check_integrity();
    for (auto load = loads.begin(); load != loads.end();) {
      const bool ready = std::all_of(load->seqs.begin(), load->seqs.end(), [&](SeqId s) {
        return scheduler.sequence(s).n_pending() == 0;
      });
      if (!ready) {
        ++load;
        continue;
      }
      if (scheduler.sequence(load->seqs[0]).size() >= load->end_len) {
        scheduler.remove_unit(load->unit);
        ++ended;
        load = loads.erase(load);
        continue;
      }
      // As beams do: every sequence of the next step is a fork of one of this step.
      std::vector<SeqId> next;
      for (size_t i = 0; i < load->seqs.size(); ++i) {
        next.push_back(
            scheduler.fork(load->seqs[static_cast<size_t>(random.below(ssize(load->seqs)))]));
        scheduler.append(next.back(), static_cast<int32_t>(random.below(3)));
      }
      for (const SeqId seq : load->seqs)
        scheduler.remove_sequence(seq);
      load->seqs = next;
      ++load;
    }
    scheduler.check_integrity();
  }
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.n_free_pages(), scheduler.n_pages());
}

TEST(Scheduler, RandomLives) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    live(seed);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Scheduler, DecodesComeBeforePrefill) {
  Scheduler scheduler({100, 4, 8, 4, 64, false});
  const auto add = [&](int64_t n) {
    Sequence spec;
    spec.tokens.assign(static_cast<size_t>(n), 1);
    spec.prompt_len = n;
    spec.lineage = n;
    return scheduler.add_sequence(scheduler.add_unit(n), spec);
  };
  const SeqId first = add(20), second = add(3);
  StepPlan step = scheduler.schedule();  // the older prefill takes the whole budget
  ASSERT_EQ(step.chunks.size(), 1u);
  EXPECT_EQ(step.chunks[0].end, 8);
  scheduler.commit(step);
  scheduler.commit(scheduler.schedule());
  step = scheduler.schedule();
  ASSERT_EQ(step.chunks.size(), 2u);
  EXPECT_EQ(step.chunks[1].seq, second);
  scheduler.commit(step);
  const SeqId third = add(30);
  scheduler.append(first, 2);
  scheduler.append(second, 2);
  step = scheduler.schedule();
  ASSERT_EQ(step.chunks.size(), 3u);
  EXPECT_EQ(step.chunks[0].seq, first);
  EXPECT_EQ(step.chunks[1].seq, second);
  EXPECT_EQ(step.chunks[2].seq, third);
  EXPECT_EQ(step.chunks[2].end, 6);
}

TEST(Scheduler, DynamicRotationIsRecomputedTokenByToken) {
  SchedulerOptions options{100, 4, 64, 1, 64, true};
  Sequence sequence;
  sequence.tokens = {1, 2, 3, 4, 5, 6};
  sequence.prompt_len = 4;
  sequence.pages = {7, 9};
  StepPlan step;
  Scheduler::append_chunk(sequence, 0, 6, options, step);
  EXPECT_EQ(step.batch.seq_rope_length, (std::vector<int32_t>{4, 5, 6}));
  EXPECT_EQ(step.batch.slots, (std::vector<int32_t>{28, 29, 30, 31, 36, 37}));
  EXPECT_EQ(step.batch.logit_rows, (std::vector<int32_t>{5}));
}

}  // namespace
}  // namespace qw
