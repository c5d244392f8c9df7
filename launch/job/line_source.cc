// Reading on rank 0, lines everywhere.
#include "launch/job/line_source.h"

#include "launch/job/agree.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace kvmesh {
namespace {

constexpr std::size_t block_bytes = std::size_t{1} << 20;

bool blank(std::string_view line) { return line.find_first_not_of(" \t\r\v\f") == std::string_view::npos; }

}  // namespace

LineSource::LineSource(Communicator& ranks, const std::filesystem::path& file) : ranks_(ranks), name_(file) {
  on_first_rank(ranks_, [&] {
    errno = 0;
    check(!std::filesystem::is_directory(name_), "{}: is a folder", name_.string());
    file_.open(name_, std::ios::binary);
    check(file_.good(), "{}: {}", name_.string(), std::strerror(errno));
    std::error_code unknown;
    const auto size = std::filesystem::file_size(name_, unknown);
    size_ = unknown ? 0 : static_cast<std::int64_t>(size);
    if (file_.peek() == 0xEF) {  // a byte order mark
      char mark[3] = {};
      file_.read(mark, 3);
      if (std::string_view(mark, 3) != "\xEF\xBB\xBF") file_.clear(), file_.seekg(0);
    }
  });
}

LineSource::LineSource(Communicator& ranks, std::vector<std::string> lines) : ranks_(ranks), ended_(true) {
  for (const std::string& line : lines) buffer_ += line + "\n";
}

bool LineSource::refill() {
  if (ended_) return false;
  std::string block;
  on_first_rank(ranks_, [&] {
    block.resize(block_bytes);
    file_.read(block.data(), static_cast<std::streamsize>(block.size()));
    if (file_.bad()) fail(Fault::io, "{}: reading failed", name_.string());
    block.resize(static_cast<std::size_t>(file_.gcount()));
  });
  broadcast_bytes(ranks_, block);
  read_ += std::ssize(block);
  ended_ = block.empty();
  buffer_.erase(0, position_);
  position_ = 0;
  buffer_ += block;
  return !ended_;
}

double LineSource::fraction_read() const {
  const auto lines = static_cast<double>(read_ - std::ssize(buffer_) + static_cast<std::int64_t>(position_));
  return size_ > 0 ? std::clamp(lines / static_cast<double>(size_), 0.0, 1.0) : 0;
}

bool LineSource::at_end() {
  if (!peeked_) peeked_ = next().has_value();
  return !peeked_;
}

std::optional<std::string_view> LineSource::next() {
  if (std::exchange(peeked_, false)) return line_;
  for (std::size_t searched = position_;;) {
    const std::size_t feed = buffer_.find('\n', searched);
    if (feed == std::string::npos) {
      const std::size_t known = buffer_.size() - position_;
      if (refill()) {
        searched = known;
        continue;
      }
      if (position_ == buffer_.size()) return std::nullopt;  // else a last line without a line feed
    }
    const std::size_t end = feed == std::string::npos ? buffer_.size() : feed;
    line_.assign(buffer_, position_, end - position_);
    position_ = std::min(end + 1, buffer_.size());
    searched = position_;
    if (!blank(line_)) return line_;
  }
}

}  // namespace kvmesh
