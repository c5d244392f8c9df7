// The options of train.
#include "launch/options/common.h"

#include <algorithm>
#include <cmath>

namespace kvmesh {

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
  add_attention_option(options, o.mesh);
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
  if (!parse_options(args, options, "kvmesh train --checkpoint DIR --data FILES --output DIR --steps N [options]", speak)) return std::nullopt;
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
  const auto at_least = [](const char* name, double x, double least) {
    check(x >= least, "--{} {}: must be at least {}", name, x, least);
    check(std::isfinite(x), "--{} {}: must be finite", name, x);
  };
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
  check(std::isfinite(floor), "--lr-floor {}: must be finite", floor);
  opt.floor = floor >= 0 ? floor : opt.lr / 100;
  if (opt.warmup < 0) opt.warmup = std::min<std::int64_t>(300, opt.steps / 100);
  check(opt.warmup == 0 || 2 * opt.warmup < opt.steps, "--warmup {}: must be less than half of the {} --steps", opt.warmup, opt.steps);
  return o;
}

}  // namespace kvmesh
