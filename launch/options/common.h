// What the commands' options share: how they are read, and those that several commands have.
#pragma once

#include "launch/options.h"
#include "runtime/check.h"

#include <boost/program_options.hpp>

#include <initializer_list>
#include <span>
#include <string>
#include <utility>

namespace kvmesh {

namespace po = boost::program_options;

/// Fills the options' values from the command line, then from --config FILE. False after --help.
bool parse_options(std::span<const std::string> args, const po::options_description& options, const std::string& usage, bool speak,
                   const po::positional_options_description& positional = {});

/// An option's value, whose default is what `target` holds.
template <typename T>
po::typed_value<T>* value(T& target, const char* name) {
  return po::value<T>(&target)->default_value(target)->value_name(name);
}

/// What stands beside `word`; an Error names the option and all words that it may be.
template <typename T>
T choose(const std::string& option, const std::string& word, std::initializer_list<std::pair<const char*, T>> choices) {
  std::string all;
  for (const auto& [name, result] : choices) {
    if (word == name) return result;
    all += (all.empty() ? "" : ", ") + std::string(name);
  }
  fail(Fault::usage, "--{} {}: not one of {}", option, word, all);
}

void add_mesh_options(po::options_description& options, MeshOptions& mesh, std::string& checkpoint);
void add_attention_option(po::options_description& options, MeshOptions& mesh);
void add_context_option(po::options_description& options, MeshOptions& mesh);
/// How weights are kept.
void add_weight_options(po::options_description& options, MeshOptions& mesh);
void add_run_ahead_option(po::options_description& options, bool& no_run_ahead);

void check_mesh_options(const MeshOptions& mesh, const char* batch_option = "batch-size");

}  // namespace kvmesh
