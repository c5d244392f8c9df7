// Stream and file output; the journal.
#include "launch/job/output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/crc.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <exception>
#include <fstream>
#include <utility>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

class StreamOutput final : public Output {
 public:
  StreamOutput(std::FILE* stream, std::string name) : stream_(stream), name_(std::move(name)) {}

  void add(std::int64_t ordinal, std::int64_t span, bool, const std::string& line) override {
    waiting_.emplace(ordinal, std::pair(span, line));
    while (!waiting_.empty() && waiting_.begin()->first == next_) {
      const auto& [length, text] = waiting_.begin()->second;
      if (std::fprintf(stream_, "%s\n", text.c_str()) < 0) failed();
      next_ += length;
      waiting_.erase(waiting_.begin());
    }
    if (std::fflush(stream_) != 0) failed();
  }
  void finish() override {}

 private:
  [[noreturn]] void failed() const { fail(Fault::io, "{}: {}", name_, std::strerror(errno)); }
  std::FILE* stream_;
  std::string name_;
  std::int64_t next_ = 0;
  std::map<std::int64_t, std::pair<std::int64_t, std::string>> waiting_;
};

[[noreturn]] void io_failed(const fs::path& file) { fail(Fault::io, "{}: {}", file.string(), std::strerror(errno)); }

// A file descriptor that closes itself.
class File {
 public:
  File(fs::path name, int flags) : name_(std::move(name)), fd_(::open(name_.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) io_failed(name_);
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }
  const fs::path& name() const { return name_; }
  void write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) io_failed(name_);
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
  }
  std::string read(std::int64_t offset, std::int64_t length) const {
    std::string bytes(static_cast<std::size_t>(length), '\0');
    for (std::size_t at = 0; at < bytes.size();) {
      const ssize_t n = ::pread(fd_, bytes.data() + at, bytes.size() - at, offset + static_cast<std::int64_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) io_failed(name_);
      if (n == 0) fail(Fault::io, "{}: became shorter while in use", name_.string());
      at += static_cast<std::size_t>(n);
    }
    return bytes;
  }
  void sync() const {
    if (::fdatasync(fd_) != 0) io_failed(name_);
  }

 private:
  fs::path name_;
  int fd_;
};

fs::path beside(const fs::path& file, const char* suffix) { return file.string() + suffix; }

void sync_folder_of(const fs::path& file) {
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  File(folder, O_RDONLY | O_DIRECTORY).sync();
}

