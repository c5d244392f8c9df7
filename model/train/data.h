// Training data: shards of tokens to micro-batches of rows. Which rows a step has, and in which order, depends on the files, the seed and the cursor
// alone, never on ranks or micro-batches. A rank copies the tokens of its own rows only.
#pragma once

#include "comm/sharding.h"
#include "model/train/batch.h"
#include "model/train/shards.h"

#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace kvmesh {

/// How documents become rows. A document is <|endoftext|> and the tokens up to the next one; what a shard has before its first is left out.
enum class RowKind : std::uint8_t {
  filled,  ///< seqlen + 1 tokens from a document's start on; the next row begins at the next document's start, so that the last one's rest is left
           ///< out, as is the end of a shard that fills no row. The original's rows; but it drops a shard's last rows that fill no batch, and we do not
  whole,   ///< as many whole documents as fit into seqlen tokens (of one that does not fit alone, its beginning); what is missing is simply absent
};

struct DataOptions {
  std::vector<std::filesystem::path> files;  ///< in the order in which they are read
  std::int64_t seqlen = 0, vocab_size = 0;
  std::int32_t end_of_text = 0;
  RowKind rows = RowKind::filled;
  bool documents_apart = false;  ///< each document is a segment of its own; else a row is one
  bool shuffle = false;          ///< shards, and the rows within each, in an order of each epoch's own
  std::uint32_t seed = 0;        ///< of that order
};

/// The rows of one shard: begin and length of each are known, no token is copied.
class ShardRows {
 public:
  /// One pass over the file. An Error names it: a broken file, an id beyond the vocabulary, no document.
  ShardRows(const std::filesystem::path& file, const DataOptions& options);

  std::int64_t size() const { return static_cast<std::int64_t>(rows_.size()); }
  void will_read(std::int64_t row) const;
  /// Adds a row to a micro-batch, as its last.
  void append(std::int64_t row, TrainBatch& batch) const;

 private:
  struct Row {
    std::int32_t document, length;  // index of its first one in starts_; tokens that have a target
  };

  TokenShard shard_;
  std::int32_t end_of_text_;
  bool documents_apart_;
  std::vector<std::int32_t> starts_;  // of the documents
  std::vector<Row> rows_;
};

/// The next row to be read: of the epoch's `shard`-th shard the `row`-th row, in the epoch's order.
struct DataCursor {
  std::int64_t epoch = 0, shard = 0, row = 0;
  bool operator==(const DataCursor&) const = default;
};

/// What a step reads on all ranks together, and here.
struct BatchShape {
  std::int64_t rows = 1, micro_rows = 1;  ///< `rows` is a multiple of `micro_rows`
  Range leaves{0, 1};                     ///< this rank's micro-batches: `leaves.begin` has rows [begin · micro_rows, (begin + 1) · micro_rows) of the batch
};

/// Batch after batch without end: epochs follow each other, and a batch may cross the end of a shard or an epoch. A thread prepares the next
/// batch while this one is used, and another one looks through the next shard.
class DataLoader {
 public:
  DataLoader(DataOptions options, BatchShape shape, DataCursor cursor = {});

  /// This rank's micro-batches of the next global batch. What failed while they were read ahead is thrown here.
  std::vector<TrainBatch> next();
  /// Where the batch begins that next() gives; belongs into a checkpoint.
  const DataCursor& cursor() const { return cursor_; }

 private:
  struct Ahead {
    std::vector<TrainBatch> batches;
    DataCursor end;
  };
  /// A shard of an epoch, in the epoch's order.
  struct Shard {
    std::int64_t epoch, position;
    std::shared_ptr<const ShardRows> rows;
    std::vector<std::int32_t> order;  ///< of its rows; empty: as they are
    std::int64_t row(std::int64_t i) const { return order.empty() ? i : order[static_cast<std::size_t>(i)]; }
  };

  Ahead read(DataCursor at);
  void go_to(std::int64_t epoch, std::int64_t position);
  Shard load(std::int64_t epoch, std::int64_t position) const;

  const DataOptions options_;
  const BatchShape shape_;
  DataCursor cursor_;
  // Below: of the thread that reads ahead, or nobody's.
  std::optional<Shard> shard_;
  std::future<Shard> next_shard_;
  std::future<Ahead> ahead_;  // the last member: its thread ends before the others go
};

/// Every row of the files once, in order, for evaluation: micro-batch i has rows [i · micro_rows, …), the last one fewer. Nothing is shuffled.
class AllRows {
 public:
  AllRows(const DataOptions& options, std::int64_t micro_rows);

  std::int64_t rows() const { return ends_.back(); }
  std::int64_t batches() const { return (rows() + micro_rows_ - 1) / micro_rows_; }
  TrainBatch batch(std::int64_t i) const;

 private:
  std::int64_t micro_rows_;
  std::vector<ShardRows> shards_;
  std::vector<std::int64_t> ends_;  // rows of the first shard, of the first two, …
};

}  // namespace kvmesh
