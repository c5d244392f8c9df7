// XXH3 as its library has it.
#include "model/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvmesh {

std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t before) { return XXH3_64bits_withSeed(bytes.data(), bytes.size(), before); }

}  // namespace kvmesh
