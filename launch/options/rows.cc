// The options of the commands that take rows: generate, score and verify.
#include "launch/options/common.h"

#include "model/utf8.h"

#include <charconv>
#include <cmath>

namespace kvmesh {
namespace {

void add_rows_options(po::options_description& options, std::string& prompts, std::string& output) {
  options.add_options()  //
      ("prompts", value(prompts, "FILE"), "one JSON object a line")  //
      ("output", value(output, "FILE"), "one JSON object a line, in input order; - is standard output");
}

void add_chat_options(po::options_description& options, ChatOptions& chat) {
  options.add_options()  //
      ("chat", po::bool_switch(&chat.on), "rows are conversations (\"messages\", or one question as \"prompt\"), which the chat template makes prompts")  //
      ("chat-template", po::value<std::string>()->value_name("FILE")->notifier([&](const std::string& file) { chat.file = file; }), "instead of the checkpoint's chat template")  //
      ("system", po::value<std::string>()->value_name("TEXT")->notifier([&](const std::string& text) { chat.system = text; }), "the system's message of conversations that have none")  //
      ("chat-date", value(chat.day, "YYYY-MM-DD"), "the day that a chat template may tell; today unless it is given");
}

void check_chat_options(const ChatOptions& chat) {
  for (const auto& [given, name] : {std::pair(!chat.file.empty(), "chat-template"), std::pair(chat.system.has_value(), "system"), std::pair(!chat.day.empty(), "chat-date")}) {
    check(chat.on || !given, "--{}: only with --chat", name);
  }
  check(chat.day.empty() || day_of(chat.day), "--chat-date {}: is not a day, YYYY-MM-DD", chat.day);
  check(!chat.system || valid_utf8_prefix(*chat.system) == chat.system->size(), "--system: is not UTF-8 text");
}

/// A number of rows, or auto.
std::int64_t parse_batch_size(const std::string& text) {
  if (text == "auto") return auto_batch;
  std::int64_t rows = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rows);
  check(error == std::errc() && end == text.data() + text.size() && rows >= 1 && rows <= 1 << 20, "--batch-size {}: must be 1 to {}, or auto", text, 1 << 20);
  return rows;
}

}  // namespace

