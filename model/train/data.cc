// Rows of documents, their order, reading ahead.
#include "model/train/data.h"

#include "runtime/check.h"
#include "runtime/noise.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace kvmesh {
namespace {

void check_options(const DataOptions& o) {
  check(!o.files.empty(), "training data: no files are named");
  check(o.seqlen >= 1, "training data: rows of {} tokens cannot be", o.seqlen);
  check(o.vocab_size <= shard_vocab_limit, "{}: token shards hold ids below {}, but the vocabulary has {}", o.files[0].string(), shard_vocab_limit, o.vocab_size);
  check(o.end_of_text >= 0 && o.end_of_text < o.vocab_size, "{}: documents begin with <|endoftext|>, whose id {} is not in the vocabulary of {}", o.files[0].string(),
        o.end_of_text, o.vocab_size);
}

[[noreturn]] void no_rows(const DataOptions& o) {
  fail(Fault::usage, "{}{}: no document is followed by enough tokens for a row of {} and their targets", o.files[0].string(),
       o.files.size() == 1 ? "" : fmt::format(" and {} more", o.files.size() - 1), o.seqlen);
}

/// 0 … n-1 in an order that depends on the key alone (Fisher and Yates; 64 random bits a draw, so that its bias is nothing).
std::vector<std::int32_t> permutation(std::int64_t n, NoiseKey key) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (auto i = static_cast<std::uint32_t>(n); i > 1; --i) {
    const NoiseKey bits = threefry2x32(key, 1, i);  // fold_in counts from (0, 0) on
    std::swap(order[i - 1], order[(std::uint64_t{bits.hi} << 32 | bits.lo) % i]);
  }
  return order;
}

NoiseKey key_of_epoch(const DataOptions& o, std::int64_t epoch) { return fold_in(noise_key(o.seed), static_cast<std::uint32_t>(epoch)); }

}  // namespace

ShardRows::ShardRows(const std::filesystem::path& file, const DataOptions& o)
    : shard_(file), end_of_text_(o.end_of_text), documents_apart_(o.documents_apart), starts_(shard_.find(o.end_of_text, o.vocab_size)) {
  check(!starts_.empty(), "{}: no document begins here: none of its {} tokens is <|endoftext|>, {}", file.string(), shard_.tokens().size(), o.end_of_text);
  const auto size = std::ssize(shard_.tokens());
  for (auto first = starts_.begin(); first != starts_.end();) {
    std::int64_t end = *first + o.seqlen;
    auto next = starts_.end();
    if (o.rows == RowKind::filled) {
      if (end + 1 > size) break;
      next = std::lower_bound(first, starts_.end(), end + 1);
    } else if (end < size) {
      next = std::upper_bound(first, starts_.end(), end);  // the first document that begins beyond the row; the one before it may not fit whole
      if (std::prev(next) != first) --next;
      if (next != starts_.end()) end = std::min<std::int64_t>(end, *next);
    } else {
      end = size;
    }
    rows_.push_back({static_cast<std::int32_t>(first - starts_.begin()), static_cast<std::int32_t>(end - *first)});
    first = next;
  }
}

void ShardRows::will_read(std::int64_t row) const {
  const Row& r = rows_[static_cast<std::size_t>(row)];
  const std::int64_t begin = starts_[static_cast<std::size_t>(r.document)];
  shard_.will_read(begin, std::min<std::int64_t>(begin + r.length + 1, std::ssize(shard_.tokens())));
}

void ShardRows::append(std::int64_t row, TrainBatch& batch) const {
  const Row& r = rows_[static_cast<std::size_t>(row)];
  const std::span<const std::uint16_t> tokens = shard_.tokens();
  const std::int64_t begin = starts_[static_cast<std::size_t>(r.document)], end = begin + r.length;
  const auto offset = static_cast<std::int32_t>(batch.ids.size());
  batch.ids.insert(batch.ids.end(), tokens.begin() + begin, tokens.begin() + end);
  batch.targets.insert(batch.targets.end(), tokens.begin() + begin + 1, tokens.begin() + std::min(end + 1, std::ssize(tokens)));
  if (end == std::ssize(tokens)) batch.targets.push_back(end_of_text_);

  std::int64_t from = begin;
  for (auto next = starts_.begin() + r.document + 1; from < end; ++next) {
    const std::int64_t to = documents_apart_ && next < starts_.end() && *next < end ? *next : end;
    const std::int64_t in_row = from - begin;
    batch.segments.push_back({in_row, in_row, static_cast<std::int32_t>(batch.rows), static_cast<std::int32_t>(to - from), offset + static_cast<std::int32_t>(in_row)});
    from = to;
  }
  ++batch.rows;
}

