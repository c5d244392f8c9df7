// Stream and file output.
#include "launch/job/output.h"

#include "launch/job/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <thread>
#include <utility>
#include <vector>

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

 private:
  [[noreturn]] void failed() const { fail(Fault::io, "{}: {}", name_, std::strerror(errno)); }
  std::FILE* stream_;
  std::string name_;
  std::int64_t next_ = 0;
  std::map<std::int64_t, std::pair<std::int64_t, std::string>> waiting_;
};

// An Error that names the first difference between what `file` was begun with and what is asked for now.
void check_identity(const fs::path& file, const Json& was, const Json& now) {
  const std::string d = difference(was, now);
  check(d.empty(), "--output {}: was begun with {} (--fresh starts over)", file.string(), d);
}

// Numbers by ordinal in a file without a name, one page of them in memory. Not mapped: a full disk would be a signal, not an error.
class NumberFile {
 public:
  explicit NumberFile(const fs::path& name) : file_(name, O_RDWR | O_CREAT | O_TRUNC) {
    if (::unlink(name.c_str()) != 0) io_failed(name);
  }
  /// 0 where nothing was set.
  std::int64_t get(std::int64_t at) { return load(at / page_numbers)[static_cast<std::size_t>(at % page_numbers)]; }
  void set(std::int64_t at, std::int64_t number) {
    load(at / page_numbers)[static_cast<std::size_t>(at % page_numbers)] = number;
    changed_ = true;
  }

 private:
  static constexpr std::int64_t page_numbers = 2048, page_bytes = page_numbers * 8;

  std::vector<std::int64_t>& load(std::int64_t page) {
    if (page == page_) return numbers_;
    if (changed_) file_.write_at(page_ * page_bytes, {reinterpret_cast<const char*>(numbers_.data()), page_bytes});
    changed_ = false;
    bytes_.clear();
    file_.read_at(page * page_bytes, page_bytes, bytes_);
    numbers_.assign(page_numbers, 0);
    std::memcpy(numbers_.data(), bytes_.data(), bytes_.size());
    page_ = page;
    return numbers_;
  }

  File file_;
  std::int64_t page_ = 0;
  std::vector<std::int64_t> numbers_ = std::vector<std::int64_t>(page_numbers);
  std::string bytes_;
  bool changed_ = false;
};

class FileOutput final : public Output {
 public:
  FileOutput(const fs::path& file, const Json& identity, const Json& manifest, bool fresh) : file_(file), identity_(identity), manifest_(manifest) {
    check(!fs::is_directory(file_), "--output {}: is a folder", file_.string());  // also where it is not asked whether FILE is complete
    lock();
    if (fresh) {
      replaces_ = fs::exists(file_);
      journal_->truncate(0);
    }
    replay();
  }

  // A job that ends before its time leaves its lines on the disk; one that could not begin (a torn checkpoint, say) leaves nothing.
  ~FileOutput() override {
    if (dirty_) ::fdatasync(journal_->fd());
    if (out_ && !complete_) ::unlink(out_->name().c_str());  // on a full disk its bytes are wanted
    if (std::uncaught_exceptions() == 0 || lines_ > 0) return;
    if (!replaces_) ::unlink(beside(file_, ".manifest.json").c_str());
    ::unlink(journal_->name().c_str());
  }

  void add(std::int64_t ordinal, std::int64_t span, bool error, const std::string& line) override {
    if (std::exchange(replaces_, false)) {  // not before the new job has something to show
      write_manifest(Json{{"complete", false}});
      if (::unlink(file_.c_str()) != 0 && errno != ENOENT) io_failed(file_);
      sync_folder_of(file_);
    }
    journal_->write(journal_record(ordinal, span, error, line));
    end_ = std::max(end_, ordinal + span);
    ++lines_;
    errors_ += error;
    dirty_ = true;
  }

  void commit() override {
    const auto now = std::chrono::steady_clock::now();
    if (!dirty_ || now - synced_ < std::chrono::seconds(1)) return;
    journal_->sync();
    dirty_ = false;
    synced_ = now;
  }

  // First where each line is in the journal, then the lines in order, then the names. That order matters: whatever is cut short
  // here, either the journal or the complete file with its manifest is there.
  bool finish() override {
    if (!out_) {
      journal_->sync();
      out_ = std::make_unique<File>(beside(file_, ".tmp"), O_WRONLY | O_CREAT | O_TRUNC);
      offsets_ = std::make_unique<NumberFile>(beside(file_, ".order.tmp"));
      reader_ = std::make_unique<JournalReader>(*journal_);
      check(reader_->header().has_value(), "{}: changed while in use", journal_->name().string());
    }
    if (found_ < lines_) {
      find_lines();
    } else if (next_ < end_) {
      copy_lines();
    } else {
      publish();
    }
    return complete_;
  }

  OrdinalSet done() const override { return done_; }
  std::int64_t errors_before() const override { return errors_before_; }

 private:
  static constexpr std::int64_t part_bytes = 64 << 20;  // of what is read or written in one call of finish

