// Training data: shards that are none, rows against a naive reading of the documents, order, ranks, resuming.
#include "model/train/data.h"

#include "tests/model/scratch.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>

namespace kvmesh {
namespace {

using test::error_of;
using test::Scratch;
using ::testing::IsSubstring;

constexpr std::int32_t eot = 50;
using Ids = std::vector<std::int32_t>;

std::string file_of(std::vector<std::int32_t> header, const std::vector<std::uint16_t>& tokens) {
  header.resize(256);
  return std::string(reinterpret_cast<const char*>(header.data()), 1024) + std::string(reinterpret_cast<const char*>(tokens.data()), 2 * tokens.size());
}

/// Documents of 1 to `longest` tokens, <|endoftext|> included; the first token of each document's text tells them apart where there is one.
std::vector<std::uint16_t> corpus(int documents, int longest, std::uint32_t seed, int stray = 0) {
  std::mt19937 random(seed);
  std::vector<std::uint16_t> tokens(static_cast<std::size_t>(stray), 7);
  for (int d = 0; d < documents; ++d) {
    tokens.push_back(eot);
    for (int n = static_cast<int>(random() % static_cast<unsigned>(longest)); n > 0; --n) tokens.push_back(static_cast<std::uint16_t>(random() % 50));
  }
  return tokens;
}

/// A row as the naive reading has it.
struct NaiveRow {
  Ids ids, targets;
  std::vector<std::pair<int, int>> documents;  // begin and length within the row
  bool operator==(const NaiveRow&) const = default;
};

/// Token by token: the tokens of each document, then documents into rows.
std::vector<NaiveRow> naive_rows(const std::vector<std::uint16_t>& tokens, const DataOptions& o) {
  std::vector<Ids> documents;
  for (const std::uint16_t t : tokens) {
    if (t == o.end_of_text) documents.emplace_back();
    if (!documents.empty()) documents.back().push_back(t);
  }
  const auto seqlen = static_cast<std::size_t>(o.seqlen);
  std::vector<NaiveRow> rows;
  Ids row;
  std::vector<std::pair<int, int>> parts;
  const auto put = [&](std::int32_t after) {
    NaiveRow r{row, row, parts};
    r.targets.push_back(after);
    r.targets.erase(r.targets.begin());
    if (!o.documents_apart) r.documents = {{0, static_cast<int>(row.size())}};
    rows.push_back(r);
    row.clear();
    parts.clear();
  };
  for (std::size_t d = 0; d < documents.size(); ++d) {
    const Ids& document = documents[d];
    if (o.rows == RowKind::whole && !row.empty() && row.size() + document.size() > seqlen) put(o.end_of_text);
    for (std::size_t i = 0; i < document.size(); ++i) {
      if (row.size() == seqlen) {  // one more token is but a target
        put(document[i]);
        if (i > 0) break;  // the document's rest is left out
        if (o.rows == RowKind::filled) break;
      }
      if (i == 0) parts.emplace_back(static_cast<int>(row.size()), 0);
      row.push_back(document[i]);
      ++parts.back().second;
    }
  }
  if (o.rows == RowKind::whole && !row.empty()) put(o.end_of_text);
  return rows;
}

/// A batch's rows; also holds the segments to their contract.
std::vector<NaiveRow> rows_of(const TrainBatch& batch) {
  std::vector<NaiveRow> rows(static_cast<std::size_t>(batch.rows));
  std::int32_t offset = 0, place = 0;
  for (const Segment& s : batch.segments) {
    EXPECT_EQ(s.offset, offset);
    EXPECT_EQ(s.start, s.begin);
    EXPECT_GT(s.count, 0);
    EXPECT_TRUE(s.place == place || s.place == place + 1);
    place = s.place;
    NaiveRow& row = rows.at(static_cast<std::size_t>(s.place));
    EXPECT_EQ(s.start, std::ssize(row.ids)) << "its slots in the cache follow those of the segment before it";
    row.documents.emplace_back(static_cast<int>(s.begin), s.count);
    row.ids.insert(row.ids.end(), batch.ids.begin() + offset, batch.ids.begin() + offset + s.count);
    row.targets.insert(row.targets.end(), batch.targets.begin() + offset, batch.targets.begin() + offset + s.count);
    offset += s.count;
  }
  EXPECT_EQ(offset, std::ssize(batch.ids));
  EXPECT_EQ(offset, std::ssize(batch.targets));
  return rows;
}

std::vector<NaiveRow> rows_of(const std::vector<TrainBatch>& batches) {
  std::vector<NaiveRow> all;
  for (const TrainBatch& batch : batches) {
    for (NaiveRow& row : rows_of(batch)) all.push_back(std::move(row));
  }
  return all;
}

/// Three shards of different kinds, the last one without a row where rows are filled.
class Data : public ::testing::Test {
 protected:
  Data() {
    options.seqlen = 16;
    options.vocab_size = 51;
    options.end_of_text = eot;
    shards = {corpus(40, 12, 1, 5), corpus(25, 60, 2), corpus(3, 4, 3)};
    for (std::size_t i = 0; i < shards.size(); ++i) {
      options.files.push_back(scratch.path() / ("s-" + std::to_string(i) + ".bin"));
      write_shard(options.files.back(), shards[i]);
    }
  }
  std::vector<NaiveRow> epoch() const {
    std::vector<NaiveRow> all;
    for (const auto& shard : shards) {
      for (NaiveRow& row : naive_rows(shard, options)) all.push_back(std::move(row));
    }
    return all;
  }