std::optional<GenerateCommandOptions> parse_generate_options(std::span<const std::string> args, bool speak, std::string_view command) {
  GenerateCommandOptions o;
  std::string checkpoint, prompts, output, metrics, prometheus, trace, rng = "row", sync = "tokens", pad = "power-of-two", shards = "shared", batch_size = "32";
  std::int64_t seed = 0;
  std::optional<std::int32_t> logprobs;
  bool no_run_ahead = false;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  add_attention_option(options, o.mesh);
  add_context_option(options, o.mesh);
  add_weight_options(options, o.mesh);
  add_rows_options(options, prompts, output);
  add_chat_options(options, o.chat);
  add_run_ahead_option(options, no_run_ahead);
  options.add_options()("batch-size", value(batch_size, "B"), "rows in flight on the whole mesh; auto: as many as fit into memory");
  options.add_options()  //
      ("prompt", po::value(&o.prompt)->value_name("TEXT"), "a prompt, instead of --prompts; repeatable")  //
      ("max-new-tokens", value(o.row.max_new_tokens, "N"), "a completion's most tokens")                                 //
      ("temperature", value(o.row.temperature, "T"), "0 or less: the most probable token")                              //
      ("top-k", value(o.row.top_k, "K"), "draw among the K best (and ties of the K-th); 0: all")                        //
      ("top-p", value(o.row.top_p, "P"), "draw among the fewest tokens that have probability P together; 1: all")       //
      ("min-p", value(o.row.min_p, "P"), "draw among tokens at least P times as probable as the best; 0: all")          //
      ("seed", value(seed, "S"), "0 to 4294967295")                                                                     //
      ("rng", value(rng, "MODE"), "row: a draw depends on seed, row, sample and token; jax: the original's generate() over one batch")  //
      ("stop", po::value(&o.row.stop)->value_name("TEXT"), "end a completion before this text; repeatable")  //
      ("stop-token", po::value(&o.row.stop_tokens)->value_name("ID"), "end a completion with this token; repeatable")  //
      ("ignore-eos", po::bool_switch(&o.row.ignore_eos), "<|endoftext|> does not stop")                                 //
      ("samples", value(o.generate.samples, "N"), "completions a prompt")                                               //
      ("logprobs", po::value<std::int32_t>()->value_name("N")->notifier([&](std::int32_t n) { logprobs = n; }), "log-probabilities of the new tokens, and the N best")        //
      ("pad", value(pad, "MODE"), "left-pad a batch to power-of-two or longest; changes no result")                     //
      ("sync", value(sync, "WHAT"), "what the ranks gather each step: tokens, or logits, which every rank then samples and compares")  //
      ("sync-every", value(o.generate.sync_every, "STEPS"), "steps that a rank takes by itself between two meetings of the ranks, at which rows enter; changes no result")  //
      ("prefill-chunk", value(o.generate.prefill_chunk, "N"), "prompt tokens that a rank prefills between two decode steps at most; changes no result")  //
      ("static-batches", po::bool_switch(&o.generate.static_batches), "rows enter only when the whole batch has finished")  //
      ("shards", value(shards, "HOW"), "shared: a row goes to whichever rank has room; static: row i to rank i mod ranks; changes no result")  //
      ("sentinel", value(o.generate.sentinel, "STEPS"), "every so many steps a 256th of the weights in memory is compared with the other ranks'; 0: never")  //
      ("metrics", value(metrics, "FILE"), "where the time goes, a JSON line every --metrics-interval; appended")  //
      ("prometheus", value(prometheus, "FILE"), "the same as Prometheus' text, replaced every --metrics-interval")  //
      ("trace", value(trace, "FILE"), "every stretch of each rank's time in Chrome's trace format, one file a rank: its number goes before FILE's extension")  //
      ("metrics-interval", value(o.metrics.interval, "SECONDS"), "between two of them")  //
      ("fresh", po::bool_switch(&o.fresh), "start over instead of going on with what --output FILE already has");
  if (!parse_options(args, options, fmt::format("kvmesh {} --checkpoint DIR (--prompts FILE | --prompt TEXT …) [--output FILE | -]", command), speak)) return std::nullopt;
  check(!checkpoint.empty(), "--checkpoint DIR is required");
  o.mesh.checkpoint = checkpoint;
  o.mesh.prompts = prompts;
  o.mesh.output = output;
  check_mesh_options(o.mesh);
  check_chat_options(o.chat);
  o.mesh.batch_size = parse_batch_size(batch_size);
  check(prompts.empty() != o.prompt.empty(), "{}", prompts.empty() ? "no input: give --prompts FILE or --prompt TEXT" : "--prompts and --prompt exclude each other");
  check(o.row.max_new_tokens >= 1, "--max-new-tokens {}: must be 1 or more", o.row.max_new_tokens);
  check(std::isfinite(o.row.temperature), "--temperature: must be a finite number");
  check(o.row.top_k >= 0, "--top-k {}: must be 0 or more", o.row.top_k);
  check(o.row.top_p > 0 && o.row.top_p <= 1, "--top-p {}: must be above 0 and at most 1", o.row.top_p);
  check(o.row.min_p >= 0 && o.row.min_p <= 1, "--min-p {}: must be 0 to 1", o.row.min_p);
  check(seed >= 0 && seed < std::int64_t{1} << 32, "--seed {}: must be 0 to 4294967295", seed);
  check(o.generate.samples >= 1 && o.generate.samples <= 1 << 20, "--samples {}: must be 1 to {}", o.generate.samples, 1 << 20);
  check(!logprobs || (*logprobs >= 0 && *logprobs < 1 << 20), "--logprobs {}: must be 0 or more, and no more than the vocabulary", logprobs.value_or(0));
  check(o.generate.prefill_chunk >= 1, "--prefill-chunk {}: must be 1 or more", o.generate.prefill_chunk);
  check(o.generate.sync_every >= 1 && o.generate.sync_every <= 1 << 20, "--sync-every {}: must be 1 to {}", o.generate.sync_every, 1 << 20);
  check(o.generate.sentinel >= 0, "--sentinel {}: must be 0 or more", o.generate.sentinel);
  check(o.metrics.interval > 0, "--metrics-interval {}: must be positive", o.metrics.interval);
  for (const std::string& stop : o.row.stop) {
    check(!stop.empty(), "--stop: the text is empty");
    check(valid_utf8_prefix(stop) == stop.size(), "--stop \"{}\": is not UTF-8 text", to_valid_utf8(stop));
  }
  o.generate.batch_size = o.mesh.batch_size;
  o.generate.seed = static_cast<std::uint32_t>(seed);
  o.generate.logprobs = logprobs.value_or(-1);
  o.generate.run_ahead = !no_run_ahead;
  o.generate.rng = choose<Rng>("rng", rng, {{"row", Rng::row}, {"jax", Rng::jax}});
  o.generate.sync = choose<Sync>("sync", sync, {{"tokens", Sync::tokens}, {"logits", Sync::logits}});
  o.generate.shards = choose<Shards>("shards", shards, {{"shared", Shards::shared}, {"static", Shards::fixed}});
  o.metrics.file = metrics;
  o.metrics.prometheus = prometheus;
  o.metrics.trace = trace;
  o.generate.pad = choose<Pad>("pad", pad, {{"power-of-two", Pad::power_of_two}, {"longest", Pad::longest}});
  return o;
}

