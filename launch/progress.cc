// kvmesh progress: how far a job is, read from its journal while it runs or after it was stopped, or from its output.
#include "launch/commands.h"
#include "launch/job/journal.h"
#include "launch/job/line_source.h"
#include "launch/job/output.h"
#include "launch/options.h"
#include "model/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

void print(std::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size()) fail(Fault::io, "standard output: {}", std::strerror(errno));
}

void print_file(const fs::path& name) {
  const File file(name, O_RDONLY);
  std::string block;
  for (std::int64_t at = 0; file.read_at(at, 1 << 20, block) > 0; block.clear()) {
    print(block);
    at += std::ssize(block);
  }
}

// Of the prompts that the output is made of; nothing if they are no longer what they were.
std::optional<std::int64_t> count_rows(const Json& identity, const Json& manifest) {
  try {
    const std::string hash = identity.at("prompts");
    if (hash.starts_with('[')) return std::ssize(Json::parse(hash));  // --prompt TEXT …
    const fs::path prompts = manifest.at("paths").at("prompts").get<std::string>();
    if (file_hash(prompts) != hash) return std::nullopt;
    const std::unique_ptr<Communicator> alone = make_self_communicator();
    LineSource lines(*alone, prompts);
    std::int64_t rows = 0;
    while (lines.next()) ++rows;
    return rows;
  } catch (const Json::exception&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// FILE as a whole, if it is there. The manifest says so before FILE has its name.
bool print_complete(const ProgressOptions& o) {
  if (!fs::exists(o.file)) return false;
  check(!fs::is_directory(o.file), "{}: is a folder", o.file.string());
  const Json manifest = read_manifest(o.file);
  if (manifest.value("complete", Json()) != true) return false;
  if (o.rows) print_file(o.file);
  fmt::print(o.rows ? stderr : stdout, "{}: complete, {} lines, {} of them errors\n", o.file.string(), manifest.value("lines", Json()).dump(), manifest.value("errors", Json()).dump());
  return true;
}

// What is in the journal, if there is one.
bool print_journal(const ProgressOptions& o) {
  const fs::path name = beside(o.file, ".journal");
  if (!fs::exists(name)) return false;
  std::unique_ptr<File> journal;
  try {
    journal = std::make_unique<File>(name, O_RDONLY);
  } catch (const Error&) {
    if (errno == ENOENT) return false;  // it has just been finished
    throw;
  }
  const bool running = ::flock(journal->fd(), LOCK_SH | LOCK_NB) != 0;
  if (!running) ::flock(journal->fd(), LOCK_UN);

  JournalReader reader(*journal);
  const std::optional<std::string_view> header = reader.header();
  const Json identity = header ? Json::parse(*header, nullptr, false) : Json::object();  // just begun
  check(identity.is_object(), "{}: is not a kvmesh journal", name.string());
  JournalState state;
  while (const std::optional<JournalRecord> record = reader.next()) {
    if (!state.take(*record)) break;
    if (!o.rows) continue;
    print(record->line);
    print("\n");
  }
  Json manifest;
  try {
    manifest = read_manifest(o.file);
  } catch (const Error&) {  // just begun
  }
  const Json samples_before = identity.value("samples", Json());
  const std::int64_t samples = samples_before.is_number_integer() ? samples_before.get<std::int64_t>() : 1;
  const std::optional<std::int64_t> rows = count_rows(identity, manifest);
  fmt::print(o.rows ? stderr : stdout, "{}: {}{} {} finished, {} error rows; {}\n", o.file.string(), state.finished.count(), rows ? fmt::format(" of {}", *rows * samples) : "",
             samples > 1 ? "completions" : "rows", state.errors, running ? "a job is writing it" : "no job is writing it, the same command goes on");
  return true;
}

}  // namespace

int progress_command(std::span<const std::string> args) {
  const std::optional<ProgressOptions> o = parse_progress_options(args);
  if (!o) return 0;
  const bool found = print_complete(*o) || print_journal(*o) || print_complete(*o);  // finished in between
  check(found, "{}: neither it nor its journal is there", o->file.string());
  if (std::fflush(stdout) != 0) fail(Fault::io, "standard output: {}", std::strerror(errno));
  return 0;
}

}  // namespace kvmesh
