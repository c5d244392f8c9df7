// Records to bytes and back.
#include "launch/job/journal.h"

#include <boost/crc.hpp>
#include <fmt/format.h>

#include <charconv>

namespace kvmesh {
namespace {

constexpr std::int64_t block_bytes = 1 << 15;
constexpr std::int64_t most_in_flight = 1 << 21;  // over what --batch-size and --samples may be

std::uint32_t checksum(std::string_view bytes) {
  boost::crc_32_type crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

// The 8 hex digits and the space that every record begins with.
bool read_checksum(std::string_view record, std::uint32_t& sum) {
  return record.size() >= 9 && record[8] == ' ' && std::from_chars(record.data(), record.data() + 8, sum, 16).ptr == record.data() + 8;
}

}  // namespace

// No more than a batch of ordinals is unfinished before a finished one.
bool JournalState::take(const JournalRecord& r) {
  if (r.ordinal < 0 || r.ordinal > finished.count() + most_in_flight || r.span < 1 || r.span > most_in_flight || !finished.add(r.ordinal, r.span)) return false;
  ++lines;
  errors += r.error;
  return true;
}

std::string journal_record(std::int64_t ordinal, std::int64_t span, bool error, std::string_view line) {
  const std::string body = fmt::format("{} {} {} {}", ordinal, span, error ? 'E' : 'R', line);
  return fmt::format("{:08x} {}\n", checksum(body), body);
}

// Without its line feed; nothing where the file ends before one.
std::optional<std::string_view> JournalReader::line_at(std::int64_t offset, bool is_record) {
  if (offset < start_ || offset > start_ + std::ssize(buffer_)) {
    buffer_.clear();
    start_ = offset;
  }
  auto begin = static_cast<std::size_t>(offset - start_);
  for (std::size_t searched = begin;;) {
    const std::size_t feed = buffer_.find('\n', searched);
    if (feed != std::string::npos) {
      position_ = start_ + static_cast<std::int64_t>(feed) + 1;
      return std::string_view(buffer_).substr(begin, feed - begin);
    }
    buffer_.erase(0, begin);
    start_ = offset;
    begin = 0;
    searched = buffer_.size();
    std::uint32_t sum;  // what a crash left behind may have no line feed for a long way
    if (is_record && searched >= 9 && !read_checksum(buffer_, sum)) return std::nullopt;
    if (file_.read_at(start_ + static_cast<std::int64_t>(searched), block_bytes, buffer_) == 0) return std::nullopt;
  }
}

std::optional<std::string_view> JournalReader::header() { return line_at(0, false); }

std::optional<JournalRecord> JournalReader::next() { return at(position_); }

std::optional<JournalRecord> JournalReader::at(std::int64_t offset) {
  const auto read = [&]() -> std::optional<JournalRecord> {
    const std::optional<std::string_view> line = line_at(offset, true);
    std::uint32_t sum = 0;
    if (!line || !read_checksum(*line, sum) || checksum(line->substr(9)) != sum) return std::nullopt;
    JournalRecord record;
    record.offset = offset;
    const char* p = line->data() + 9;
    const char* const end = line->data() + line->size();
    const auto read_number = [&](std::int64_t& value) {  // and the space behind it
      const auto [next, error] = std::from_chars(p, end, value);
      if (error != std::errc() || next == end || *next != ' ') return false;
      p = next + 1;
      return true;
    };
    if (!read_number(record.ordinal) || !read_number(record.span) || end - p < 2 || (p[0] != 'R' && p[0] != 'E') || p[1] != ' ') return std::nullopt;
    record.error = p[0] == 'E';
    record.line = {p + 2, end};
    return record;
  };
  std::optional<JournalRecord> record = read();
  if (!record) position_ = offset;
  return record;
}

}  // namespace kvmesh
