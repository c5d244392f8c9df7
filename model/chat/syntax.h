// A parsed template: statements and expressions as one kind of node.
#pragma once

#include "model/chat/value.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh::jinja {

enum class Op : std::uint8_t {
  // expressions; parts in brackets, ? may be null
  constant, name, list, tuple, dict,   // dict: [key, value, …]
  attribute, item, slice,              // [object], [object, key], [object, start?, stop?, step?]
  call, filter, test,                  // [function or subject, argument, …]; a filter's subject is null in a block: what the block made
  negative, positive, invert, both, either, condition,  // condition: [test, then, else?]
  compare, concat, arithmetic,         // compare: `names` are the operators between the parts
  // statements
  body, data, print,
  loop,       // [target, elements, condition?, body, else?]
  branch,     // [test, body, …, else?]
  set,        // [target, value]
  set_block,  // [target, body, filter?]
  macro,      // [body, default, …] of the last of `names`
  call_block, // [call, macro]
  filter_block,  // [filter, body]
  with,          // [target, value, …, body]
  generation,    // [body]
  stop, next,    // break and continue
};

struct Node {
  Op op;
  int line;
  std::string text;                          ///< a name, an operator, data
  std::vector<std::unique_ptr<Node>> parts;
  std::vector<std::string> names;            ///< a macro's parameters; of the last arguments of a call; the attribute of a target NAME.ATTRIBUTE; what a body hides
  int depth = 1;
  Text literal{};                            ///< what `constant` points to if it is text
  Value constant{};
  bool takes_caller = false, takes_values = false, takes_named = false;  ///< a macro's body says caller, varargs, kwargs
};
using NodePtr = std::unique_ptr<Node>;

constexpr std::size_t most_template_bytes = std::size_t{1} << 20;

/// Tells each body which names are undefined in it until they are set, whatever they are outside.
void hide_early_names(Node& root);

/// `source` is well-formed UTF-8. Rejects what Jinja rejects and what is not supported; `line` then says where.
NodePtr parse(std::string_view source, int& line);

}  // namespace kvmesh::jinja
