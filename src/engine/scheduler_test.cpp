// The scheduler alone, under random loads: pages are conserved, the oldest is never starved, no
// step exceeds its budget, and every page holds the tokens that its sequences think it holds.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
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

/// What a KV cache would hold: of each slot, a hash of the adapter and all tokens up to its own.
class ShadowCache {
 public:
  explicit ShadowCache(const SchedulerOptions& options)
      : page_tokens_(options.page_tokens),
        slots_(static_cast<size_t>(options.n_pages * options.page_tokens), 0) {}

  /// Does what a step says. Throws when a sequence would then read something else than its tokens.
  void run(const StepPlan& step, const Scheduler& scheduler) {
    for (const StepPlan::Copy& copy : step.copies) {
      for (int i = 0; i < copy.n_tokens; ++i)
        slots_[at(copy.to, i)] = slots_[at(copy.from, i)];
    }
    for (const StepPlan::Chunk& chunk : step.chunks)
      visit(scheduler.sequence(chunk.seq), chunk.begin, chunk.end,
            [](uint64_t& slot, uint64_t hash) { slot = hash; });
    for (const StepPlan::Chunk& chunk : step.chunks)
      visit(scheduler.sequence(chunk.seq), 0, chunk.end, [](uint64_t slot, uint64_t hash) {
        QW_CHECK(slot == hash, "a page that holds other tokens");
      });
  }

 private:
  size_t at(int32_t page, int64_t i) const { return static_cast<size_t>(page * page_tokens_ + i); }
  template <typename Visit>
  void visit(const Sequence& sequence, int64_t begin, int64_t end, Visit visit) {
    uint64_t hash = static_cast<uint64_t>(sequence.adapter + 2);
    for (int64_t i = 0; i < end; ++i) {
      hash = random_bits(hash, static_cast<uint64_t>(sequence.token_at(i)), 0);
      const int32_t page = sequence.pages[static_cast<size_t>(i / page_tokens_)];
      if (i >= begin) visit(slots_[at(page, i % page_tokens_)], hash);
    }
  }
  int64_t page_tokens_;
  std::vector<uint64_t> slots_;
};

/// One random life of a scheduler: units arrive, decode, fork and end, some by a step that fails.
class Life {
 public:
  explicit Life(uint64_t seed)
      : random_(seed), options_(random_options(seed)), scheduler_(options_), cache_(options_) {}

  /// Until all units have ended. Throws what was wrong.
  void run() {
    for (int step_no = 0; ended_ < kUnits; ++step_no) {
      QW_CHECK(step_no < 20000, "starvation");
      while (arrived_ < kUnits && random_.below(3) == 0)
        arrive();
      const StepPlan step = scheduler_.schedule();
      check(step);
      if (random_.below(30) == 0) {
        fail_units_of(step);
      } else {
        cache_.run(step, scheduler_);
        scheduler_.commit(step);
        scheduler_.check_integrity();
        advance();
      }
      scheduler_.check_integrity();
    }
    QW_CHECK(scheduler_.idle() && scheduler_.n_free_pages() == scheduler_.n_pages());
    QW_CHECK(scheduler_.n_kept_pages() == 0 || options_.keep_prefixes);
  }

  /// Tokens that units took over from those that had ended.
  int64_t n_taken_over() const { return taken_over_; }
  int64_t n_guessed_right() const { return guessed_right_; }
  int64_t n_parted() const { return parted_; }

 private:
  static constexpr int64_t kUnits = 25;
  struct Load {
    UnitId unit;
    std::vector<SeqId> seqs;
    int64_t end_len;
    bool drafts;
  };

  SchedulerOptions random_options(uint64_t seed) {
    SchedulerOptions options;
    options.page_tokens = static_cast<int>(1 + random_.below(6));
    options.n_pages = 20 + random_.below(30);
    options.max_tokens = 1 + random_.below(20);
    options.max_families = 1 + random_.below(6);
    options.max_rows = 1 + random_.below(5);
    options.keep_prefixes = seed % 4 != 0;
    options.max_overtakes = random_.below(4);
    options.overtake_window = 1 + random_.below(8);
    options.weighs_length = random_.below(2) == 0;
    options.pass_tokens = random_.below(30);
    return options;
  }

