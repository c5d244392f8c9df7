// What fuzz targets share. A target's input may be refused with an Error; anything else that is not success is a finding.
#pragma once

#include "runtime/check.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace kvmesh::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) { return {reinterpret_cast<const char*>(data), size}; }

/// What a target's comment promises.
inline void require(bool ok) {
  if (!ok) std::abort();
}

/// Whether f() ran through; false if it threw an Error, which must say something. Other exceptions go on.
template <typename F>
bool accepted(F&& f) {
  try {
    f();
    return true;
  } catch (const Error& e) {
    const std::string_view message = e.what();
    require(!message.empty());
    return false;
  }
}

}  // namespace kvmesh::fuzz
