// The options of the commands that look at files: tokenize, progress and inspect.
#include "launch/options/common.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

namespace kvmesh {

std::optional<TokenizeOptions> parse_tokenize_options(std::span<const std::string> args) {
  TokenizeOptions o;
  std::string tokenizer;
  po::options_description options("Options");
  options.add_options()("help,h", "this text")                                             //
      ("tokenizer", value(tokenizer, "FILE"), "tokenizer.json, or token ranks in tiktoken's format")  //
      ("decode", po::bool_switch(&o.decode), "the reverse: JSON lists of ids in, text out")                            //
      ("shards", value(o.shards, "PREFIX"), "write training data instead: each line is a document, in PREFIX-000000.bin and so on")  //
      ("shard-tokens", value(o.shard_tokens, "N"), "tokens a shard holds at most; a document is never split");
  if (!parse_options(args, options, "kvmesh tokenize --tokenizer FILE [--decode | --shards PREFIX]   (standard input to standard output, line by line)", true)) return std::nullopt;
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
  if (!parse_options(args, options, "kvmesh progress FILE [--rows]", true, po::positional_options_description().add("file", 1))) return std::nullopt;
  check(!file.empty(), "no file: kvmesh progress FILE");
  o.file = file;
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
  if (!parse_options(args, options, "kvmesh inspect --checkpoint DIR [options]", speak)) return std::nullopt;
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