  void arrive() {
    const int64_t width = 1 + random_.below(3);
    const int64_t prompt = 1 + random_.below(options_.page_tokens * 4);
    const int64_t end_len = prompt + 1 + random_.below(12);
    ++arrived_;
    if (scheduler_.pages_at_worst(prompt, end_len, width) > options_.n_pages) {
      ++ended_;  // refused before the queue
      return;
    }
    const Turn turn{std::string(1, static_cast<char>('a' + random_.below(3))), random_.below(3) - 1,
                    random_.below(2) == 0, random_.below(end_len)};
    Load load{scheduler_.add_unit(arrived_, turn), {}, end_len, random_.below(2) == 0};
    Sequence spec;
    for (int64_t i = 0; i < prompt; ++i)
      spec.tokens.push_back(random_.below(12) == 0 ? 1 : 0);  // so that many start alike
    spec.prompt_len = prompt;
    spec.lineage = arrived_;
    spec.adapter = static_cast<int32_t>(random_.below(2));
    if (random_.below(8) == 0) spec.logits_from = random_.below(prompt);
    for (int64_t w = 0; w < width; ++w)
      load.seqs.push_back(scheduler_.add_sequence(load.unit, spec));
    loads_.push_back(load);
  }

  void check(const StepPlan& step) {
    QW_CHECK(loads_.empty() || !step.chunks.empty(), "work and no step");
    QW_CHECK(step.batch.n_tokens() <= options_.max_tokens, "a step beyond its budget");
    const std::set<int32_t> slots(step.batch.slots.begin(), step.batch.slots.end());
    QW_CHECK(ssize(slots) == step.batch.n_tokens(), "two tokens in one slot");
    for (const StepPlan::Chunk& chunk : step.chunks) {
      const Sequence& sequence = scheduler_.sequence(chunk.seq);
      QW_CHECK(chunk.begin == sequence.n_computed, "a chunk out of place");
      if (!started_.insert(sequence.unit).second) continue;
      QW_CHECK(chunk.begin <= sequence.logits_from, "rows that were asked for are taken over");
      taken_over_ += chunk.begin;
    }
  }

  /// The step fails before anything is copied or written.
  void fail_units_of(const StepPlan& step) {
    std::set<UnitId> units;
    for (const StepPlan::Chunk& chunk : step.chunks)
      units.insert(scheduler_.sequence(chunk.seq).unit);
    for (const UnitId unit : units)
      scheduler_.remove_unit(unit);
    ended_ += ssize(units);
    std::erase_if(loads_, [&](const Load& load) { return units.count(load.unit) != 0; });
  }

  /// Every unit whose sequences are all computed goes on or ends.
  void advance() {
    for (auto load = loads_.begin(); load != loads_.end();) {
      const bool ready = std::all_of(load->seqs.begin(), load->seqs.end(), [&](SeqId s) {
        return scheduler_.sequence(s).n_pending() == 0;
      });
      if (ready && scheduler_.sequence(load->seqs[0]).size() >= load->end_len) {
        scheduler_.remove_unit(load->unit);
        ++ended_;
        load = loads_.erase(load);
        continue;
      }
      if (ready && load->seqs.size() == 1 && random_.below(6) == 0) {
        part(load->seqs[0]);
      } else if (ready && load->seqs.size() == 1 && load->drafts) {
        go_on(load->seqs[0], load->end_len);
      } else if (ready) {
        fork(*load);
      }
      ++load;
    }
  }