// Replaces `file` by `text` so that at any time either the old or the new text is there.
void replace_file(const fs::path& file, const std::string& text) {
  const fs::path temporary = beside(file, ".tmp");
  {
    const File out(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    out.write(text);
    out.sync();
  }
  if (::rename(temporary.c_str(), file.c_str()) != 0) io_failed(file);
}

// An Error that names the first difference between what `file` was begun with and what is asked for now.
void check_identity(const fs::path& file, const Json& was, const Json& now) {
  for (const auto& [key, value] : now.items()) {
    const Json before = was.contains(key) ? was[key] : Json();
    check(before == value, "--output {}: was begun with {} = {}, now it is {} (--fresh starts over)", file.string(), key, before.dump(), value.dump());
  }
}

std::uint32_t checksum(std::string_view bytes) {
  boost::crc_32_type crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

class FileOutput final : public Output {
 public:
  FileOutput(const fs::path& file, const Json& identity, bool fresh) : file_(file), identity_(identity) {
    check(!fs::is_directory(file_), "--output {}: is a folder", file_.string());  // also where it is not asked whether FILE is complete
    lock();
    if (fresh) {
      for (const fs::path& old : {file_, beside(file_, ".manifest.json")}) {
        if (::unlink(old.c_str()) != 0 && errno != ENOENT) io_failed(old);
      }
      if (::ftruncate(journal_->fd(), 0) != 0) io_failed(journal_->name());
    }
    replay();
  }

  // A job that ends before its time leaves its lines on the disk; one that could not begin (a torn checkpoint, say) leaves nothing.
  ~FileOutput() override {
    if (dirty_) ::fdatasync(journal_->fd());
    if (std::uncaught_exceptions() == 0 || !lines_.empty()) return;
    ::unlink(beside(file_, ".manifest.json").c_str());
    ::unlink(journal_->name().c_str());
  }

  void add(std::int64_t ordinal, std::int64_t span, bool error, const std::string& line) override {
    const std::string head = fmt::format("{} {} {} ", ordinal, span, error ? 'E' : 'R');
    const std::string record = fmt::format("{:08x} {}{}\n", checksum(head + line), head, line);
    journal_->write(record);
    lines_.push_back({ordinal, span, end_ + 9 + std::ssize(head), std::ssize(line), error});
    end_ += std::ssize(record);
    dirty_ = true;
  }

  void commit() override {
    const auto now = std::chrono::steady_clock::now();
    if (!dirty_ || now - synced_ < std::chrono::seconds(1)) return;
    journal_->sync();
    dirty_ = false;
    synced_ = now;
  }

  // Order matters: whatever is cut short here, either the journal or the complete file with its manifest is there.
  void finish() override {
    std::sort(lines_.begin(), lines_.end(), [](const Line& a, const Line& b) { return a.ordinal < b.ordinal; });
    journal_->sync();
    const fs::path temporary = beside(file_, ".tmp");
    std::int64_t errors = 0;
    {
      const File out(temporary, O_WRONLY | O_CREAT | O_TRUNC);
      std::string block;
      for (const Line& line : lines_) {
        block += journal_->read(line.offset, line.length) + "\n";
        errors += line.error;
        if (block.size() > std::size_t{1} << 20) out.write(std::exchange(block, {}));
      }
      out.write(block);
      out.sync();
    }
    Json manifest = {{"complete", true}, {"lines", lines_.size()}, {"errors", errors}, {"identity", identity_}};
    replace_file(beside(file_, ".manifest.json"), manifest.dump(2) + "\n");
    if (::rename(temporary.c_str(), file_.c_str()) != 0) io_failed(file_);
    sync_folder_of(file_);
    if (::unlink(journal_->name().c_str()) != 0) io_failed(journal_->name());
  }

  std::vector<bool> done() const override { return done_; }

  std::int64_t errors_before() const override {
    return std::count_if(lines_.begin(), lines_.begin() + static_cast<std::ptrdiff_t>(replayed_), [](const Line& l) { return l.error; });
  }

 private:
  static constexpr std::int64_t most_in_flight = 1 << 21;  // over what --batch-size and --samples may be

  struct Line {
    std::int64_t ordinal, span, offset, length;  // offset and length of the text in the journal
    bool error;
  };

  void lock() {
    const fs::path name = beside(file_, ".journal");
    for (;;) {
      try {
        journal_ = std::make_unique<File>(name, O_RDWR | O_CREAT | O_APPEND);
      } catch (const Error& e) {
        fail(Fault::usage, "--output: {}", e.what());
      }
      if (::flock(journal_->fd(), LOCK_EX | LOCK_NB) != 0) {
        check(errno != EWOULDBLOCK, "--output {}: another job is writing it", file_.string());
        io_failed(name);
      }
      struct stat mine, there;  // a job that finished meanwhile has removed the file that we locked
      if (::fstat(journal_->fd(), &mine) == 0 && ::stat(name.c_str(), &there) == 0 && mine.st_ino == there.st_ino) return;
    }
  }

  void replay() {
    struct stat status;
    if (::fstat(journal_->fd(), &status) != 0) io_failed(journal_->name());
    const std::string all = journal_->read(0, status.st_size);
    const std::size_t first_feed = all.find('\n');
    if (first_feed == std::string::npos) {  // nothing yet, or a torn header
      if (::ftruncate(journal_->fd(), 0) != 0) io_failed(journal_->name());
      const std::string header = identity_.dump() + "\n";
      journal_->write(header);
      journal_->sync();
      replace_file(beside(file_, ".manifest.json"), Json{{"complete", false}, {"identity", identity_}}.dump(2) + "\n");
      sync_folder_of(file_);
      end_ = std::ssize(header);
      return;
    }
    const Json was = Json::parse(std::string_view(all).substr(0, first_feed), nullptr, false);
    check(was.is_object(), "{}: is not a kvmesh journal (--fresh starts over)", journal_->name().string());
    check_identity(file_, was, identity_);
    std::size_t at = first_feed + 1;
    while (at < all.size()) {
      const std::size_t feed = all.find('\n', at);
      if (feed == std::string::npos || !replay_record(std::string_view(all).substr(at, feed - at), static_cast<std::int64_t>(at))) break;
      at = feed + 1;
    }
    end_ = static_cast<std::int64_t>(at);
    if (at < all.size() && ::ftruncate(journal_->fd(), end_) != 0) io_failed(journal_->name());  // what a crash tore
    replayed_ = lines_.size();
  }

  // Whether `record` is what a job writes; then its line is taken.
  bool replay_record(std::string_view record, std::int64_t offset) {
    std::uint32_t sum = 0;
    if (record.size() < 10 || std::from_chars(record.data(), record.data() + 8, sum, 16).ptr != record.data() + 8) return false;
    const std::string_view body = record.substr(9);
    if (record[8] != ' ' || checksum(body) != sum) return false;
    Line line{};
    const char* p = body.data();
    const char* const end = p + body.size();
    const auto read_number = [&](std::int64_t& value) {  // and the space behind it
      const auto [next, error] = std::from_chars(p, end, value);
      if (error != std::errc() || next == end || *next != ' ') return false;
      p = next + 1;
      return true;
    };
    if (!read_number(line.ordinal) || !read_number(line.span) || end - p < 2 || (p[0] != 'R' && p[0] != 'E') || p[1] != ' ') return false;
    // Rows start in order, so that no more than a batch of ordinals is unfinished before a finished one; nothing finishes twice.
    if (line.ordinal < 0 || line.ordinal > finished_ + most_in_flight || line.span < 1 || line.span > most_in_flight) return false;
    const auto from = static_cast<std::size_t>(line.ordinal), to = from + static_cast<std::size_t>(line.span);
    if (done_.size() < to) done_.resize(to);
    const auto first = done_.begin() + static_cast<std::ptrdiff_t>(from), last = done_.begin() + static_cast<std::ptrdiff_t>(to);
    if (std::find(first, last, true) != last) return false;
    std::fill(first, last, true);
    finished_ += line.span;
    line.error = p[0] == 'E';
    line.length = end - (p + 2);
    line.offset = offset + 9 + (p + 2 - body.data());
    lines_.push_back(line);
    return true;
  }

  fs::path file_;
  Json identity_;
  std::unique_ptr<File> journal_;  // also holds the lock
  std::int64_t end_ = 0;           // bytes in the journal
  std::vector<Line> lines_;        // in the journal's order
  std::size_t replayed_ = 0;       // of these, how many were there at the start
  std::vector<bool> done_;         // ordinals of those
  std::int64_t finished_ = 0;      // how many ordinals those are
  bool dirty_ = false;
  std::chrono::steady_clock::time_point synced_ = std::chrono::steady_clock::now();
};

}  // namespace

std::unique_ptr<Output> make_stream_output(std::FILE* stream, std::string name) { return std::make_unique<StreamOutput>(stream, std::move(name)); }

bool is_complete(const fs::path& file, const Json& identity) {
  check(!fs::is_directory(file), "--output {}: is a folder", file.string());
  if (!fs::exists(file)) return false;
  std::ifstream in(beside(file, ".manifest.json"));
  const Json manifest = in.good() ? Json::parse(in, nullptr, false) : Json();
  check(manifest.is_object() && manifest.contains("identity") && manifest.value("complete", Json()) == true, "--output {}: exists and has no manifest of kvmesh's (--fresh replaces it)", file.string());
  check_identity(file, manifest["identity"], identity);
  return true;
}

std::unique_ptr<Output> make_file_output(const fs::path& file, const Json& identity, bool fresh) {
  return std::make_unique<FileOutput>(file, identity, fresh);
}

}  // namespace kvmesh
