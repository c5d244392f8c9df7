// What each option is called, means and may be.
#include "launch/options.h"

#include "model/utf8.h"

#include <algorithm>
#include <charconv>
#include <boost/program_options.hpp>
#include <fmt/ranges.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <limits>
#include <sstream>

namespace kvmesh {
namespace {

namespace po = boost::program_options;

// Fills `values` from the command line, then from --config FILE. False after --help.
bool parse(std::span<const std::string> args, const po::options_description& options, const std::string& usage, bool speak,
           const po::positional_options_description& positional = {}) {
  po::variables_map values;
  try {
    using namespace po::command_line_style;
    po::store(po::command_line_parser(std::vector<std::string>(args.begin(), args.end())).options(options).positional(positional).style(unix_style & ~allow_guessing).run(),
              values);  // no guessing: a script's abbreviation would break when an option is added
    if (values.count("help")) {
      if (speak) std::cout << "Usage: " << usage << "\n\n" << options;
      return false;
    }
    if (values.count("config") && !values["config"].as<std::string>().empty()) {
      const auto file = values["config"].as<std::string>();
      std::ifstream in(file);
      check(in.good() && !std::filesystem::is_directory(file), "--config {}: cannot be read", file);
      try {
        po::parsed_options file_options = po::parse_config_file(in, options);
        const auto given = [&](const char* name) { return values.count(name) > 0 && !values[name].defaulted(); };
        std::erase_if(file_options.options, [&](const po::option& o) {  // --prompt and --prompts stand for the same input
          return (o.string_key == "prompts" && given("prompt")) || (o.string_key == "prompt" && given("prompts"));
        });
        po::store(file_options, values);
      } catch (const po::error& e) {
        fail(Fault::usage, "{}: {}", file, e.what());
      }
    }
    po::notify(values);
  } catch (const po::error& e) {
    fail(Fault::usage, "{} (kvmesh COMMAND --help lists the options)", e.what());
  }
  return true;
}

template <typename T>
po::typed_value<T>* value(T& target, const char* name) {
  return po::value<T>(&target)->default_value(target)->value_name(name);
}

template <typename T>
T choose(const std::string& option, const std::string& word, std::initializer_list<std::pair<const char*, T>> choices) {
  std::string all;
  for (const auto& [name, result] : choices) {
    if (word == name) return result;
    all += (all.empty() ? "" : ", ") + std::string(name);
  }
  fail(Fault::usage, "--{} {}: not one of {}", option, word, all);
}

void add_mesh_options(po::options_description& options, MeshOptions& mesh, std::string& checkpoint) {
  options.add_options()("help,h", "this text")                                                                     //
      ("config", po::value<std::string>()->value_name("FILE"), "INI file with the same names; the command line wins")  //
      ("checkpoint", value(checkpoint, "DIR"), "folder with config.json, model.safetensors, a tokenizer")  //
      ("device", value(mesh.device, "KIND"), "cpu, cuda, or auto: cuda where a GPU answers, else cpu")             //
      ("dtype", value(mesh.dtype, "TYPE"), "float32, bfloat16, or auto: config.json's")                            //
      ("mesh", value(mesh.mesh, "x=N"), "the mesh's axes; their product is the number of ranks")                   //
      ("threads", value(mesh.threads, "N"), "CPU threads a rank; 0: the cores it may use, shared with the host's other ranks")  //
      ("share-gpus", po::bool_switch(&mesh.share_gpus), "ranks may share a GPU where they outnumber a host's: slow, for trying")  //
      ("comm-timeout", value(mesh.comm_timeout, "SECONDS"), "no rank waits longer for another");
}

void add_attention_option(po::options_description& options, MeshOptions& mesh) {
  options.add_options()("attention", value(mesh.attention, "WHOSE"), "native: kvmesh's own, the same bits whatever a row's company; cudnn: cuDNN's, on GPUs in bfloat16; auto: native");
}

void add_context_option(po::options_description& options, MeshOptions& mesh) {
  options.add_options()("context", value(mesh.context, "N"), "tokens that a row may have, and the cache holds of it; 0: all that the model can");
}

/// How weights are kept.
void add_weight_options(po::options_description& options, MeshOptions& mesh) {
  options.add_options()  //
      ("quantize", value(mesh.quantize, "KIND"), "int8: the matrices of products as integers with a scale a column; none: as --dtype")  //
      ("load", value(mesh.load, "HOW"), "read: every host reads the checkpoint's weights; broadcast: rank 0's host does, and sends them to the others")  //
      ("pack-cache", value(mesh.pack_cache, "DIR"), "keep the packed weights in this folder for the next start; beside: in .kvmesh in the checkpoint's folder");
}

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

void check_mesh_options(const MeshOptions& mesh, const char* batch_option = "batch-size") {
  check(mesh.batch_size >= 1 && mesh.batch_size <= 1 << 20, "--{} {}: must be 1 to {}", batch_option, mesh.batch_size, 1 << 20);
  check(mesh.context == 0 || mesh.context >= 2, "--context {}: must be 2 or more, or 0 for all that the model can", mesh.context);
  check(mesh.comm_timeout > 0, "--comm-timeout {}: must be positive", mesh.comm_timeout);
  check(mesh.threads >= 0 && mesh.threads <= 1024, "--threads {}: must be 0 to 1024", mesh.threads);
  choose<int>("device", mesh.device, {{"cpu", 0}, {"cuda", 0}, {"auto", 0}});
  choose<int>("attention", mesh.attention, {{"auto", 0}, {"cudnn", 0}, {"native", 0}});
  choose<int>("dtype", mesh.dtype, {{"float32", 0}, {"bfloat16", 0}, {"auto", 0}});
  choose<int>("quantize", mesh.quantize, {{"none", 0}, {"int8", 0}});
  choose<int>("load", mesh.load, {{"read", 0}, {"broadcast", 0}});
  check(mesh.load == "read" || mesh.pack_cache.empty(), "--pack-cache: not with --load broadcast, where one host packs for all");
}

/// A number of rows, or auto.
std::int64_t parse_batch_size(const std::string& text) {
  if (text == "auto") return auto_batch;
  std::int64_t rows = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rows);
  check(error == std::errc() && end == text.data() + text.size() && rows >= 1 && rows <= 1 << 20, "--batch-size {}: must be 1 to {}, or auto", text, 1 << 20);
  return rows;
}

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
      ("no-run-ahead", po::bool_switch(&no_run_ahead), "a GPU waits until the host has each step's tokens; changes no result")  //
      ("sentinel", value(o.generate.sentinel, "STEPS"), "every so many steps a 256th of the weights in memory is compared with the other ranks'; 0: never")  //
      ("metrics", value(metrics, "FILE"), "where the time goes, a JSON line every --metrics-interval; appended")  //
      ("prometheus", value(prometheus, "FILE"), "the same as Prometheus' text, replaced every --metrics-interval")  //
      ("trace", value(trace, "FILE"), "every stretch of each rank's time in Chrome's trace format, one file a rank: its number goes before FILE's extension")  //
      ("metrics-interval", value(o.metrics.interval, "SECONDS"), "between two of them")  //
      ("fresh", po::bool_switch(&o.fresh), "start over instead of going on with what --output FILE already has");
  if (!parse(args, options, fmt::format("kvmesh {} --checkpoint DIR (--prompts FILE | --prompt TEXT …) [--output FILE | -]", command), speak)) return std::nullopt;
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
  if (!parse(args, options, "kvmesh score --checkpoint DIR --prompts FILE [--output FILE | -]", speak)) return std::nullopt;
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
  if (!parse(args, options, "kvmesh verify --output FILE [--fraction F]", speak)) return std::nullopt;
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

std::optional<BenchOptions> parse_bench_options(std::span<const std::string> args, bool speak) {
  BenchOptions o;
  o.mesh.batch_size = 1;
  std::string checkpoint, shape, json, parts;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  add_attention_option(options, o.mesh);
  add_context_option(options, o.mesh);
  add_weight_options(options, o.mesh);
  options.add_options()  //
      ("batch", value(o.mesh.batch_size, "B"), "rows in flight on the whole mesh")  //
      ("shape", value(shape, "D,layers,q_heads,kv_heads,vocab,seqlen"), "random weights of this shape instead of a checkpoint")  //
      ("prompt-len", value(o.prompt_len, "P"), "tokens of each prompt")                                                 //
      ("new-tokens", value(o.new_tokens, "N"), "new tokens of each row")                                                //
      ("repeat", value(o.repeat, "R"), "how often; medians are reported")                                               //
      ("parts", value(parts, "PART,…"), "what to measure besides prefill and decode: ops, sampler, load, collectives, or all")  //
      ("json", value(json, "FILE"), "where the figures are written");
  if (!parse(args, options, "kvmesh bench (--checkpoint DIR | --shape …) [--json FILE]", speak)) return std::nullopt;
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
  if (!parse(args, options, "kvmesh scale (--checkpoint DIR | --shape …) --report DIR", speak)) return std::nullopt;
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

std::optional<TokenizeOptions> parse_tokenize_options(std::span<const std::string> args) {
  TokenizeOptions o;
  std::string tokenizer;
  po::options_description options("Options");
  options.add_options()("help,h", "this text")                                             //
      ("tokenizer", value(tokenizer, "FILE"), "tokenizer.json, or token ranks in tiktoken's format")  //
      ("decode", po::bool_switch(&o.decode), "the reverse: JSON lists of ids in, text out")                            //
      ("shards", value(o.shards, "PREFIX"), "write training data instead: each line is a document, in PREFIX-000000.bin and so on")  //
      ("shard-tokens", value(o.shard_tokens, "N"), "tokens a shard holds at most; a document is never split");
  if (!parse(args, options, "kvmesh tokenize --tokenizer FILE [--decode | --shards PREFIX]   (standard input to standard output, line by line)", true)) return std::nullopt;
  check(!tokenizer.empty(), "--tokenizer FILE is required");
  check(!o.decode || o.shards.empty(), "--decode and --shards exclude each other");
  check(o.shard_tokens >= 1 && o.shard_tokens <= std::numeric_limits<std::int32_t>::max(), "--shard-tokens {}: must be 1 to {}", o.shard_tokens,
        std::numeric_limits<std::int32_t>::max());
  o.tokenizer = tokenizer;
  return o;
}

std::optional<ProgressOptions> parse_progress_options(std::span<const std::string> args) {
  ProgressOptions o;
  std::string file;
  po::options_description options("Options");
  options.add_options()("help,h", "this text")                                         //
      ("file", po::value(&file)->value_name("FILE"), "generate's --output (the option's name may be left out)")  //
      ("rows", po::bool_switch(&o.rows), "print what is finished, as it finished, instead of counting only");
  if (!parse(args, options, "kvmesh progress FILE [--rows]", true, po::positional_options_description().add("file", 1))) return std::nullopt;
  check(!file.empty(), "no file: kvmesh progress FILE");
  o.file = file;
  return o;
}

std::optional<TrainCommandOptions> parse_train_options(std::span<const std::string> args, bool speak) {
  TrainCommandOptions o;
  OptimizerOptions& opt = o.optimizer;
  std::string checkpoint, output, metrics, optimizer = "muon", rows = "filled", documents = "joined", rule = "cautious", schedule = "blocks", reduce = "tree";
  double lr = 0, floor = -1;
  std::int64_t seed = 0;
  opt.steps = 0;
  opt.warmup = -1;
  po::options_description options("Options");
  add_mesh_options(options, o.mesh, checkpoint);
  options.add_options()  //
      ("output", value(output, "DIR"), "what is saved: a folder a step, each a checkpoint; links last and best")  //
      ("data", value(o.data, "FILES"), "shards to train on: a folder of .bin files, or a pattern")  //
      ("validation", value(o.validation, "FILES"), "shards to validate on")  //
      ("init", value(o.init, "HOW"), "weights: --checkpoint's; original, copying: as docs/training.md says, and --checkpoint needs only config.json")  //
      ("seed", value(seed, "S"), "of --init, --shuffle and drawn samples: 0 to 4294967295")  //
      ("end-of-text", value(o.end_of_text, "ID"), "the token that begins a document; -1: the tokenizer's <|endoftext|>")  //
      ("rows", value(rows, "HOW"), "filled: a row is seqlen tokens from a document's start on, the last one cut; whole: whole documents only")  //
      ("documents", value(documents, "HOW"), "joined: a token sees all of its row before it; apart: of its document, and positions restart with each")  //
      ("shuffle", po::bool_switch(&o.rows.shuffle), "shards, and rows in them, in another order each epoch")  //
      ("steps", value(opt.steps, "N"), "to train")  //
      ("batch-rows", value(o.batch_rows, "G"), "rows a step, of all ranks together")  //
      ("micro-rows", value(o.micro_rows, "M"), "rows that go through the model at once; divides --batch-rows. Results depend on it, not on the ranks")  //
      ("optimizer", value(optimizer, "NAME"), "of the blocks' matrices: muon or adamw")  //
      ("lr", value(lr, "RATE"), "the blocks' peak learning rate; 0: 0.02 for muon, 0.0006 for adamw")  //
      ("lr-floor", value(floor, "RATE"), "where the warm-up begins and the cosine ends; below 0: a hundredth of the peak")  //
      ("warmup", value(opt.warmup, "STEPS"), "of linear warm-up, and of the lowest rate at the end; below 0: a hundredth of --steps, at most 300")  //
      ("schedule", value(schedule, "WHAT"), "blocks: embedding and head have constant rates; all: they follow the blocks'")  //
      ("embed-lr", value(opt.embed_lr, "RATE"), "of the embedding, at a width of 768; else times (d_emb / 768)^-0.5")  //
      ("head-lr", value(opt.head_lr, "RATE"), "of the head, likewise")  //
      ("beta1", value(opt.beta1, "B"), "AdamW's first")  //
      ("beta2", value(opt.beta2, "B"), "AdamW's second")  //
      ("eps", value(opt.eps, "E"), "AdamW's")  //
      ("momentum", value(opt.momentum, "B"), "Muon's")  //
      ("newton-schulz", value(opt.newton_schulz_steps, "N"), "Muon's iterations")  //
      ("weight-decay", value(opt.weight_decay, "W"), "of the blocks' matrices, times the learning rate")  //
      ("decay-rule", value(rule, "RULE"), "cautious: where the step shrinks a weight; original: where it does not; plain: everywhere")  //
      ("clip", value(opt.clip, "NORM"), "the gradient's norm, at most; 0: no limit")  //
      ("reduce", value(reduce, "HOW"), "tree: gradients are summed to the same bits on any number of ranks; library: by MPI's all-reduce")  //
      ("recompute", po::bool_switch(&o.recompute), "keep only what enters each block and compute the rest again: less memory, a third more work")  //
      ("save-every", value(o.save_every, "STEPS"), "between saves; 0: at the end, or when stopped")  //
      ("keep", value(o.keep, "N"), "saved steps that stay, besides the best")  //
      ("validate-every", value(o.validate_every, "STEPS"), "between validations; 0: at the end")  //
      ("patience", value(o.patience, "STEPS"), "stop when the training loss has not been lower for so long; 0: never")  //
      ("sample", po::value(&o.samples)->value_name("TEXT"), "shows how the model goes on with this text; repeatable")  //
      ("sample-every", value(o.sample_every, "STEPS"), "between samples; 0: at the end")  //
      ("sample-tokens", value(o.sample_tokens, "N"), "of a sample, at most")  //
      ("sample-temperature", value(o.sample_temperature, "T"), "0 or less: the most probable token; else drawn with --seed, the same draws each time")  //
      ("metrics", value(metrics, "FILE"), "a JSON line a step; appended")  //
      ("no-peak", po::bool_switch(&o.no_peak), "do not measure at the start, for a second, what the device can do at most")  //
      ("fresh", po::bool_switch(&o.fresh), "begin anew where OUTPUT has saved steps");
  if (!parse(args, options, "kvmesh train --checkpoint DIR --data FILES --output DIR --steps N [options]", speak)) return std::nullopt;
  check(!checkpoint.empty(), "--checkpoint DIR is required");
  check(!o.data.empty(), "--data FILES is required");
  check(!output.empty(), "--output DIR is required");
  o.mesh.checkpoint = checkpoint;
  o.mesh.output = output;
  o.metrics = metrics;
  check_mesh_options(o.mesh);
  check(seed >= 0 && seed <= 0xffffffff, "--seed {}: must be 0 to 4294967295", seed);
  o.rows.seed = static_cast<std::uint32_t>(seed);
  choose<int>("init", o.init, {{"weights", 0}, {"original", 0}, {"copying", 0}});
  o.rows.rows = choose<RowKind>("rows", rows, {{"filled", RowKind::filled}, {"whole", RowKind::whole}});
  o.rows.documents_apart = choose<bool>("documents", documents, {{"joined", false}, {"apart", true}});
  opt.muon = choose<bool>("optimizer", optimizer, {{"muon", true}, {"adamw", false}});
  opt.rule = choose<DecayRule>("decay-rule", rule, {{"cautious", DecayRule::cautious}, {"original", DecayRule::original}, {"plain", DecayRule::plain}});
  o.library_sum = choose<bool>("reduce", reduce, {{"tree", false}, {"library", true}});
  opt.schedule_all = choose<bool>("schedule", schedule, {{"blocks", false}, {"all", true}});
  check(opt.steps >= 1, "--steps {}: must be at least 1", opt.steps);
  check(o.batch_rows >= 1 && o.micro_rows >= 1 && o.batch_rows % o.micro_rows == 0, "--batch-rows {} is not a multiple of --micro-rows {}", o.batch_rows, o.micro_rows);
  const auto at_least = [](const char* name, double x, double least) { check(x >= least, "--{} {}: must be at least {}", name, x, least); };
  for (const auto& [name, x] : {std::pair{"lr", lr}, {"embed-lr", opt.embed_lr}, {"head-lr", opt.head_lr}, {"eps", opt.eps}, {"weight-decay", opt.weight_decay}, {"clip", opt.clip},
                                {"save-every", static_cast<double>(o.save_every)}, {"validate-every", static_cast<double>(o.validate_every)}, {"sample-every", static_cast<double>(o.sample_every)},
                                {"patience", static_cast<double>(o.patience)}}) {
    at_least(name, x, 0);
  }
  at_least("keep", static_cast<double>(o.keep), 1);
  at_least("sample-tokens", static_cast<double>(o.sample_tokens), 1);
  check(std::isfinite(o.sample_temperature), "--sample-temperature {}: must be finite", o.sample_temperature);
  at_least("newton-schulz", opt.newton_schulz_steps, 1);
  for (const auto& [name, x] : {std::pair{"beta1", opt.beta1}, {"beta2", opt.beta2}, {"momentum", opt.momentum}}) {
    check(x >= 0 && x < 1, "--{} {}: must be 0 or more, and less than 1", name, x);
  }
  opt.lr = lr > 0 ? lr : opt.muon ? 0.02 : 0.0006;
  opt.floor = floor >= 0 ? floor : opt.lr / 100;
  if (opt.warmup < 0) opt.warmup = std::min<std::int64_t>(300, opt.steps / 100);
  check(opt.warmup == 0 || 2 * opt.warmup < opt.steps, "--warmup {}: must be less than half of the {} --steps", opt.warmup, opt.steps);
  return o;
}

std::optional<MeshOptions> parse_inspect_options(std::span<const std::string> args, bool speak) {
  MeshOptions o;
  std::string checkpoint, prompts;
  std::vector<std::string> quantize;
  po::options_description options("Options");
  options.add_options()("help,h", "this text")("checkpoint", value(checkpoint, "DIR"), "the checkpoint folder")  //
      ("batch-size", value(o.batch_size, "B"), "rows in flight, for the memory that they need")                    //
      ("dtype", value(o.dtype, "TYPE"), "float32, bfloat16, or auto: config.json's")                               //
      ("quantize", po::value(&quantize)->multitoken()->zero_tokens()->value_name("[int8]"),
       "how far log-probabilities drift when the matrices of products are integers of 8 bits with a scale a column")  //
      ("prompts", value(prompts, "FILE"), "for the drift: one JSON object a line; without it random tokens, which are like no text")  //
      ("device", value(o.device, "KIND"), "for the drift: cpu, cuda, or auto")                                        //
      ("threads", value(o.threads, "N"), "for the drift: CPU threads; 0: the cores that it may use");
  add_context_option(options, o);
  if (!parse(args, options, "kvmesh inspect --checkpoint DIR [options]", speak)) return std::nullopt;
  check(!checkpoint.empty(), "--checkpoint DIR is required");
  check(quantize.size() <= 1 && (quantize.empty() || quantize[0] == "int8"), "--quantize {}: not int8", fmt::join(quantize, " "));
  o.checkpoint = checkpoint;
  o.prompts = prompts;
  if (inspect_quantizes(args)) o.quantize = "int8";
  check_mesh_options(o);
  return o;
}

bool inspect_quantizes(std::span<const std::string> args) {
  return std::any_of(args.begin(), args.end(), [](const std::string& word) { return word == "--quantize" || word.starts_with("--quantize="); });
}

}  // namespace kvmesh