  /// As speculation does: takes some of the draft, then another token, and guesses anew.
  void go_on(SeqId seq, int64_t end_len) {
    const std::vector<int32_t> draft = scheduler_.sequence(seq).draft;
    const int64_t n_right = random_.below(ssize(draft) + 1);
    for (int64_t i = 0; i < n_right; ++i)
      scheduler_.append(seq, draft[static_cast<size_t>(i)]);
    QW_CHECK(scheduler_.sequence(seq).n_pending() == 0, "right guesses are computed");
    scheduler_.check_integrity();
    guessed_right_ += n_right;
    scheduler_.append(seq, n_right < ssize(draft) ? 1 - draft[static_cast<size_t>(n_right)]
                                                  : static_cast<int32_t>(random_.below(2)));
    QW_CHECK(scheduler_.sequence(seq).n_pending() == 1, "what follows is not");
    const int64_t room = end_len - scheduler_.sequence(seq).size();
    std::vector<int32_t> guess;
    for (int64_t i = room > 0 ? random_.below(room + 1) : 0; i > 0; --i)
      guess.push_back(static_cast<int32_t>(random_.below(2)));
    scheduler_.set_draft(seq, guess);
  }

  /// As a draft model does when its guesses were wrong, or were not asked for: other tokens from
  /// some place on, or the same again.
  void part(SeqId seq) {
    std::vector<int32_t> tokens = scheduler_.sequence(seq).tokens;
    const auto size = ssize(tokens);
    const int64_t common = size - random_.below(std::min<int64_t>(size, 9));
    tokens.resize(static_cast<size_t>(common));
    for (int64_t i = random_.below(size - common + 1); i > 0; --i)
      tokens.push_back(static_cast<int32_t>(random_.below(2)));
    scheduler_.replace_tokens(seq, tokens);
    const Sequence& sequence = scheduler_.sequence(seq);
    QW_CHECK(sequence.tokens == tokens && sequence.n_draft() == 0);
    QW_CHECK(sequence.n_computed >= std::min(common, ssize(tokens) - 1), "what stays is known");
    QW_CHECK(sequence.n_pending() > 0, "a row is wanted");
    scheduler_.check_integrity();
    ++parted_;
  }

  /// As beams do: every sequence of the next step is a fork of one of this step.
  void fork(Load& load) {
    std::vector<SeqId> next;
    for (size_t i = 0; i < load.seqs.size(); ++i) {
      next.push_back(
          scheduler_.fork(load.seqs[static_cast<size_t>(random_.below(ssize(load.seqs)))]));
      scheduler_.append(next.back(), static_cast<int32_t>(random_.below(2)));
    }
    for (const SeqId seq : load.seqs)
      scheduler_.remove_sequence(seq);
    load.seqs = next;
  }

  Random random_;
  SchedulerOptions options_;
  Scheduler scheduler_;
  ShadowCache cache_;
  std::vector<Load> loads_;
  std::set<UnitId> started_;
  int64_t arrived_ = 0, ended_ = 0, taken_over_ = 0, guessed_right_ = 0, parted_ = 0;
};

TEST(Scheduler, RandomLives) {
  int64_t taken_over = 0, guessed_right = 0, parted = 0;
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    Life life(seed);
    ASSERT_NO_THROW(life.run()) << "seed " << seed;
    taken_over += life.n_taken_over();
    guessed_right += life.n_guessed_right();
    parted += life.n_parted();
  }
  EXPECT_GT(taken_over, 1000) << "the test must reach kept prefixes";
  EXPECT_GT(guessed_right, 500) << "and drafts";
  EXPECT_GT(parted, 1000) << "and sequences that part from what they were";
}

/// A scheduler of pages of 2 tokens that runs one unit at a time, and what units started.
class Line {
 public:
  explicit Line(int64_t max_overtakes, int64_t max_families = 1)
      : scheduler_(options_of(max_overtakes, max_families)) {}

  UnitId add(std::vector<int32_t> tokens, int64_t priority = 0, int32_t adapter = -1) {
    const UnitId unit = scheduler_.add_unit(++n_added_, {.priority = priority});
    Sequence spec;
    spec.lineage = n_added_;
    spec.prompt_len = ssize(tokens);
    spec.tokens = std::move(tokens);
    spec.adapter = adapter;
    scheduler_.add_sequence(unit, std::move(spec));
    return unit;
  }
  /// Computes one step; its units.
  std::set<UnitId> step() {
    const StepPlan step = scheduler_.schedule();
    std::set<UnitId> units;
    for (const StepPlan::Chunk& chunk : step.chunks)
      units.insert(scheduler_.sequence(chunk.seq).unit);
    scheduler_.commit(step);
    return units;
  }
  /// Computes and ends the unit whose turn it is.
  UnitId serve() {
    const std::set<UnitId> units = step();
    QW_CHECK(units.size() == 1);
    scheduler_.remove_unit(*units.begin());
    return *units.begin();
  }
  Scheduler& scheduler() { return scheduler_; }

