// Who enters which place: the rules of the contract's --shards and --static-batches, without a model.
#include "model/schedule.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>

namespace kvmesh {
namespace {

/// Runs rows of given lengths of life on a schedule of `ranks`, one token a step, and notes where and when each was.
struct History {
  std::map<std::int64_t, int> rank_of;              // row → rank
  std::vector<std::vector<std::int64_t>> in_flight;  // [rounds][ranks]

  History(const GenerateOptions& options, int ranks, const std::vector<int>& lives) {
    Schedule schedule(options, ranks, 64);
    std::size_t given = 0;
    bool ended = false;
    const auto next = [&]() -> std::optional<Row> {
      EXPECT_FALSE(ended) << "asked again";
      if (given == lives.size()) {
        ended = true;
        return std::nullopt;
      }
      Row row;
      row.index = static_cast<std::int64_t>(given);
      row.prompt = std::make_shared<const std::vector<std::int32_t>>(1 + given % 3);
      row.max_new_tokens = lives[given++];
      return row;
    };
    while (schedule.begin_round(next) > 0) {
      EXPECT_FALSE(schedule.finished());
      std::vector<std::int64_t> rows;
      for (int r = 0; r < ranks; ++r) {
        rows.push_back(0);
        for (Place& p : schedule.places_of(r)) {
          if (!p.active) continue;
          ++rows.back();
          EXPECT_EQ(rank_of.emplace(p.row.index, r).first->second, r) << "row " << p.row.index << " moved";
        }
      }
      in_flight.push_back(rows);
      for (int r = 0; r < ranks; ++r) {
        for (std::int64_t step = 0; step < schedule.steps_a_round() && schedule.busy(r); ++step) {
          const std::vector<std::size_t> drawing = schedule.begin_step(r);
          schedule.end_step(r);
          for (const std::size_t p : drawing) schedule.places()[p].active = --schedule.places()[p].row.max_new_tokens > 0;
        }
        EXPECT_TRUE(!schedule.busy(r) || rows[static_cast<std::size_t>(r)] > 0);
      }
    }
    EXPECT_TRUE(schedule.finished());
    EXPECT_EQ(rank_of.size(), lives.size());
  }
};

TEST(Schedule, AnEmptyMeshGetsTheContiguousSplit) {
  GenerateOptions options;
  options.batch_size = 10;
  const History run(options, 4, std::vector<int>(10, 1));
  const std::vector<int> split = {0, 0, 0, 1, 1, 1, 2, 2, 3, 3};
  for (std::size_t i = 0; i < split.size(); ++i) EXPECT_EQ(run.rank_of.at(static_cast<std::int64_t>(i)), split[i]) << "row " << i;
}

TEST(Schedule, SharedRowsGoWhereRoomIs) {
  GenerateOptions options;
  options.batch_size = 6;
  options.sync_every = 1;
  std::vector<int> lives(40, 3);
  lives[0] = lives[1] = 60;  // both rank 0's
  const History run(options, 3, lives);
  ASSERT_GE(run.in_flight.size(), 60u);
  for (std::size_t step = 0; step < 27; ++step) EXPECT_EQ(run.in_flight[step], (std::vector<std::int64_t>{2, 2, 2})) << "while rows wait, step " << step;
  std::map<int, int> count;
  for (const auto& [row, rank] : run.rank_of) ++count[rank];
  EXPECT_EQ(count[0], 2);
  EXPECT_EQ(count[1], 19);
  EXPECT_EQ(count[2], 19);
}

TEST(Schedule, FixedShardsKeepTheirRows) {
  GenerateOptions options;
  options.batch_size = 6;
  options.shards = Shards::fixed;
  std::vector<int> lives(40, 3);
  for (std::size_t i = 0; i < lives.size(); i += 3) lives[i] = 20;  // rank 0's
  const History run(options, 3, lives);
  for (const auto& [row, rank] : run.rank_of) EXPECT_EQ(rank, row % 3);
  EXPECT_EQ(run.in_flight.back(), (std::vector<std::int64_t>{run.in_flight.back()[0], 0, 0})) << "the others have nothing left and wait";
}

TEST(Schedule, StaticBatchesEnterTogether) {
  for (const Shards shards : {Shards::shared, Shards::fixed}) {
    GenerateOptions options;
    options.batch_size = 4;
    options.static_batches = true;
    options.sync_every = 1;
    options.shards = shards;
    const History run(options, 2, {5, 1, 1, 1, 2, 2, 2, 2});
    std::vector<std::int64_t> all;
    for (const auto& rows : run.in_flight) all.push_back(rows[0] + rows[1]);
    EXPECT_EQ(all, (std::vector<std::int64_t>{4, 1, 1, 1, 1, 4, 4}));
  }
}

// Within a round a rank goes on by itself; the others learn of it, and rows enter, when the next one begins.
TEST(Schedule, RowsEnterWhenARoundBegins) {
  GenerateOptions options;
  options.batch_size = 4;
  options.sync_every = 3;
  const History run(options, 2, {1, 4, 3, 7, 2, 2});  // rows 0 and 1 are rank 0's, 2 and 3 rank 1's
  EXPECT_EQ(run.in_flight, (std::vector<std::vector<std::int64_t>>{{2, 2}, {2, 2}, {0, 1}}));
  EXPECT_EQ(run.rank_of.at(4), 0);
  EXPECT_EQ(run.rank_of.at(5), 1);
  for (const auto& [rng, sync, ranks] : {std::tuple(Rng::row, Sync::tokens, 1), std::tuple(Rng::jax, Sync::tokens, 2), std::tuple(Rng::row, Sync::logits, 2)}) {
    options.rng = rng;
    options.sync = sync;
    EXPECT_EQ(Schedule(options, ranks, 64).steps_a_round(), 1);
  }
  EXPECT_EQ(Schedule(GenerateOptions{}, 2, 64).steps_a_round(), 4);
  options = {};
  options.sync_every = 1 << 20;
  EXPECT_EQ(Schedule(options, 2, 64).steps_a_round(), 64) << "a context's length: memory for more would not be used";
}

// A prompt of 7 tokens comes in by 3 a step, and then draws; a second one of the same rank waits for it.
TEST(Schedule, PromptsAreFedInChunks) {
  GenerateOptions options;
  options.batch_size = 2;
  options.prefill_chunk = 3;
  Schedule schedule(options, 1, 64);
  int given = 0;
  const auto next = [&]() -> std::optional<Row> {
    if (given == 2) return std::nullopt;
    Row row;
    row.index = given++;
    row.prompt = std::make_shared<const std::vector<std::int32_t>>(row.index == 0 ? 7 : 2);
    return row;
  };
  const std::vector<std::pair<std::int64_t, std::int64_t>> fed = {{3, 0}, {3, 0}, {1, 2}};
  for (std::size_t step = 0; step < fed.size(); ++step) {
    ASSERT_EQ(schedule.begin_round(next), 2);
    const std::vector<std::size_t> order = schedule.begin_step(0);
    EXPECT_EQ(schedule.places()[0].fed, fed[step].first);
    EXPECT_EQ(schedule.places()[1].fed, fed[step].second);
    EXPECT_EQ(order.size(), step == 2 ? 2u : 0u);
    schedule.end_step(0);
  }
}

TEST(Schedule, TheHashTellsRowsPromptsAndPlacesApart) {
  std::set<std::uint64_t> seen;
  for (const int variant : {0, 1, 2, 3, 4}) {
    GenerateOptions options;
    options.batch_size = variant == 1 ? 2 : 1;
    Schedule schedule(options, 1, variant == 2 ? 32 : 64);
    std::optional<Row> row = Row{};
    row->index = variant == 3;
    row->prompt = std::make_shared<const std::vector<std::int32_t>>(2, variant == 4);
    row->max_new_tokens = 4;
    if (variant == 1) row->sample = 1;
    schedule.begin_round([&] { return std::exchange(row, std::nullopt); });
    EXPECT_TRUE(seen.insert(schedule.hash()).second) << "variant " << variant;
  }
}

}  // namespace
}  // namespace kvmesh
