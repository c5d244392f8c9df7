// kvmesh tokenize: text lines to lists of ids, or back, or to shards of training data.
#include "launch/commands.h"
#include "launch/job/cores.h"
#include "launch/options.h"
#include "model/train/shards.h"
#include "runtime/say.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <iostream>

namespace kvmesh {
namespace {

/// The next line of standard input; false at its end.
bool next_line(std::string& line) {
  const bool read = static_cast<bool>(std::getline(std::cin, line));
  if (std::cin.bad()) fail(Fault::io, "standard input: reading failed");
  return read;
}

std::vector<std::int32_t> parse_ids(const std::string& line, std::int64_t number) {
  const nlohmann::json ids = nlohmann::json::parse(line, nullptr, false);
  check(ids.is_array() && line.find('\0') == std::string::npos, "standard input, line {}: not a JSON list of ids", number);
  std::vector<std::int32_t> out;
  for (const auto& id : ids) {
    check(id.is_number_integer() && id >= 0 && id <= std::numeric_limits<std::int32_t>::max(), "standard input, line {}: {} is no id", number, id.dump());
    out.push_back(id);
  }
  return out;
}

/// Documents one after another, each whole in one file: the next one begins where a document would not fit any more.
class ShardWriter {
 public:
  ShardWriter(std::string prefix, std::int64_t most) : prefix_(std::move(prefix)), most_(static_cast<std::size_t>(most)) {
    const std::filesystem::path prefix_path(prefix_), folder = prefix_path.has_parent_path() ? prefix_path.parent_path() : ".";
    check(std::filesystem::is_directory(folder), "--shards {}: {} is no folder", prefix_, folder.string());
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {  // a pattern would take older files for some of these
      const std::string name = entry.path().filename().string();
      check(!name.starts_with(prefix_path.filename().string() + "-") || !name.ends_with(".bin"), "{}: is there already", entry.path().string());
    }
  }

  void add(std::int32_t end_of_text, std::span<const std::int32_t> text) {
    if (!tokens_.empty() && tokens_.size() + 1 + text.size() > most_) finish();
    tokens_.push_back(static_cast<std::uint16_t>(end_of_text));
    tokens_.insert(tokens_.end(), text.begin(), text.end());
    ++documents_;
  }

  void finish() {
    check(documents_ > 0, "standard input: no documents");
    write_shard(name(), tokens_);
    written_ += std::ssize(tokens_);
    ++shards_;
    tokens_.clear();
  }

  void report() const {
    say("{} document{}, {} tokens in {} shard{}\n", documents_, documents_ == 1 ? "" : "s", written_, shards_, shards_ == 1 ? "" : "s");
  }

 private:
  std::string name() const { return fmt::format("{}-{:06}.bin", prefix_, shards_); }

  std::string prefix_;
  std::size_t most_;
  std::vector<std::uint16_t> tokens_;  // of the shard to be written next
  std::int64_t shards_ = 0, documents_ = 0, written_ = 0;
};

/// Each line of standard input that is not blank is a document: <|endoftext|> and the line's tokens.
void write_shards(const Tokenizer& tokenizer, const TokenizeOptions& o) {
  constexpr std::size_t batch_bytes = 4 << 20;
  check(tokenizer.vocab_size() <= shard_vocab_limit, "--shards {}: files hold ids below {}, but {} has a vocabulary of {}", o.shards, shard_vocab_limit,
        o.tokenizer.string(), tokenizer.vocab_size());
  check(tokenizer.end_of_text() >= 0, "--shards {}: {} has no token <|endoftext|> to begin a document with", o.shards, o.tokenizer.string());
  ShardWriter shards(o.shards, o.shard_tokens);
  const Cores cores = own_cores();
  const int threads = fair_threads({&cores, 1})[0];
  for (bool more = true; more;) {
    std::vector<std::string> lines;
    std::string line;
    for (std::size_t bytes = 0; bytes < batch_bytes && (more = next_line(line));) {
      if (line.find_first_not_of(" \t\r\v\f") == std::string::npos) continue;
      bytes += line.size();
      lines.push_back(std::move(line));
    }
    for (const auto& text : tokenizer.encode_batch(lines, threads, false)) shards.add(tokenizer.end_of_text(), text);
  }
  shards.finish();
  shards.report();
}

}  // namespace

int tokenize_command(std::span<const std::string> args) {
  const std::optional<TokenizeOptions> o = parse_tokenize_options(args);
  if (!o) return 0;
  const Tokenizer tokenizer(o->tokenizer);
  std::ios::sync_with_stdio(false);
  if (!o->shards.empty()) {
    write_shards(tokenizer, *o);
    return 0;
  }
  std::string line;
  for (std::int64_t number = 1; next_line(line); ++number) {
    if (o->decode) std::cout << tokenizer.decode(parse_ids(line, number)) << '\n';
    else std::cout << fmt::format("[{}]\n", fmt::join(tokenizer.encode(line), ", "));
  }
  std::cout.flush();
  if (!std::cout) fail(Fault::io, "standard output: writing failed");
  return 0;
}

}  // namespace kvmesh