 private:
  static SchedulerOptions options_of(int64_t max_overtakes, int64_t max_families) {
    SchedulerOptions options;
    options.n_pages = 100;
    options.page_tokens = 2;
    options.max_families = max_families;
    options.max_tokens = 100;
    options.keep_prefixes = true;
    options.max_overtakes = max_overtakes;
    return options;
  }
  Scheduler scheduler_;
  int64_t n_added_ = 0;
};

TEST(Scheduler, AKeptPrefixGoesFirstButOvertakesNobodyForEver) {
  Line line(2);
  line.add({1, 2, 3, 4});
  line.serve();
  line.add({5, 6, 7, 8, 9, 10});
  line.serve();
  const UnitId other = line.add({9, 9, 9, 9});
  std::vector<int32_t> tokens = {5, 6, 7, 8, 9, 10};
  tokens.resize(50, 0);
  const UnitId longest = line.add(tokens);
  const UnitId large_for_its_length = line.add({1, 2, 3, 4, 5});
  EXPECT_EQ(line.serve(), large_for_its_length);
  EXPECT_EQ(line.serve(), longest);
  const UnitId late = line.add({1, 2, 3, 4, 6});
  EXPECT_EQ(line.serve(), other) << "it was overtaken twice";
  EXPECT_EQ(line.serve(), late);
  EXPECT_TRUE(line.scheduler().idle());
}

TEST(Scheduler, OrderAndPriorityComeBeforePrefixes) {
  Line strict(0);
  strict.add({1, 2, 3, 4});
  strict.serve();
  const UnitId first = strict.add({9, 9, 9, 9});
  strict.add({1, 2, 3, 4, 5});
  EXPECT_EQ(strict.serve(), first);

  Line line(100);
  line.add({1, 2, 3, 4});
  line.serve();
  const UnitId urgent = line.add({9, 9, 9, 9}, -1);
  const UnitId kept = line.add({1, 2, 3, 4, 5}, 0);
  EXPECT_EQ(line.serve(), urgent) << "of another priority";
  EXPECT_EQ(line.serve(), kept);
}

TEST(Scheduler, UnitsThatAreHeldKeepNobodyBack) {
  Line line(100);
  for (int i = 0; i < 200; ++i)
    line.scheduler().set_held(line.add({1, 2, 3}, i % 3), true);
  const UnitId free = line.add({4, 5, 6}, 7);
  EXPECT_EQ(line.serve(), free);
}

TEST(Scheduler, WaitsForAPrefixThatAnotherComputes) {
  Line line(100, 4);
  const UnitId first = line.add({1, 2, 3, 4, 5});
  const UnitId second = line.add({1, 2, 3, 4, 6});
  const UnitId other = line.add({7, 8, 9});
  const UnitId with_adapter = line.add({1, 2, 3, 4, 5}, 0, 3);
  EXPECT_EQ(line.step(), (std::set<UnitId>{first, other, with_adapter}));
  const StepPlan step = line.scheduler().schedule();
  ASSERT_EQ(step.chunks.size(), 1u);
  EXPECT_EQ(step.chunks[0].begin, 4) << "the common pages are computed once";
  EXPECT_EQ(line.scheduler().sequence(step.chunks[0].seq).unit, second);
}