std::optional<ScoreOptions> parse_score_options(std::span<const std::string> args, bool speak) {
  ScoreOptions o;
  std::string checkpoint, prompts, output;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  add_attention_option(options, o.mesh);
  add_context_option(options, o.mesh);
  add_weight_options(options, o.mesh);
  add_rows_options(options, prompts, output);
  add_chat_options(options, o.chat);
  options.add_options()("batch-size", value(o.mesh.batch_size, "B"), "rows in flight on the whole mesh");
  if (!parse_options(args, options, "kvmesh score --checkpoint DIR --prompts FILE [--output FILE | -]", speak)) return std::nullopt;
  check(!checkpoint.empty(), "--checkpoint DIR is required");
  o.mesh.checkpoint = checkpoint;
  o.mesh.prompts = prompts;
  o.mesh.output = output;
  check_mesh_options(o.mesh);
  check_chat_options(o.chat);
  check(!prompts.empty(), "no input: give --prompts FILE");
  return o;
}

std::optional<VerifyOptions> parse_verify_options(std::span<const std::string> args, bool speak) {
  VerifyOptions o;
  std::string checkpoint, prompts, output, chat_template;
  std::int64_t seed = 0;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  add_attention_option(options, o.mesh);
  add_weight_options(options, o.mesh);
  options.add_options()  //
      ("batch-size", value(o.mesh.batch_size, "B"), "rows in flight on the whole mesh")                     //
      ("output", value(output, "FILE"), "a complete output of generate")                                    //
      ("fraction", value(o.fraction, "F"), "of its rows that are computed again, chosen by --seed")         //
      ("seed", value(seed, "S"), "0 to 4294967295; another seed chooses other rows")                        //
      ("chat-template", value(chat_template, "FILE"), "where the chat template is now, if it was one of its own")  //
      ("prompts", value(prompts, "FILE"), "where the prompts are now; like --checkpoint, --device and --dtype as in generate unless given");
  if (!parse_options(args, options, "kvmesh verify --output FILE [--fraction F]", speak)) return std::nullopt;
  check(!output.empty(), "--output FILE is required");
  check(o.fraction > 0 && o.fraction <= 1, "--fraction {}: must be above 0 and at most 1", o.fraction);
  check(seed >= 0 && seed < std::int64_t{1} << 32, "--seed {}: must be 0 to 4294967295", seed);
  o.mesh.checkpoint = checkpoint;
  o.mesh.prompts = prompts;
  o.chat_template = chat_template;
  o.mesh.output = output;
  o.seed = static_cast<std::uint32_t>(seed);
  check_mesh_options(o.mesh);
  return o;
}

}  // namespace kvmesh
