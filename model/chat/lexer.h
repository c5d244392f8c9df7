// A template's text cut into tokens, as Jinja does with trim_blocks and lstrip_blocks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh::jinja {

enum class TokenKind : std::uint8_t { data, block_begin, block_end, print_begin, print_end, name, text, integer, real, op, end };

struct Token {
  TokenKind kind;
  int line;
  std::string text;  ///< of data, a name, an operator; the value of a literal text
  std::int64_t integer = 0;
  double real = 0;
};

/// `source` is well-formed UTF-8. `line` follows what is read, also when Rejected is thrown.
std::vector<Token> tokens_of(std::string_view source, int& line);

}  // namespace kvmesh::jinja