// The last tokens of a prefix, a part of a page, stay for others while somebody goes on after them;
// where there are no pages for that, who comes first takes them.
TEST(Scheduler, APartOfAPageIsThereForWhoeverBeginsAlike) {
  for (const int64_t n_pages : {8, 2}) {
    Scheduler scheduler({.n_pages = n_pages,
                         .page_tokens = 4,
                         .max_tokens = 100,
                         .max_families = 9,
                         .keep_prefixes = true});
    Sequence spec;
    const auto begin = [&](std::vector<int32_t> tokens) {
      spec.tokens = std::move(tokens);
      spec.prompt_len = static_cast<int64_t>(spec.tokens.size());
      const UnitId unit = scheduler.add_unit(++spec.lineage);
      scheduler.add_sequence(unit, spec);
      const StepPlan step = scheduler.schedule();
      EXPECT_EQ(step.chunks.size(), 1u);
      scheduler.commit(step);
      scheduler.check_integrity();
      return std::pair(unit, step);
    };
    scheduler.remove_unit(begin({1, 2, 3, 4, 5, 6}).first);
    const std::vector<int32_t> other = {1, 2, 3, 4, 5, 6, 9};
    EXPECT_EQ(scheduler.n_kept_tokens(-1, other), 6);
    const auto [first, step] = begin({1, 2, 3, 4, 5, 6, 7});
    EXPECT_EQ(step.chunks[0].begin, 6);
    const bool has_room = n_pages > 2;
    EXPECT_EQ(step.copies.size(), has_room ? 1u : 0u);
    EXPECT_EQ(scheduler.n_kept_tokens(-1, other), has_room ? 6 : 4);
    if (has_room) {
      EXPECT_EQ(begin(other).second.chunks[0].begin, 6);
    }
  }
}

TEST(Scheduler, NobodyWaitsForAPrefixOfAnotherSalt) {
  Scheduler scheduler({.n_pages = 100,
                       .page_tokens = 4,
                       .max_tokens = 100,
                       .max_families = 9,
                       .keep_prefixes = true});
  Sequence spec;
  spec.tokens = {1, 2, 3, 4, 5};
  for (const char* salt : {"", "a", "a", "b"}) {
    spec.salt = hash_salt(salt);
    ++spec.lineage;
    scheduler.add_sequence(scheduler.add_unit(spec.lineage), spec);
  }
  const StepPlan step = scheduler.schedule();
  EXPECT_EQ(step.chunks.size(), 3u) << "all but the second of the same";
  scheduler.commit(step);
  for (const char* salt : {"", "a", "b"})
    EXPECT_EQ(scheduler.n_kept_tokens({-1, hash_salt(salt)}, spec.tokens), 4) << salt;
  EXPECT_EQ(scheduler.n_kept_tokens({-1, hash_salt("c")}, spec.tokens), 0);
  scheduler.check_integrity();
}

