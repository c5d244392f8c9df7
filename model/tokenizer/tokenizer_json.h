// Hugging Face's tokenizer.json, as far as its parts are those of byte-pair encoding for language models.
#pragma once

#include <filesystem>

#include "model/tokenizer/tokenizer_parts.h"

namespace kvmesh {

/// Reads the file strictly: what is not understood, contradicts itself or goes beyond the limits (64 MiB, ids below rank_limit) is
/// an Error that names the file and the field. `truncation` and `padding` are not applied. docs/tokenizers.md says what is known.
TokenizerParts read_tokenizer_json(const std::filesystem::path& file);

}  // namespace kvmesh
