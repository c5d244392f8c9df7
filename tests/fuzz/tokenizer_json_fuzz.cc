// A tokenizer.json of any bytes: it is refused with an Error, or encodes and decodes texts to ids that it has.
#include "model/tokenizer/tokenizer.h"
#include "model/utf8.h"
#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  static const test::Scratch scratch;
  const std::string_view input = fuzz::text_of(data, size);
  const auto file = scratch.write("tokenizer.json", input);
  fuzz::accepted([&] {
    const Tokenizer tokenizer(file);
    for (const std::string_view text : {input.substr(0, 500), std::string_view("  the fox's 12\n\n<s>left a\u0301\u0327▁漢 \xff")}) {
      const std::vector<std::int32_t> ids = tokenizer.encode(text);
      std::string bytes;
      for (const std::int32_t id : ids) {
        fuzz::require(id >= 0 && id < tokenizer.vocab_size());
        bytes += tokenizer.bytes(id);
      }
      const std::string decoded = tokenizer.decode(ids);
      fuzz::require(valid_utf8_prefix(decoded) == decoded.size() && decoded.size() <= 64 * 4 * (bytes.size() + input.size() * ids.size()));
    }
    fuzz::require(tokenizer.bytes(tokenizer.vocab_size()) == replacement_character);
  });
  return 0;
}
