// The steps around the vocabulary in a tokenizer.json: normalizer, pre_tokenizer, post_processor, decoder.
#pragma once

#include "model/json_value.h"
#include "model/tokenizer/tokenizer_parts.h"

namespace kvmesh {

/// Each reads the value with its name, null if there is none, into `parts`. An Error names what is not known.
void read_normalizer(const JsonValue& normalizer, TokenizerParts& parts);
/// Also sets parts.rules.characters: pieces are characters unless the last step is ByteLevel.
void read_pre_tokenizer(const JsonValue& pre_tokenizer, TokenizerParts& parts);
/// Needs parts.texts.
void read_post_processor(const JsonValue& post_processor, TokenizerParts& parts);
/// Needs parts.rules.characters.
void read_decoder(const JsonValue& decoder, TokenizerParts& parts);

}  // namespace kvmesh
