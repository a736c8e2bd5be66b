#include "server/call_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace qw::server {
namespace {

TEST(CallQueue, OneClientMayHaveAllTheRoomButLocksNobodyOut) {
  CallQueue queue;
  std::vector<CallQueue::Place> places;
  const auto enter = [&](const std::string& client) {
    auto place = queue.enter(client, 6);
    if (place) places.push_back(std::move(*place));
    return place.has_value();
  };
  for (int i = 0; i < 6; ++i)
    EXPECT_TRUE(enter("crowd"));
  EXPECT_FALSE(enter("crowd"));
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(enter("second")) << "half of the room";
  EXPECT_FALSE(enter("second"));
  EXPECT_TRUE(enter("third"));
  EXPECT_TRUE(enter("third"));
  EXPECT_FALSE(enter("third"));
  EXPECT_FALSE(enter("crowd"));
  EXPECT_EQ(queue.n_calls(), 11);
  places.erase(places.begin(), places.begin() + 6);
  EXPECT_EQ(queue.n_calls(), 5);
  EXPECT_TRUE(enter("second")) << "the crowd has left";
  EXPECT_FALSE(enter("second"));
}

TEST(CallQueue, WithoutRoomToWaitEachClientHasOneCall) {
  CallQueue queue;
  const auto first = queue.enter("a", 1);
  EXPECT_TRUE(first);
  EXPECT_FALSE(queue.enter("a", 1));
  {
    const auto other = queue.enter("b", 1);
    EXPECT_TRUE(other);
    EXPECT_FALSE(queue.enter("b", 1));
  }
  EXPECT_TRUE(queue.enter("b", 1)) << "given back";
  EXPECT_EQ(queue.n_calls(), 1);
}

}  // namespace
}  // namespace qw::server