  void lock() {
    const fs::path name = beside(file_, ".journal");
    for (int tries = 0;;) {
      try {
        journal_ = std::make_unique<File>(name, O_RDWR | O_CREAT | O_APPEND);
      } catch (const Error& e) {
        fail(Fault::usage, "--output: {}", e.what());
      }
      if (::flock(journal_->fd(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) io_failed(name);
        check(++tries < 100, "--output {}: another job is writing it", file_.string());
        std::this_thread::sleep_for(std::chrono::milliseconds(10));  // it may only have been looked at (kvmesh progress)
        continue;
      }
      struct stat mine, there;  // a job that finished meanwhile has removed the file that we locked
      if (::fstat(journal_->fd(), &mine) == 0 && ::stat(name.c_str(), &there) == 0 && mine.st_ino == there.st_ino) return;
    }
  }

  void replay() {
    JournalReader reader(*journal_);
    const std::optional<std::string_view> header = reader.header();
    if (!header) {  // nothing yet, or a torn header
      journal_->truncate(0);
      journal_->write(identity_.dump() + "\n");
      journal_->sync();
      if (!replaces_) write_manifest(Json{{"complete", false}});
      sync_folder_of(file_);
      return;
    }
    const Json was = Json::parse(*header, nullptr, false);
    check(was.is_object(), "{}: is not a kvmesh journal (--fresh starts over)", journal_->name().string());
    check_identity(file_, was, identity_);
    JournalState state;
    std::int64_t good = reader.position();
    for (auto record = reader.next(); record && state.take(*record); record = reader.next()) good = reader.position();
    struct stat status;
    if (::fstat(journal_->fd(), &status) != 0) io_failed(journal_->name());
    if (good < status.st_size) journal_->truncate(good);  // what a crash tore
    done_ = std::move(state.finished);
    lines_ = state.lines;
    errors_ = errors_before_ = state.errors;
    end_ = done_.end();
  }

  void find_lines() {
    for (const std::int64_t begun = reader_->position(); found_ < lines_ && reader_->position() - begun < part_bytes; ++found_) {
      const std::optional<JournalRecord> record = reader_->next();
      check_record(record.has_value());
      offsets_->set(record->ordinal, record->offset);
    }
  }

  void copy_lines() {
    std::string block;
    for (std::int64_t copied = 0; next_ < end_ && copied < part_bytes;) {
      const std::int64_t offset = offsets_->get(next_);
      if (offset == 0) {
        ++next_;
        continue;
      }
      const std::optional<JournalRecord> record = reader_->at(offset);
      check_record(record && record->ordinal == next_);
      block.append(record->line).push_back('\n');
      copied += std::ssize(record->line) + 1;
      next_ += record->span;
      if (block.size() > std::size_t{1} << 20 || next_ >= end_) out_->write(std::exchange(block, {}));
    }
    out_->write(block);
    out_->sync();
  }

  void check_record(bool good) const {
    if (!good) fail(Fault::io, "{}: changed while in use", journal_->name().string());
  }

  void publish() {
    write_manifest(Json{{"complete", true}, {"lines", lines_}, {"errors", errors_}});
    if (::rename(out_->name().c_str(), file_.c_str()) != 0) io_failed(file_);
    complete_ = true;
    sync_folder_of(file_);
    if (::unlink(journal_->name().c_str()) != 0) io_failed(journal_->name());
  }

  void write_manifest(Json manifest) const {
    manifest.update(manifest_);
    manifest["identity"] = identity_;
    replace_file(beside(file_, ".manifest.json"), manifest.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  fs::path file_;
  Json identity_, manifest_;
  std::unique_ptr<File> journal_;  // also holds the lock
  OrdinalSet done_;                // at the start
  std::int64_t errors_before_ = 0;
  std::int64_t lines_ = 0, errors_ = 0, end_ = 0;  // of the journal; end_: one more than the largest ordinal
  bool dirty_ = false, complete_ = false;
  bool replaces_ = false;          // a complete file, which stays until the first line is there
  std::chrono::steady_clock::time_point synced_ = std::chrono::steady_clock::now();

  // In finish():
  std::unique_ptr<File> out_;
  std::unique_ptr<NumberFile> offsets_;     // of records in the journal, by ordinal
  std::unique_ptr<JournalReader> reader_;
  std::int64_t found_ = 0, next_ = 0;       // lines whose offset is known; the ordinal that is written next
};

}  // namespace

std::unique_ptr<Output> make_stream_output(std::FILE* stream, std::string name) { return std::make_unique<StreamOutput>(stream, std::move(name)); }

std::string difference(const Json& was, const Json& now) {
  for (const auto& [key, value] : now.items()) {
    const Json before = was.contains(key) ? was[key] : Json();
    if (before != value) return fmt::format("{} = {}, now it is {}", key, before.dump(), value.dump());
  }
  return "";
}

Json read_manifest(const fs::path& file) {
  const fs::path name = beside(file, ".manifest.json");
  std::ifstream in(name);
  check(in.good() && !fs::is_directory(name), "{}: {}", name.string(), std::strerror(errno));
  const Json manifest = Json::parse(in, nullptr, false);
  check(manifest.is_object() && manifest.contains("identity") && manifest["identity"].is_object(), "{}: is not a manifest of kvmesh's", name.string());
  return manifest;
}

bool is_complete(const fs::path& file, const Json& identity) {
  check(!fs::is_directory(file), "--output {}: is a folder", file.string());
  if (!fs::exists(file)) return false;
  Json manifest = Json::object();
  try {
    manifest = read_manifest(file);
  } catch (const Error&) {
  }
  check(manifest.value("complete", Json()) == true, "--output {}: exists and has no manifest of kvmesh's (--fresh replaces it)", file.string());
  check_identity(file, manifest["identity"], identity);
  const fs::path journal = beside(file, ".journal");
  if (fs::exists(journal)) {  // a crash came between the output's name and the journal's end; or the job that made the output is just there
    const File left(journal, O_RDWR);
    if (::flock(left.fd(), LOCK_EX | LOCK_NB) == 0 && ::unlink(journal.c_str()) != 0) io_failed(journal);
  }
  return true;
}

std::unique_ptr<Output> make_file_output(const fs::path& file, const Json& identity, const Json& manifest, bool fresh) {
  return std::make_unique<FileOutput>(file, identity, manifest, fresh);
}

}  // namespace kvmesh
