// How the command line and INI files are read, and the options that several commands have.
#include "launch/options/common.h"

#include <fstream>
#include <iostream>

namespace kvmesh {

bool parse_options(std::span<const std::string> args, const po::options_description& options, const std::string& usage, bool speak,
                   const po::positional_options_description& positional) {
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

void add_weight_options(po::options_description& options, MeshOptions& mesh) {
  options.add_options()  //
      ("quantize", value(mesh.quantize, "KIND"), "int8: the matrices of products as integers with a scale a column; none: as --dtype")  //
      ("load", value(mesh.load, "HOW"), "read: every host reads the checkpoint's weights; broadcast: rank 0's host does, and sends them to the others")  //
      ("pack-cache", value(mesh.pack_cache, "DIR"), "keep the packed weights in this folder for the next start; beside: in .kvmesh in the checkpoint's folder");
}

void add_run_ahead_option(po::options_description& options, bool& no_run_ahead) {
  options.add_options()("no-run-ahead", po::bool_switch(&no_run_ahead), "a GPU waits until the host has each step's tokens; changes no result");
}

void check_mesh_options(const MeshOptions& mesh, const char* batch_option) {
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

}  // namespace kvmesh
