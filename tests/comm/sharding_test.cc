// The sharding rules, the error of the original for axes that collide, and the batch's shards.
#include "comm/sharding.h"

#include "tests/model/scratch.h"

#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using test::error_of;
using Axes = ShardingRules::Axes;

std::vector<Axes> translate(const ShardingRules& rules, std::vector<std::string_view> logical) { return rules.translate(logical); }

TEST(ShardingRules, AtFirstOnlyTheBatchIsSplit) {
  const ShardingRules rules;
  EXPECT_EQ(rules.axes("batch"), Axes{"x"});
  EXPECT_EQ(rules.axes("q_heads"), Axes{});
  EXPECT_EQ(translate(rules, {"batch", "sequence", "", "act_embed"}), (std::vector<Axes>{{"x"}, {}, {}, {}}));
  EXPECT_EQ(translate(rules, {}), std::vector<Axes>{});
}

TEST(ShardingRules, RulesCanBeSet) {
  ShardingRules rules;
  rules.set("q_heads", {"y"});
  rules.set("batch", {"x", "z"});
  EXPECT_EQ(translate(rules, {"batch", "q_heads"}), (std::vector<Axes>{{"x", "z"}, {"y"}}));
  rules.set("batch", {});
  EXPECT_EQ(translate(rules, {"batch", "q_heads"}), (std::vector<Axes>{{}, {"y"}}));
}

TEST(ShardingRules, UnknownNamesAreAnError) {
  ShardingRules rules;
  EXPECT_THAT(error_of([&] { rules.set("heads", {"y"}); }), HasSubstr("no sharding rule for a dimension named \"heads\""));
  EXPECT_THAT(error_of([&] { rules.axes("heads"); }), HasSubstr("\"heads\""));
  EXPECT_THAT(error_of([&] { translate(rules, {"batch", "heads"}); }), HasSubstr("\"heads\""));
}

// The words of the original's logical_to_physical.
TEST(ShardingRules, TwoDimensionsOnOneAxisCollide) {
  ShardingRules rules;
  EXPECT_EQ(error_of([&] { translate(rules, {"batch", "", "batch"}); }), "Colliding physical axes from translating logical spec (batch, none, batch) -> (x, none, x)");
  rules.set("act_embed", {"x"});
  EXPECT_EQ(error_of([&] { translate(rules, {"batch", "sequence", "act_embed"}); }),
            "Colliding physical axes from translating logical spec (batch, sequence, act_embed) -> (x, none, x)");
  rules.set("batch", {"x", "y"});
  rules.set("act_embed", {"y"});
  EXPECT_EQ(error_of([&] { translate(rules, {"batch", "act_embed"}); }), "Colliding physical axes from translating logical spec (batch, act_embed) -> ((x, y), y)");
  rules.set("q_heads", {"z", "z"});  // also within one dimension
  EXPECT_THAT(error_of([&] { translate(rules, {"q_heads"}); }), HasSubstr("Colliding physical axes"));
  EXPECT_EQ(translate(rules, {"sequence", "sequence"}), (std::vector<Axes>{{}, {}}));  // not split: no collision
}

TEST(ShardingRules, ShardsAreRowMajorOverTheirAxes) {
  const Mesh mesh = Mesh::parse("x=2,y=3", 6);
  ShardingRules rules;
  EXPECT_EQ(rules.shards("batch", mesh), 2);
  EXPECT_EQ(rules.shards("q_heads", mesh), 1);
  rules.set("batch", {"x", "y"});
  rules.set("q_heads", {"y", "x"});
  EXPECT_EQ(rules.shards("batch", mesh), 6);
  for (int rank = 0; rank < 6; ++rank) {
    EXPECT_EQ(rules.shard("batch", mesh, rank), rank);
    EXPECT_EQ(rules.shard("q_heads", mesh, rank), rank % 3 * 2 + rank / 3);
    EXPECT_EQ(rules.shard("kv_heads", mesh, rank), 0);
  }
  rules.set("batch", {"w"});
  EXPECT_THAT(error_of([&] { rules.shards("batch", mesh); }), HasSubstr("no axis w"));
}

TEST(ShardingRules, WhatKvmeshCanRun) {
  ShardingRules rules;
  rules.check_runnable(Mesh::parse("", 4));
  rules.check_runnable(Mesh::parse("x=4,y=1", 4));
  EXPECT_THAT(error_of([&] { rules.check_runnable(Mesh::parse("y=4", 4)); }), AllOf(HasSubstr("--mesh y=4"), HasSubstr("batch"), HasSubstr("axis x")));
  EXPECT_THAT(error_of([&] { rules.check_runnable(Mesh::parse("x=2,y=2", 4)); }), AllOf(HasSubstr("--mesh x=2,y=2"), HasSubstr("axis y cannot be larger than 1")));
  rules.set("batch", {"x", "y"});
  rules.check_runnable(Mesh::parse("x=2,y=2", 4));
  rules.set("q_heads", {"z"});
  rules.check_runnable(Mesh::parse("x=2,y=2,z=1", 4));
  EXPECT_THAT(error_of([&] { rules.check_runnable(Mesh::parse("x=2,y=1,z=2", 4)); }), AllOf(HasSubstr("q_heads"), HasSubstr("only the batch can be split")));
}

TEST(Split, UnevenAndEmptyShards) {
  const auto all = [](std::int64_t n, std::int64_t parts) {
    std::vector<Range> ranges;
    for (std::int64_t i = 0; i < parts; ++i) ranges.push_back(split(n, parts, i));
    return ranges;
  };
  EXPECT_EQ(all(8, 4), (std::vector<Range>{{0, 2}, {2, 4}, {4, 6}, {6, 8}}));
  EXPECT_EQ(all(7, 3), (std::vector<Range>{{0, 3}, {3, 5}, {5, 7}}));
  EXPECT_EQ(all(2, 4), (std::vector<Range>{{0, 1}, {1, 2}, {2, 2}, {2, 2}}));
  EXPECT_EQ(all(0, 2), (std::vector<Range>{{0, 0}, {0, 0}}));
  EXPECT_EQ(all(5, 1), (std::vector<Range>{{0, 5}}));
  for (std::int64_t n = 0; n < 40; ++n) {
    for (std::int64_t parts = 1; parts < 12; ++parts) {
      std::int64_t next = 0;
      for (const Range& r : all(n, parts)) {
        EXPECT_EQ(r.begin, next);
        EXPECT_GE(r.size(), n / parts);
        EXPECT_LE(r.size(), (n + parts - 1) / parts);
        next = r.end;
      }
      EXPECT_EQ(next, n);
    }
  }
  EXPECT_EQ(split(std::int64_t{1} << 60, 3, 2).end, std::int64_t{1} << 60);
  EXPECT_NE(error_of([] { split(3, 2, 2); }), "");
  EXPECT_NE(error_of([] { split(3, 2, -1); }), "");
  EXPECT_NE(error_of([] { split(-1, 2, 0); }), "");
}

}  // namespace
}  // namespace kvmesh
