// What a tokenizer is made of, whichever file it was read from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/token_decoder.h"

namespace kvmesh {

struct TokenizerParts {
  // Encoding: added tokens are cut out, the rest is normalized, cut into pieces, and each piece encoded.
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::vector<std::string> vocabulary;         ///< [id], a token as pieces have it: bytes, or characters; empty where there is none
  std::optional<std::vector<Merge>> merges;    ///< none: tiktoken's rules, by the ids of `vocabulary`
  BytePairEncoder::Rules rules;
  std::vector<std::int32_t> before, behind;    ///< the ids that stand around an encoded text

  // Decoding.
  std::vector<std::string> texts;              ///< [id], with the added tokens'; empty where there is none
  std::optional<TokenDecoder> decoder;         ///< what makes a text of `texts`; none: they are bytes
};

}  // namespace kvmesh
