// The options of the commands that measure: bench and scale.
#include "launch/options/common.h"

#include <algorithm>
#include <charconv>
#include <sstream>

namespace kvmesh {
namespace {

/// D,layers,q_heads,kv_heads,vocab,seqlen, held to the rules of a config.json.
ModelConfig parse_shape(const std::string& text) {
  std::int64_t n[6] = {};
  std::istringstream in(text);
  bool read = true;
  for (int i = 0; i < 6 && read; ++i) read = static_cast<bool>(in >> n[i]) && (i == 5 ? in.peek() == EOF : in.get() == ',');
  check(read, "--shape {}: not six numbers D,layers,q_heads,kv_heads,vocab,seqlen", text);
  return parse_config(fmt::format(R"({{"d_emb":{},"num_layers":{},"q_heads":{},"kv_heads":{},"vocab_size":{},"seqlen":{}}})", n[0], n[1], n[2], n[3], n[4], n[5]),
                      "--shape " + text);
}

}  // namespace

std::optional<BenchOptions> parse_bench_options(std::span<const std::string> args, bool speak) {
  BenchOptions o;
  o.mesh.batch_size = 1;
  std::string checkpoint, shape, json, parts;
  bool no_run_ahead = false;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  add_attention_option(options, o.mesh);
  add_context_option(options, o.mesh);
  add_weight_options(options, o.mesh);
  add_run_ahead_option(options, no_run_ahead);
  options.add_options()  //
      ("batch", value(o.mesh.batch_size, "B"), "rows in flight on the whole mesh")  //
      ("shape", value(shape, "D,layers,q_heads,kv_heads,vocab,seqlen"), "random weights of this shape instead of a checkpoint")  //
      ("prompt-len", value(o.prompt_len, "P"), "tokens of each prompt")                                                 //
      ("new-tokens", value(o.new_tokens, "N"), "new tokens of each row")                                                //
      ("repeat", value(o.repeat, "R"), "how often; medians are reported")                                               //
      ("parts", value(parts, "PART,…"), "what to measure besides prefill and decode: ops, sampler, load, collectives, or all")  //
      ("json", value(json, "FILE"), "where the figures are written");
  if (!parse_options(args, options, "kvmesh bench (--checkpoint DIR | --shape …) [--json FILE]", speak)) return std::nullopt;
  check(checkpoint.empty() != shape.empty(), "give either --checkpoint DIR or --shape D,layers,q_heads,kv_heads,vocab,seqlen");
  check(o.prompt_len >= 1, "--prompt-len {}: must be 1 or more", o.prompt_len);
  check(o.new_tokens >= 2, "--new-tokens {}: must be 2 or more, for the first comes from prefill", o.new_tokens);
  std::istringstream words(parts);
  for (std::string word; std::getline(words, word, ',');) {
    if (word == "all") {
      o.ops = o.sampler = o.collectives = true;
      o.load = !checkpoint.empty();
      continue;
    }
    *choose<bool*>("parts", word, {{"ops", &o.ops}, {"sampler", &o.sampler}, {"load", &o.load}, {"collectives", &o.collectives}, {"all", nullptr}}) = true;
  }
  check(!o.load || !checkpoint.empty(), "--parts load: needs a --checkpoint to load");
  check(o.repeat >= 1, "--repeat {}: must be 1 or more", o.repeat);
  o.mesh.checkpoint = checkpoint;
  o.run_ahead = !no_run_ahead;
  o.json = json;
  if (!shape.empty()) o.shape = parse_shape(shape);
  check_mesh_options(o.mesh, "batch");
  return o;
}

std::optional<ScaleOptions> parse_scale_options(std::span<const std::string> args, bool speak, int most) {
  ScaleOptions o;
  o.mesh.comm_timeout = 3600;  // ranks that sit out a run wait for its end
  std::string checkpoint, shape, ranks, report;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  add_attention_option(options, o.mesh);
  add_context_option(options, o.mesh);
  add_weight_options(options, o.mesh);
  options.add_options()  //
      ("shape", value(shape, "D,layers,q_heads,kv_heads,vocab,seqlen"), "random weights of this shape instead of a checkpoint")  //
      ("ranks", value(ranks, "N,…"), "rank counts, each of the job's first N ranks; default: 1, 2, 4, … and all")        //
      ("batch", value(o.mesh.batch_size, "B"), "rows of the strong runs, on all their ranks together")                       //
      ("rows-per-rank", value(o.rows_per_rank, "B"), "rows of the weak runs, on each rank; default: the strong runs' share of one of all ranks")  //
      ("prompt-len", value(o.prompt_len, "P"), "tokens of each prompt")                                                       //
      ("new-tokens", value(o.new_tokens, "N"), "new tokens of each row")                                                      //
      ("repeat", value(o.repeat, "R"), "runs of each kind, in shuffled order")                                               //
      ("report", value(report, "DIR"), "where report.md, report.json and the plots are written");
  if (!parse_options(args, options, "kvmesh scale (--checkpoint DIR | --shape …) --report DIR", speak)) return std::nullopt;
  check(checkpoint.empty() != shape.empty(), "give either --checkpoint DIR or --shape D,layers,q_heads,kv_heads,vocab,seqlen");
  check(!report.empty(), "--report DIR is required");
  check(o.prompt_len >= 1, "--prompt-len {}: must be 1 or more", o.prompt_len);
  check(o.new_tokens >= 2, "--new-tokens {}: must be 2 or more, for the first comes from prefill", o.new_tokens);
  check(o.repeat >= 1, "--repeat {}: must be 1 or more", o.repeat);
  std::istringstream words(ranks);
  for (std::string word; std::getline(words, word, ',');) {
    int n = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), n);
    check(error == std::errc() && end == word.data() + word.size() && n >= 1, "--ranks {}: not numbers with commas between them", ranks);
    check(n <= most, "--ranks {}: this job has {} rank{}", ranks, most, most == 1 ? "" : "s");
    o.ranks.push_back(n);
  }
  for (int n = 1; ranks.empty() && n < most; n *= 2) o.ranks.push_back(n);
  if (ranks.empty()) o.ranks.push_back(most);
  o.ranks.push_back(1);  // everything is compared with one rank
  std::sort(o.ranks.begin(), o.ranks.end());
  o.ranks.erase(std::unique(o.ranks.begin(), o.ranks.end()), o.ranks.end());
  check(o.mesh.batch_size >= o.ranks.back(), "--batch {}: fewer rows than the {} ranks of --ranks", o.mesh.batch_size, o.ranks.back());
  if (o.rows_per_rank == 0) o.rows_per_rank = o.mesh.batch_size / o.ranks.back();
  check(o.rows_per_rank >= 1, "--rows-per-rank {}: must be 1 or more", o.rows_per_rank);
  o.mesh.checkpoint = checkpoint;
  o.report = report;
  if (!shape.empty()) o.shape = parse_shape(shape);
  check_mesh_options(o.mesh, "batch");
  return o;
}

}  // namespace kvmesh
