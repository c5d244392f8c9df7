// Where finished lines go. A row has an ordinal (index · samples + sample); lines arrive in any order and come out by ordinal.
// Only rank 0 has an output.
#pragma once

#include "launch/job/ordinal_set.h"
#include "launch/job/rows.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

namespace kvmesh {

class Output {
 public:
  virtual ~Output() = default;
  /// The line of `span` ordinals from `ordinal` on (an error line stands for all samples of its row).
  virtual void add(std::int64_t ordinal, std::int64_t span, bool error, const std::string& line) = 0;
  /// Makes what has been added durable if some time has passed; called once a step.
  virtual void commit() {}
  /// All rows are there: does a part of making the output complete, a small part of --comm-timeout's work; whether it was the last.
  virtual bool finish() { return true; }
  /// Ordinals that were finished before this start.
  virtual OrdinalSet done() const { return {}; }
  /// Error lines among those.
  virtual std::int64_t errors_before() const { return 0; }
};

/// Lines to a stream, each as soon as all before it have been written. Borrows `stream`; `name` is for errors.
std::unique_ptr<Output> make_stream_output(std::FILE* stream, std::string name);

/// The first difference between what an output was made with and `now`, as "NAME = WAS, now it is NOW"; empty if there is none.
std::string difference(const Json& was, const Json& now);

/// FILE.manifest.json, or an Error that names it if it is not there or not kvmesh's.
Json read_manifest(const std::filesystem::path& file);

/// Whether `file` is complete and was made by what `identity` says. An Error names the first difference if it is complete but was made otherwise, and
/// says so if it is not kvmesh's at all. Removes the journal that a crash at the job's very end can leave beside it.
bool is_complete(const std::filesystem::path& file, const Json& identity);

/// A file that appears when it is complete. Until then its lines are in FILE.journal, each with a checksum; the same command (equal
/// `identity`) goes on from there, a torn last line is dropped. The journal is locked while a job writes it. FILE.manifest.json
/// holds the identity, what else `manifest` has, and, in the end, counts. Nothing stays behind where an exception ends the job before any
/// line was added. `fresh` throws away what is there, a complete FILE only when the first new line is there. In memory are no more than the ordinals that finished before an unfinished one.
/// Errors: Fault::usage for another identity or a second job, Fault::io for what the file system refuses.
std::unique_ptr<Output> make_file_output(const std::filesystem::path& file, const Json& identity, const Json& manifest, bool fresh);

}  // namespace kvmesh