  Scratch scratch;
  DataOptions options;
  std::vector<std::vector<std::uint16_t>> shards;
};

TEST(Shards, FilesThatAreNone) {
  const Scratch scratch;
  const auto refused = [&](const std::string& bytes, const std::string& words) {
    const auto file = scratch.write("bad.bin", bytes);
    const std::string error = error_of([&] { TokenShard{file}; });
    EXPECT_PRED_FORMAT2(IsSubstring, file.string(), error);
    EXPECT_PRED_FORMAT2(IsSubstring, words, error);
  };
  const std::vector<std::uint16_t> tokens = {eot, 1, 2};
  refused("", "0 bytes are too few");
  refused(std::string(1023, '\0'), "1023 bytes are too few");
  refused(file_of({20240519, 1, 3}, tokens), "begins with 20240519");
  refused(file_of({20240520, 2, 3}, tokens), "version 2");
  refused(file_of({20240520, 1, 4}, tokens), "4 tokens, which would make 1032 bytes, but the file has 1030");
  refused(file_of({20240520, 1, 2}, tokens), "2 tokens, which would make 1028 bytes");
  refused(file_of({20240520, 1, -1}, {}), "-1 tokens");
  refused(file_of({20240520, 1, 3}, tokens) + "x", "has 1031");
  const auto missing = scratch.path() / "missing.bin";
  EXPECT_EQ(error_of([&] { TokenShard{missing}; }), missing.string() + ": No such file or directory");
  EXPECT_PRED_FORMAT2(IsSubstring, "not a regular file", error_of([&] { TokenShard{scratch.path()}; }));
  ASSERT_EQ(mkfifo((scratch.path() / "pipe").c_str(), 0600), 0);
  EXPECT_PRED_FORMAT2(IsSubstring, "not a regular file", error_of([&] { TokenShard{scratch.path() / "pipe"}; }));
}

TEST(Shards, WrittenAsTheFormatSays) {
  const Scratch scratch;
  const auto file = scratch.path() / "a.bin";
  write_shard(file, std::vector<std::uint16_t>{eot, 1, 65535});
  std::ifstream in(file, std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), file_of({20240520, 1, 3}, {eot, 1, 65535}));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(scratch.path()), {}), 1) << "nothing temporary is left";
  EXPECT_PRED_FORMAT2(IsSubstring, "/nowhere/a.bin", error_of([&] { write_shard("/nowhere/a.bin", {}); }));
  try {
    write_shard("/dev/full/a.bin", {});
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::io);
  }
}

