// config.json, the contract's and transformers': what is read is within its bounds, and writing and reading the contract's again gives the same.
#include "model/json_file.h"
#include "model/param_spec.h"
#include "model/transformers_config.h"

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  fuzz::accepted([&] {
    const std::string text(fuzz::text_of(data, size));
    nlohmann::json object = parse_json_object(text, "input");
    const bool native = !object.contains("model_type");
    const ModelConfig config = native ? parse_config(text, "input") : transformers_config(std::move(object), "no folder/config.json");
    fuzz::require(config.q_heads > 0 && config.kv_heads > 0 && config.q_heads % config.kv_heads == 0 && config.head_dim() % 2 == 0);
    fuzz::require(config.seqlen > 1 && config.vocab_size > 0 && config.num_layers > 0 && !config.window_pattern.empty());
    if (config.num_layers < 10'000) fuzz::require(std::ssize(config.layers()) == config.num_layers);
    if (config.num_layers < 100) fuzz::require(!param_specs(config).empty());
    const std::string written = to_json(config);
    if (native) fuzz::require(to_json(parse_config(written, "output")) == written);
  });
  return 0;
}