DataLoader::DataLoader(DataOptions options, BatchShape shape, DataCursor cursor) : options_(std::move(options)), shape_(shape), cursor_(cursor) {
  check_options(options_);
  check(shape.micro_rows >= 1 && shape.rows >= shape.micro_rows && shape.rows % shape.micro_rows == 0, "a batch of {} rows cannot be made of micro-batches of {}", shape.rows,
        shape.micro_rows);
  check(0 <= shape.leaves.begin && shape.leaves.begin <= shape.leaves.end && shape.leaves.end <= shape.rows / shape.micro_rows,
        "micro-batches {} to {} of {} cannot be", shape.leaves.begin, shape.leaves.end, shape.rows / shape.micro_rows);
  check(cursor.epoch >= 0 && cursor.row >= 0 && cursor.shard >= 0 && cursor.shard < std::ssize(options_.files), "training data: epoch {}, shard {}, row {} are nowhere in {} files",
        cursor.epoch, cursor.shard, cursor.row, options_.files.size());
  ahead_ = std::async(std::launch::async, [this, cursor] { return read(cursor); });
}

std::vector<TrainBatch> DataLoader::next() {
  check(ahead_.valid(), "training data: nothing can be read after an error");
  Ahead ahead = ahead_.get();
  cursor_ = ahead.end;
  ahead_ = std::async(std::launch::async, [this, at = cursor_] { return read(at); });
  return std::move(ahead.batches);
}

DataLoader::Ahead DataLoader::read(DataCursor at) {
  struct Source {
    std::shared_ptr<const ShardRows> shard;
    std::int64_t row;
  };
  const Range own{shape_.leaves.begin * shape_.micro_rows, shape_.leaves.end * shape_.micro_rows};
  std::vector<Source> sources;
  for (std::int64_t i = 0, empty = 0; i < shape_.rows;) {
    go_to(at.epoch, at.shard);
    const std::int64_t left = shard_->rows->size() - at.row;
    check(left >= 0, "training data: row {} of shard {} of epoch {} is to be read next, but that shard has {} rows: these are other files", at.row, at.shard, at.epoch,
          shard_->rows->size());
    if (left == 0) {
      empty = shard_->rows->size() == 0 ? empty + 1 : 0;
      if (empty > std::ssize(options_.files)) no_rows(options_);
      at = at.shard + 1 < std::ssize(options_.files) ? DataCursor{at.epoch, at.shard + 1, 0} : DataCursor{at.epoch + 1, 0, 0};
      continue;
    }
    const std::int64_t taken = std::min(left, shape_.rows - i);
    for (std::int64_t j = std::max(i, own.begin); j < std::min(i + taken, own.end); ++j) {
      const Source& s = sources.emplace_back(shard_->rows, shard_->row(at.row + j - i));
      s.shard->will_read(s.row);
    }
    i += taken;
    at.row += taken;
    empty = 0;
  }
  Ahead ahead{std::vector<TrainBatch>(static_cast<std::size_t>(shape_.leaves.size())), at};
  for (std::size_t i = 0; i < sources.size(); ++i) sources[i].shard->append(sources[i].row, ahead.batches[i / static_cast<std::size_t>(shape_.micro_rows)]);
  return ahead;
}

/// Makes that shard the current one, and begins to load the one after it.
void DataLoader::go_to(std::int64_t epoch, std::int64_t position) {
  const auto is_current = [&] { return shard_ && shard_->epoch == epoch && shard_->position == position; };
  if (is_current()) return;
  if (next_shard_.valid()) shard_ = next_shard_.get();
  if (!is_current()) shard_ = load(epoch, position);
  const bool last = position + 1 == std::ssize(options_.files);
  next_shard_ = std::async(std::launch::async, [this, epoch, position, last] { return last ? load(epoch + 1, 0) : load(epoch, position + 1); });
}

DataLoader::Shard DataLoader::load(std::int64_t epoch, std::int64_t position) const {
  const NoiseKey key = key_of_epoch(options_, epoch);
  std::int64_t file = position;
  if (options_.shuffle) file = permutation(std::ssize(options_.files), key)[static_cast<std::size_t>(position)];
  Shard shard{epoch, position, std::make_shared<const ShardRows>(options_.files[static_cast<std::size_t>(file)], options_), {}};
  if (options_.shuffle) shard.order = permutation(shard.rows->size(), fold_in(key, static_cast<std::uint32_t>(file)));
  return shard;
}

AllRows::AllRows(const DataOptions& options, std::int64_t micro_rows) : micro_rows_(micro_rows) {
  check_options(options);
  check(micro_rows >= 1, "micro-batches of {} rows cannot be", micro_rows);
  for (const auto& file : options.files) {
    shards_.emplace_back(file, options);
    ends_.push_back((ends_.empty() ? 0 : ends_.back()) + shards_.back().size());
  }
  if (rows() == 0) no_rows(options);
}

TrainBatch AllRows::batch(std::int64_t i) const {
  TrainBatch batch;
  for (std::int64_t row = i * micro_rows_; row < std::min((i + 1) * micro_rows_, rows()); ++row) {
    const auto shard = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), row) - ends_.begin());
    shards_[shard].append(row - (shard == 0 ? 0 : ends_[shard - 1]), batch);
  }
  return batch;
}

}  // namespace kvmesh