TEST(Shards, FindsEveryTokenAndIdsBeyondTheVocabulary) {
  const Scratch scratch;
  std::mt19937 random(4);
  for (const int n : {0, 1, 511, 512, 513, 5000}) {
    std::vector<std::uint16_t> tokens(static_cast<std::size_t>(n));
    std::vector<std::int32_t> expected;
    for (int i = 0; i < n; ++i) {
      tokens[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(i == 0 || i == n - 1 || random() % 300 == 0 ? 65535 : random() % 65535);
      if (tokens[static_cast<std::size_t>(i)] == 65535) expected.push_back(i);
    }
    const auto file = scratch.path() / "f.bin";
    write_shard(file, tokens);
    EXPECT_EQ(TokenShard(file).find(65535, 65536), expected);
    if (n == 0) continue;
    tokens.assign(tokens.size(), 99);
    tokens.back() = 100;
    write_shard(file, tokens);
    EXPECT_TRUE(TokenShard(file).find(50, 101).empty());
    EXPECT_EQ(error_of([&] { TokenShard(file).find(50, 100); }), fmt::format("{}: token {} has id 100, but the vocabulary has 100", file.string(), n - 1));
  }
}

TEST(Shards, AreFoundByFolderOrPattern) {
  const Scratch scratch;
  for (const char* name : {"val_0.bin", "train_1.bin", "train_0.bin", "train_0.txt"}) scratch.write(name, "");
  const auto in = [&](std::initializer_list<const char*> names) {
    std::vector<std::filesystem::path> files;
    for (const char* name : names) files.push_back(scratch.path() / name);
    return files;
  };
  EXPECT_EQ(find_shards(scratch.path()), in({"train_0.bin", "train_1.bin", "val_0.bin"}));
  EXPECT_EQ(find_shards(scratch.path() / "train_*.bin"), in({"train_0.bin", "train_1.bin"}));
  EXPECT_EQ(find_shards(scratch.path() / "val_0.bin"), in({"val_0.bin"}));
  EXPECT_PRED_FORMAT2(IsSubstring, "x*.bin: there are no token shards", error_of([&] { find_shards(scratch.path() / "x*.bin"); }));
  std::filesystem::create_directory(scratch.path() / "empty");
  EXPECT_PRED_FORMAT2(IsSubstring, "empty: there are no token shards (*.bin)", error_of([&] { find_shards(scratch.path() / "empty"); }));
}

// What nanogpt/fineweb_dataloader.py of the original makes of these tokens: BOSFinder(tokens).next_batch(1, 4), again and again.
TEST(Rows, FilledAsTheOriginals) {
  const Scratch scratch;
  const std::vector<std::uint16_t> tokens = {9, eot, 1, 2, eot, 3, 4, 5, eot, 6, eot, 7, 8, 1, 2, 3, 4, eot, eot, 5, 6, 7, eot, 8, 1, 2, 3, eot, 4};
  DataOptions o{.files = {scratch.path() / "a.bin"}, .seqlen = 4, .vocab_size = 51, .end_of_text = eot};
  write_shard(o.files[0], tokens);
  const auto rows = rows_of(AllRows(o, 10).batch(0));
  const std::vector<std::pair<Ids, Ids>> expected = {{{eot, 1, 2, eot}, {1, 2, eot, 3}}, {{eot, 6, eot, 7}, {6, eot, 7, 8}}, {{eot, eot, 5, 6}, {eot, 5, 6, 7}}, {{eot, 8, 1, 2}, {8, 1, 2, 3}}};
  ASSERT_EQ(rows.size(), expected.size());
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(std::pair(rows[i].ids, rows[i].targets), expected[i]) << i;
}

TEST_F(Data, RowsAreThoseOfANaiveReading) {
  for (const RowKind kind : {RowKind::filled, RowKind::whole}) {
    for (const bool apart : {false, true}) {
      for (const std::int64_t seqlen : {1, 2, 3, 16, 59, 60, 61, 100}) {
        options.rows = kind;
        options.documents_apart = apart;
        options.seqlen = seqlen;
        const AllRows all(options, 7);
        std::vector<TrainBatch> batches;
        for (std::int64_t i = 0; i < all.batches(); ++i) batches.push_back(all.batch(i));
        for (const TrainBatch& batch : batches) EXPECT_EQ(batch.rows, &batch == &batches.back() ? (all.rows() - 1) % 7 + 1 : 7);
        const auto expected = epoch();
        EXPECT_EQ(all.rows(), std::ssize(expected));
        EXPECT_TRUE(rows_of(batches) == expected) << "kind " << static_cast<int>(kind) << " apart " << apart << " seqlen " << seqlen;
      }
    }
  }
}

TEST_F(Data, EpochsFollowOneAnotherWhateverTheRanks) {
  const auto one = epoch();
  ASSERT_GT(one.size(), 20u);
  for (const int ranks : {1, 2, 3, 4}) {
    for (const std::int64_t micro : {1, 2, 3}) {
      const std::int64_t global = 12;
      std::vector<std::unique_ptr<DataLoader>> loaders;
      for (int r = 0; r < ranks; ++r) loaders.push_back(std::make_unique<DataLoader>(options, BatchShape{global, micro, split(global / micro, ranks, r)}));
      for (std::size_t step = 0, row = 0; step < 12; ++step) {
        for (int r = 0; r < ranks; ++r) {
          const auto batches = loaders[static_cast<std::size_t>(r)]->next();
          EXPECT_EQ(std::ssize(batches), split(global / micro, ranks, r).size());
          for (const TrainBatch& batch : batches) EXPECT_EQ(batch.rows, micro);
          for (const NaiveRow& got : rows_of(batches)) EXPECT_TRUE(got == one[row++ % one.size()]) << "row " << row - 1;
        }
        EXPECT_EQ(row, (step + 1) * 12);
        for (const auto& loader : loaders) EXPECT_EQ(loader->cursor(), loaders[0]->cursor());
      }
    }
  }
}

TEST_F(Data, AShuffledEpochHasEveryRowOnceInAnOrderOfItsOwn) {
  const auto key = [](const NaiveRow& row) { return std::pair(row.ids, row.targets); };
  std::multiset<std::pair<Ids, Ids>> expected;
  for (const NaiveRow& row : epoch()) expected.insert(key(row));
  const auto rows = static_cast<std::int64_t>(expected.size());
  options.shuffle = true;
  std::set<std::vector<std::pair<Ids, Ids>>> orders;
  for (const std::uint32_t seed : {0u, 1u}) {
    options.seed = seed;
    DataLoader loader(options, {rows, 1, {0, rows}}), again(options, {1, 1, {0, 1}});
    for (int e = 0; e < 3; ++e) {
      std::vector<std::pair<Ids, Ids>> order;
      for (const NaiveRow& row : rows_of(loader.next())) {
        order.push_back(key(row));
        EXPECT_EQ(key(rows_of(again.next())[0]), order.back()) << "it does not depend on the batch";
      }
      EXPECT_EQ((std::multiset<std::pair<Ids, Ids>>(order.begin(), order.end())), expected);
      orders.insert(order);
    }
  }
  EXPECT_EQ(orders.size(), 6u) << "seeds and epochs have orders of their own";
}

// Pinned: a checkpoint that goes on with another build must find the same order. A Fisher-Yates shuffle from the last element on, element i - 1 changing
// places with element (the 64 bits of threefry2x32(key, 1, i)) mod i; worked out by tests/reference/train_data.py.
TEST(Rows, TheShuffledOrderIsPinned) {
  const Scratch scratch;
  DataOptions o{.files = {}, .seqlen = 1, .vocab_size = 51, .end_of_text = eot, .shuffle = true, .seed = 3};
  for (const std::vector<std::uint16_t>& second : {std::vector<std::uint16_t>{0, 1, 2, 3}, {10, 11, 12, 13, 14}, {20, 21}}) {
    std::vector<std::uint16_t> tokens;
    for (const std::uint16_t token : second) tokens.insert(tokens.end(), {eot, token});
    o.files.push_back(scratch.path() / (std::to_string(second[0]) + ".bin"));
    write_shard(o.files.back(), tokens);
  }
  DataLoader loader(o, {11, 11, {0, 1}});
  EXPECT_EQ(loader.next()[0].targets, (Ids{13, 11, 14, 10, 12, 21, 20, 2, 1, 3, 0}));
  EXPECT_EQ(loader.next()[0].targets, (Ids{20, 21, 3, 0, 1, 2, 11, 12, 13, 10, 14}));
}

TEST_F(Data, GoesOnFromACursor) {
  for (const bool shuffle : {false, true}) {
    options.shuffle = shuffle;
    options.documents_apart = true;
    const BatchShape shape{6, 2, {1, 3}};
    DataLoader loader(options, shape);
    std::vector<DataCursor> cursors;
    std::vector<std::vector<NaiveRow>> steps;
    for (int i = 0; i < 20; ++i) {
      cursors.push_back(loader.cursor());
      steps.push_back(rows_of(loader.next()));
    }
    EXPECT_GE(loader.cursor().epoch, 2);
    for (std::size_t i = 0; i < steps.size(); i += 3) {
      DataLoader resumed(options, shape, cursors[i]);
      EXPECT_EQ(resumed.cursor(), cursors[i]);
      for (std::size_t j = i; j < std::min(i + 4, steps.size()); ++j) EXPECT_TRUE(rows_of(resumed.next()) == steps[j]);
    }
  }
}

TEST_F(Data, RanksWithoutLeavesReadNothing) {
  DataLoader loader(options, {4, 2, {2, 2}});
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(loader.next().empty());
  EXPECT_GT(loader.cursor().epoch + loader.cursor().shard, 0);
}

TEST_F(Data, WhatCannotBeReadIsNamed) {
  const BatchShape shape{2, 1, {0, 2}};
  const auto refused = [&](const DataOptions& o, const std::string& words, DataCursor cursor = {}) {
    EXPECT_PRED_FORMAT2(IsSubstring, words, error_of([&] {
                          DataLoader loader(o, shape, cursor);
                          for (int i = 0; i < 100; ++i) loader.next();
                        }));
  };
  DataOptions o = options;
  o.files = {options.files[2]};
  refused(o, options.files[2].string() + ": no document is followed by enough tokens for a row of 16");
  o.files = {options.files[2], options.files[2]};
  refused(o, " and 1 more: no document");
  EXPECT_PRED_FORMAT2(IsSubstring, "no document is followed", error_of([&] { AllRows(o, 1); }));
  o.files = {options.files[0], scratch.path() / "none.bin"};
  write_shard(o.files[1], std::vector<std::uint16_t>(100, 3));
  refused(o, o.files[1].string() + ": no document begins here: none of its 100 tokens is <|endoftext|>, 50");
  write_shard(o.files[1], {});
  refused(o, o.files[1].string() + ": no document begins here");
  scratch.write("none.bin", "x");
  refused(o, o.files[1].string() + ": 1 bytes are too few");
  o = options;
  o.vocab_size = 50;
  refused(o, "id 50 is not in the vocabulary of 50");
  o.end_of_text = 49;
  refused(o, options.files[0].string() + ": token 5 has id 50, but the vocabulary has 50");
  o.vocab_size = 65537;
  refused(o, "hold ids below 65536, but the vocabulary has 65537");
  o.files.clear();
  refused(o, "no files");
  refused(options, "that shard has 0 rows: these are other files", {0, 2, 1});
  refused(options, "nowhere in 3 files", {0, 3, 0});
  EXPECT_PRED_FORMAT2(IsSubstring, "a batch of 5 rows cannot be made of micro-batches of 2", error_of([&] { DataLoader(options, {5, 2, {0, 1}}); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "micro-batches 1 to 3 of 2", error_of([&] { DataLoader(options, {4, 2, {1, 3}}); }));
}

TEST_F(Data, AfterAnErrorNothingIsRead) {
  options.files[1] = scratch.path() / "missing.bin";
  DataLoader loader(options, {1, 1, {0, 1}});
  std::string error;
  while (error.empty()) error = error_of([&] { loader.next(); });
  EXPECT_PRED_FORMAT2(IsSubstring, "missing.bin: No such file", error);
  EXPECT_PRED_FORMAT2(IsSubstring, "after an error", error_of([&] { loader.next(); }));
}

}  // namespace
}  // namespace kvmesh
