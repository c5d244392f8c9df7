// Renders a parsed template: runs its statements with the given variables, within bounds of work and memory.
#pragma once

#include "model/chat/builtins.h"
#include "model/chat/syntax.h"

#include <ctime>

namespace kvmesh::jinja {

class Machine {
 public:
  /// `now` is what strftime_now tells.
  explicit Machine(const std::tm& now) : now_(now) {}

  /// What the template prints. Rejects what Jinja would raise and what is not supported; line() then says where.
  std::string render(const Node& root, const Json& variables);
  int line() const { return line_; }

 private:
  enum class Flow { on, stop, next };  ///< stop, next: a break or continue is on its way to its loop
  struct Deeper {  // how deep run and evaluate may call each other
    Deeper(Machine& machine, const Node& node) : depth(machine.depth_) {
      machine.line_ = node.line;
      machine.heap_.spend(1);
      if (++depth > 600) reject("blocks and macros are nested too deeply");
    }
    ~Deeper() { --depth; }
    int& depth;
  };

  Flow run(const Node& node, Scope& scope, std::string& out);
  Flow run_loop(const Node& node, Scope& scope, std::string& out);
  Flow run_branch(const Node& node, Scope& scope, std::string& out);
  Next elements_of(const Node& node, Scope& scope, const Value& source);
  void assign(const Node& target, Scope& scope, const Value& value);
  void print(std::string& out, std::string_view text);

  Value evaluate(const Node& node, Scope& scope);
  Value evaluate_operator(const Node& node, Scope& scope);
  bool holds(const Node& node, Scope& scope) { return heap_.truth(evaluate(node, scope)); }
  Arguments arguments(const Node& node, Scope& scope);
  Value look_up(const Scope& scope, std::string_view name);
  Value call(const Value& function, Arguments arguments);
  Value call_macro(const Macro& macro, Arguments arguments);
  Value date(Arguments arguments);

  std::tm now_;
  Heap heap_;
  Value piped_;  // what a block has made, for the filter at its head
  int line_ = 1, depth_ = 0;
};

}  // namespace kvmesh::jinja