TEST(Scheduler, DecodesComeBeforePrefill) {
  Scheduler scheduler({100, 4, 8, 4, 64, false, false});
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

TEST(Scheduler, GuessesFitInWhatIsLeft) {
  Scheduler scheduler(
      {.n_pages = 100, .page_tokens = 4, .max_tokens = 10, .max_families = 4, .max_rows = 5});
  const auto n_fit = [&] { return scheduler.n_guesses_that_fit(scheduler.demand()); };
  EXPECT_EQ(n_fit(), 5);
  Sequence spec;
  spec.tokens = {1, 2, 3};
  for (const int64_t n_left : {4, 3, 1, 0}) {
    spec.lineage = n_left;
    scheduler.add_sequence(scheduler.add_unit(n_left), spec);
    EXPECT_EQ(n_fit(), n_left) << "rows, then tokens";
  }
  EXPECT_EQ(scheduler.demand().n_tokens, 12);
  EXPECT_EQ(scheduler.demand().n_sequences, 4);
  EXPECT_EQ(scheduler.pages_for(9), 3);
}

TEST(Scheduler, WhoCannotBeAdmittedDemandsNothing) {
  Scheduler scheduler({.n_pages = 100, .page_tokens = 4, .max_tokens = 64, .max_families = 1});
  Sequence spec;
  spec.tokens = {1, 2, 3};
  const SeqId first = scheduler.add_sequence(scheduler.add_unit(1), spec);
  scheduler.commit(scheduler.schedule());
  scheduler.append(first, 4);
  spec.lineage = 1;
  spec.tokens.assign(50, 7);
  scheduler.add_sequence(scheduler.add_unit(2), spec);
  EXPECT_EQ(scheduler.demand().n_tokens, 1) << "one family at a time";
}

TEST(Scheduler, DynamicRotationIsRecomputedTokenByToken) {
  SchedulerOptions options{100, 4, 64, 1, 64, true, false};
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

Sequence plain_sequence(int64_t n_tokens, int32_t first) {
  Sequence spec;
  spec.prompt_len = n_tokens;
  for (int64_t i = 0; i < n_tokens; ++i)
    spec.tokens.push_back(first + static_cast<int32_t>(i));
  return spec;
}

TEST(Scheduler, UnitsGoByTheirPriorityAndEqualsByArrival) {
  SchedulerOptions options;
  options.n_pages = 100;
  options.page_tokens = 4;
  options.max_tokens = 8;
  Scheduler scheduler(options);
  std::vector<SeqId> seqs;
  for (const int64_t priority : {5, 5, 1, 9}) {
    const auto n = static_cast<int64_t>(seqs.size());
    seqs.push_back(scheduler.add_sequence(scheduler.add_unit(n, {.priority = priority}),
                                          plain_sequence(6, static_cast<int32_t>(100 * n))));
  }
  std::vector<SeqId> begun;
  for (int i = 0; i < 8; ++i) {
    const StepPlan step = scheduler.schedule();
    for (const StepPlan::Chunk& chunk : step.chunks) {
      if (std::find(begun.begin(), begun.end(), chunk.seq) == begun.end())
        begun.push_back(chunk.seq);
    }
    scheduler.commit(step);
    for (const StepPlan::Chunk& chunk : step.chunks) {
      if (scheduler.sequence(chunk.seq).n_pending() > 0) continue;
      scheduler.remove_unit(scheduler.sequence(chunk.seq).unit);
    }
  }
  EXPECT_EQ(begun, (std::vector<SeqId>{seqs[2], seqs[0], seqs[1], seqs[3]}));
}

TEST(Scheduler, TheLastInLineGivesItsPagesNotTheYoungest) {
  SchedulerOptions options;
  options.n_pages = 4;
  options.page_tokens = 4;
  options.max_families = 4;
  Scheduler scheduler(options);
  const UnitId last = scheduler.add_unit(0, {.priority = 9});
  const UnitId first = scheduler.add_unit(1, {.priority = 1});
  const SeqId late = scheduler.add_sequence(last, plain_sequence(7, 0));
  const SeqId early = scheduler.add_sequence(first, plain_sequence(7, 100));
  scheduler.commit(scheduler.schedule());
  EXPECT_EQ(scheduler.sequence(late).pages.size(), 2u);
  scheduler.append(early, 50);
  scheduler.append(late, 51);
  scheduler.commit(scheduler.schedule());
  scheduler.append(early, 52);
  scheduler.commit(scheduler.schedule());
  EXPECT_EQ(scheduler.n_preemptions(), 1);
  EXPECT_TRUE(scheduler.sequence(late).pages.empty());
  EXPECT_EQ(scheduler.sequence(early).pages.size(), 3u);
  scheduler.check_integrity();
}

TEST(Scheduler, BlocksComeFromElsewhereAndAFaultAmidThemTakesNoPage) {
  SchedulerOptions options;
  options.n_pages = 4;
  options.page_tokens = 4;
  options.max_families = 4;
  options.keep_prefixes = true;
  Scheduler scheduler(options);
  const std::vector<int32_t> tokens = plain_sequence(10, 0).tokens;
  EXPECT_THROW(scheduler.import_blocks(
                   -1, tokens, 0,
                   [](int32_t, int64_t block) { QW_CHECK(block < 1, "no more can be read"); }),
               Error);
  scheduler.check_integrity();
  EXPECT_EQ(scheduler.n_free_pages(), 4);
  EXPECT_EQ(scheduler.n_kept_tokens(-1, tokens), 4) << "the block before the fault";
  std::vector<int64_t> filled;
  EXPECT_EQ(scheduler.import_blocks(-1, tokens, 0,
                                    [&](int32_t, int64_t block) { filled.push_back(block); }),
            10);
  EXPECT_EQ(filled, (std::vector<int64_t>{1, 2}));
  scheduler.check_integrity();
  EXPECT_EQ(scheduler.n_free_pages(), 4);
}

}  // namespace
}  // namespace qw
