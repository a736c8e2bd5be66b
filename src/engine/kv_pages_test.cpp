// The pool of pages alone: what is shared, what makes room, what is found again.
#include "engine/kv_pages.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"

namespace qw {
namespace {

TEST(PagePool, BlocksOfAnotherSaltAreNotFound) {
  PagePool pool(6, 2, true);
  const std::vector<int32_t> block = {1, 2}, tail = {3}, all = {1, 2, 3, 4}, start = {1, 9};
  const BlockScope none, salted(-1, hash_salt("a")), other(-1, hash_salt("b"));
  const int32_t first = *pool.allocate(), rest = *pool.allocate();
  pool.publish(first, PrefixIndex::kNone, salted, block);
  pool.publish(rest, first, salted, tail);
  EXPECT_EQ(pool.find_prefix(salted, all).n_tokens, 3);
  EXPECT_EQ(pool.find_prefix(salted, start).n_tokens, 1) << "a part of the first block";
  for (const BlockScope& scope : {none, other, BlockScope(0, salted.salt)}) {
    EXPECT_EQ(pool.find_prefix(scope, all).n_tokens, 0);
    EXPECT_EQ(pool.find_prefix(scope, start).n_tokens, 0);
  }
  const int32_t own = *pool.allocate();
  EXPECT_EQ(pool.publish(own, PrefixIndex::kNone, none, block), own) << "not taken over";
  EXPECT_EQ(pool.find_prefix(none, all).n_tokens, 2);
}

TEST(PagePool, UnusedBlocksMakeRoomOldestFirst) {
  PagePool pool(4, 2, true);
  const std::vector<int32_t> a = {1, 2}, b = {3, 4}, c = {5};
  const int32_t pa = *pool.allocate(), pb = *pool.allocate(), pc = *pool.allocate();
  EXPECT_EQ(pool.publish(pa, PrefixIndex::kNone, -1, a), pa);
  EXPECT_EQ(pool.publish(pb, pa, -1, b), pb);
  EXPECT_EQ(pool.publish(pc, pb, -1, c), pc);
  for (const int32_t page : {pc, pb, pa})
    pool.release(page);
  EXPECT_EQ(pool.n_free(), 4);
  EXPECT_EQ(pool.n_unused_blocks(), 3);
  const std::vector<int32_t> all = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(pool.find_prefix(-1, all).pages, (std::vector<int32_t>{pa, pb, pc}));
  EXPECT_EQ(pool.find_prefix(-1, all).n_tokens, 5);
  EXPECT_EQ(pool.find_prefix(0, all).n_tokens, 0) << "another adapter";
  EXPECT_EQ(pool.find_prefix(-1, std::vector<int32_t>{1, 2, 3, 9}).n_tokens, 3);
  EXPECT_EQ(pool.find_prefix(-1, std::vector<int32_t>{3, 4}).n_tokens, 0) << "not at the start";
  pool.retain(pb);                 // in use again
  EXPECT_TRUE(pool.allocate());    // the empty one
  EXPECT_EQ(pool.allocate(), pc);  // then the longest unused
  EXPECT_EQ(pool.allocate(), pa);
  EXPECT_EQ(pool.allocate(), std::nullopt);
  EXPECT_EQ(pool.find_prefix(-1, all).n_tokens, 0) << "a block is found through the one before it";
  EXPECT_TRUE(pool.has_block(pb));
}

TEST(PagePool, EqualBlocksAreKeptOnce) {
  PagePool pool(3, 2, true);
  const std::vector<int32_t> tokens = {7, 8};
  const int32_t first = *pool.allocate(), second = *pool.allocate();
  EXPECT_EQ(pool.publish(first, PrefixIndex::kNone, 3, tokens), first);
  EXPECT_EQ(pool.publish(second, PrefixIndex::kNone, 3, tokens), first);
  EXPECT_TRUE(pool.is_shared(first));
  EXPECT_FALSE(pool.is_in_use(second));
  pool.check_integrity(std::vector<int32_t>{first, first});
  pool.release(first);
  EXPECT_FALSE(pool.is_writable(first));
  pool.unpublish(first);
  EXPECT_TRUE(pool.is_writable(first));
  EXPECT_THROW(pool.check_integrity(std::vector<int32_t>{first, second}), Error);
}

// A turn of a conversation ends within a page; the next one goes on in a copy of it.
TEST(PagePool, TheBeginningOfABlockIsNotKeptBesideIt) {
  PagePool pool(4, 3, true);
  const std::vector<int32_t> part = {7}, longer = {7, 8}, all = {7, 8, 9}, other = {7, 5, 5};
  const int32_t first = *pool.allocate(), second = *pool.allocate(), third = *pool.allocate();
  const auto n_found = [&](const std::vector<int32_t>& tokens) {
    return pool.find_prefix(-1, tokens).n_tokens;
  };
  EXPECT_EQ(pool.publish(first, PrefixIndex::kNone, -1, part), first);
  EXPECT_EQ(pool.publish(second, PrefixIndex::kNone, -1, longer), second);
  EXPECT_TRUE(pool.has_block(first)) << "it is in use";
  pool.release(second);
  EXPECT_EQ(pool.publish(third, PrefixIndex::kNone, -1, all), third);
  EXPECT_FALSE(pool.has_block(second));
  EXPECT_EQ(pool.n_unused_blocks(), 0);
  EXPECT_EQ(n_found(all), 3);
  EXPECT_EQ(n_found(other), 1) << "within the longer one";
  pool.check_integrity(std::vector<int32_t>{first, third});

  pool.release(third);
  const int32_t fourth = *pool.allocate();
  EXPECT_EQ(pool.publish(fourth, PrefixIndex::kNone, -1, other), fourth);
  EXPECT_TRUE(pool.has_block(third)) << "more than a beginning";
  EXPECT_EQ(n_found(all), 3);
}

}  // namespace
}  // namespace qw
