// Tests of the thread team: every item once, exceptions, re-use, several callers.
#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/cancel.h"

namespace qw {
namespace {

TEST(ThreadPool, DoesEveryItemOnceInChunksOfTheGrain) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t n : {0, 1, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_LE(end - begin, grain);
          EXPECT_LT(thread, threads);
          for (int64_t i = begin; i < end; ++i)
            ++hits[static_cast<size_t>(i)];
        });
        for (const auto& hit : hits)
          ASSERT_EQ(hit.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, ManyShortJobsInARow) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum{0};
  for (int job = 0; job < 20000; ++job) {
    pool.parallel_for(4, 1, [&](int64_t begin, int64_t, int) {
      sum.fetch_add(begin, std::memory_order_relaxed);
    });
  }
  EXPECT_EQ(sum.load(), 20000 * 6);
}

TEST(ThreadPool, RethrowsAndGoesOn) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.parallel_for(100, 1,
                                 [](int64_t begin, int64_t, int) {
                                   if (begin == 50) throw std::runtime_error("item 50");
                                 }),
               std::runtime_error);
  std::atomic<int> count{0};
  pool.parallel_for(10, 1, [&](int64_t, int64_t, int) { ++count; });
  EXPECT_EQ(count.load(), 10);
}

TEST(ThreadPool, SharesAreContiguousAndStolenFromTheEnd) {
  ThreadPool pool(3);
  constexpr int64_t kItems = 3000;
  std::vector<std::vector<int64_t>> taken(3);
  pool.parallel_for(kItems, 1, [&](int64_t begin, int64_t, int thread) {
    taken[static_cast<size_t>(thread)].push_back(begin);
  });
  for (int64_t thread = 0; thread < 3; ++thread) {
    for (int64_t share = 0; share < 3; ++share) {
      std::vector<int64_t> items;
      for (const int64_t item : taken[static_cast<size_t>(thread)]) {
        if (item / (kItems / 3) == share) items.push_back(item);
      }
      if (thread != share) std::reverse(items.begin(), items.end());
      EXPECT_TRUE(std::is_sorted(items.begin(), items.end())) << thread << " of " << share;
    }
  }
}

TEST(ThreadPool, WorkersLeaveSignalsToTheApplication) {
  ThreadPool pool(2);
  sigset_t caller;
  pthread_sigmask(SIG_BLOCK, nullptr, &caller);
  EXPECT_EQ(sigismember(&caller, SIGTERM), 0);
  std::atomic<bool> seen{false};
  for (int round = 0; round < 1000 && !seen; ++round) {
    pool.parallel_for(2, 1, [&](int64_t, int64_t, int thread) {
      if (thread == 0) {
        usleep(100);
        return;
      }
      sigset_t mine;
      pthread_sigmask(SIG_BLOCK, nullptr, &mine);
      for (const int outside : {SIGHUP, SIGINT, SIGTERM, SIGCONT, SIGWINCH})
        EXPECT_EQ(sigismember(&mine, outside), 1) << outside;
      for (const int own : {SIGBUS, SIGSEGV})
        EXPECT_EQ(sigismember(&mine, own), 0) << own;
      seen = true;
    });
  }
  EXPECT_TRUE(seen);
}

TEST(ThreadPool, CallersTakeTurns) {
  ThreadPool pool(2);
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 500; ++job) {
        pool.parallel_for(8, 1, [&](int64_t, int64_t, int) { ++sum; });
      }
    });
  }
  for (auto& caller : callers)
    caller.join();
  EXPECT_EQ(sum.load(), 4 * 500 * 8);
}

TEST(ThreadPool, NoTwoBodiesShareAThreadNumber) {
  // Long and short loops of several callers; the short ones run on their caller alone.
  for (const int threads : {1, 2}) {
    ThreadPool pool(threads);
    std::array<std::atomic<int>, 2> inside{};
    std::atomic<int> shared{0};
    std::vector<std::thread> callers;
    for (const int64_t n_items : {1, 64, 1}) {
      callers.emplace_back([&, n_items] {
        for (int job = 0; job < 300; ++job) {
          pool.parallel_for(n_items, 1, [&](int64_t, int64_t, int thread) {
            auto& count = inside[static_cast<size_t>(thread)];
            if (count.fetch_add(1) != 0) ++shared;
            std::this_thread::yield();
            count.fetch_sub(1);
          });
        }
      });
    }
    for (auto& caller : callers)
      caller.join();
    EXPECT_EQ(shared.load(), 0) << threads << " threads";
  }
}

TEST(ThreadPool, NestingIsAnErrorAndNotADeadlock) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads), other(1);
    for (const int64_t n_items : {1, 8}) {
      const auto nest = [&](ThreadPool& inner) {
        pool.parallel_for(n_items, 1, [&](int64_t, int64_t, int) {
          inner.parallel_for(1, 1, [](int64_t, int64_t, int) {});
        });
      };
      EXPECT_THROW(nest(pool), Error);
      EXPECT_NO_THROW(nest(other)) << "another team may be used";
    }
  }
}

TEST(ThreadPool, ThreadsThatTheSystemRefusesAreAnError) {
  // Room for the stacks of some threads, but not of a hundred: the first ones must be joined again.
  constexpr size_t kStackBytes = size_t{64} << 20, kRoomBytes = size_t{1} << 30;
  size_t n_pages = 0;
  std::ifstream("/proc/self/statm") >> n_pages;
  ASSERT_GT(n_pages, 0u);
  pthread_attr_t usual, large;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_getattr_default_np(&large), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&large, kStackBytes), 0);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlimit narrow = before;
  narrow.rlim_cur = n_pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)) + kRoomBytes;
  ASSERT_EQ(setrlimit(RLIMIT_AS, &narrow), 0);
  ASSERT_EQ(pthread_setattr_default_np(&large), 0);
  std::string message;
  try {
    ThreadPool pool(100);
  } catch (const Error& error) {
    message = error.message();
  }
  ASSERT_EQ(pthread_setattr_default_np(&usual), 0);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_TRUE(message.starts_with("[threads] team: expected 100 threads, got ")) << message;
  EXPECT_EQ(message.find("got 1:"), std::string::npos) << "no thread was made: nothing was tested";
}

TEST(ThreadPool, FindsACore) {
  EXPECT_GE(physical_cores(), 1);
}

TEST(CancelFlag, ChecksOnlyWhenSet) {
  CancelFlag flag;
  EXPECT_NO_THROW(flag.check("work"));
  flag.cancel();
  EXPECT_THROW(flag.check("work"), Error);
}

}  // namespace
}  // namespace qw
