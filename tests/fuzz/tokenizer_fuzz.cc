// Any bytes as text: encoding and decoding gives the text with what is no UTF-8 replaced. The same bytes as ids: decoding gives UTF-8.
#include "model/tokenizer/tokenizer.h"

#include "model/utf8.h"
#include "tests/fuzz/fuzz.h"

#include <cstring>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  static const Tokenizer tokenizer(KVMESH_SOURCE_DIR "/tests/fixtures/small.tiktoken");
  const std::string_view text = fuzz::text_of(data, size);
  const std::string valid = to_valid_utf8(text);
  fuzz::require(valid_utf8_prefix(valid) == valid.size() && to_valid_utf8(valid) == valid);
  fuzz::require((valid_utf8_prefix(text) == text.size()) == (valid == text));
  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  for (const std::int32_t id : ids) fuzz::require(id >= 0 && id < tokenizer.vocab_size());
  fuzz::require(tokenizer.decode(ids) == valid);

  std::vector<std::int32_t> any(size / 2);
  for (std::size_t i = 0; i < any.size(); ++i) {
    std::int16_t id;  // some below 0, most too large
    std::memcpy(&id, data + 2 * i, sizeof(id));
    any[i] = i % 2 == 0 ? id : id & 1023;
  }
  const std::string decoded = tokenizer.decode(any);
  fuzz::require(valid_utf8_prefix(decoded) == decoded.size());
  return 0;
}
