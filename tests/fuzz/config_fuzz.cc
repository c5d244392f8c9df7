// config.json: what is read is within its bounds, and writing and reading it again gives the same.
#include "model/config.h"

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  fuzz::accepted([&] {
    const ModelConfig config = parse_config(fuzz::text_of(data, size), "input");
    fuzz::require(config.q_heads > 0 && config.kv_heads > 0 && config.q_heads % config.kv_heads == 0 && config.head_dim() % 2 == 0);
    fuzz::require(config.seqlen > 1 && config.vocab_size > 0 && config.num_layers > 0 && !config.window_pattern.empty());
    if (config.num_layers < 10'000) fuzz::require(std::ssize(config.layers()) == config.num_layers);
    const std::string text = to_json(config);
    fuzz::require(to_json(parse_config(text, "output")) == text);
  });
  return 0;
}
