// Left padding against arrays written by hand, as the seed document's pad_tokens makes them.
#include "model/padding.h"

#include "scratch.h"

#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using ::testing::HasSubstr;
using Rows = std::vector<std::vector<std::int32_t>>;

Rows rows_of(const Tensor& t) {
  Rows rows;
  for (std::int64_t b = 0; b < t.size(0); ++b) {
    const auto row = t.slice(b, b + 1).span<std::int32_t>();
    rows.emplace_back(row.begin(), row.end());
  }
  return rows;
}

// The seed's two prompts as GPT-2 has them; the pad id is 50257.
TEST(Padding, TheSeedsPrompts) {
  const Rows prompts = {{50256, 11633, 345, 4003, 326, 428, 995}, {50256, 39, 451, 326, 30}};
  const PaddedBatch padded = pad_tokens(prompts, 50257, Pad::power_of_two);
  EXPECT_EQ(rows_of(padded.ids), (Rows{{50257, 50256, 11633, 345, 4003, 326, 428, 995}, {50257, 50257, 50257, 50256, 39, 451, 326, 30}}));
  EXPECT_EQ(rows_of(padded.segment_ids), (Rows{{0, 1, 1, 1, 1, 1, 1, 1}, {0, 0, 0, 1, 1, 1, 1, 1}}));
  EXPECT_EQ(count_left_padding(padded.segment_ids), (std::vector<std::int64_t>{1, 3}));

  const PaddedBatch longest = pad_tokens(prompts, 50257, Pad::longest);
  EXPECT_EQ(rows_of(longest.ids), (Rows{{50256, 11633, 345, 4003, 326, 428, 995}, {50257, 50257, 50256, 39, 451, 326, 30}}));
  EXPECT_EQ(rows_of(longest.segment_ids), (Rows{{1, 1, 1, 1, 1, 1, 1}, {0, 0, 1, 1, 1, 1, 1}}));
  EXPECT_EQ(count_left_padding(longest.segment_ids), (std::vector<std::int64_t>{0, 2}));
}

TEST(Padding, PowersOfTwo) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> expected = {{1, 1}, {2, 2}, {3, 4}, {4, 4}, {5, 8}, {8, 8}, {9, 16}, {1023, 1024}, {1024, 1024}, {1025, 2048}};
  for (const auto& [longest, length] : expected) {
    EXPECT_EQ(padded_length(longest, Pad::power_of_two), length);
    EXPECT_EQ(padded_length(longest, Pad::longest), longest);
  }
}

TEST(Padding, ARowOfExactlyAPowerOfTwoHasNoPads) {
  const PaddedBatch padded = pad_tokens(Rows{{1, 2, 3, 4}, {5}}, 9, Pad::power_of_two);
  EXPECT_EQ(rows_of(padded.ids), (Rows{{1, 2, 3, 4}, {9, 9, 9, 5}}));
  EXPECT_EQ(count_left_padding(padded.segment_ids), (std::vector<std::int64_t>{0, 3}));
}

// A prompt that has pads of its own on the left: segment ids come from the ids, as the seed's prepare_chunk makes them.
TEST(Padding, PadsWithinARowAreNoTokens) {
  const PaddedBatch padded = pad_tokens(Rows{{9, 9, 3}, {1, 2, 3, 4}}, 9, Pad::longest);
  EXPECT_EQ(rows_of(padded.ids), (Rows{{9, 9, 9, 3}, {1, 2, 3, 4}}));
  EXPECT_EQ(rows_of(padded.segment_ids), (Rows{{0, 0, 0, 1}, {1, 1, 1, 1}}));
  EXPECT_EQ(count_left_padding(padded.segment_ids), (std::vector<std::int64_t>{3, 0}));
}

TEST(Padding, ARowOfPadsOnlyStartsBehindItsEnd) {
  const PaddedBatch padded = pad_tokens(Rows{{9, 9}, {1, 2}}, 9, Pad::longest);
  EXPECT_EQ(count_left_padding(padded.segment_ids), (std::vector<std::int64_t>{2, 0}));
}

TEST(Padding, AnEmptyRowIsRefused) {
  EXPECT_THAT(test::error_of([] { pad_tokens(Rows{{1}, {}}, 9, Pad::longest); }), HasSubstr("pad_tokens: a row has no tokens"));
}

}  // namespace
}  // namespace kvmesh
