// The journal: a first line that says what the job is, then a record a finished line, in the order in which they finished.
//   CHECKSUM ORDINAL SPAN R|E LINE        CHECKSUM: CRC-32 of what is behind it, 8 hex digits; R: a completion, E: an error line
#pragma once

#include "launch/job/file.h"
#include "launch/job/ordinal_set.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvmesh {

struct JournalRecord {
  std::int64_t ordinal = 0, span = 0;
  bool error = false;
  std::string_view line;
  std::int64_t offset = 0;  ///< of the record in the journal
};

/// What the records of a journal say together.
struct JournalState {
  OrdinalSet finished;
  std::int64_t lines = 0, errors = 0;
  /// Whether `record` can follow those before: rows start in order, and nothing finishes twice. Then it counts.
  bool take(const JournalRecord& record);
};

/// With its line feed.
std::string journal_record(std::int64_t ordinal, std::int64_t span, bool error, std::string_view line);

/// Reads a journal in blocks, also while a job writes it. Borrows the file. Views live until the next call.
class JournalReader {
 public:
  explicit JournalReader(const File& file) : file_(file) {}

  /// The first line; nothing if there is no whole one.
  std::optional<std::string_view> header();
  /// The next record; nothing at the end, and at what is not what a job writes (a crash tore it, or it is being written).
  std::optional<JournalRecord> next();
  /// The record at `offset`; next() goes on behind it.
  std::optional<JournalRecord> at(std::int64_t offset);
  /// Where next() reads: behind the last good record.
  std::int64_t position() const { return position_; }

 private:
  std::optional<std::string_view> line_at(std::int64_t offset, bool is_record);

  const File& file_;
  std::string buffer_;       // the journal from start_ on
  std::int64_t start_ = 0, position_ = 0;
};

}  // namespace kvmesh
