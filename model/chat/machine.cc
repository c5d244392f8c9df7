// Statements.
#include "model/chat/machine.h"

namespace kvmesh::jinja {
namespace {

constexpr std::size_t most_output = std::size_t{1} << 25;

void set(Scope& scope, std::string_view name, const Value& value) {
  for (auto& [n, v] : scope.names) {
    if (n == name) {
      v = value;
      return;
    }
  }
  scope.names.emplace_back(name, value);
}

}  // namespace

std::string Machine::render(const Node& root, const Json& variables) {
  Scope& scope = *heap_.make(Scope{nullptr, {}});
  for (const auto& [name, value] : variables.items()) scope.names.emplace_back(name, heap_.from_json(value));
  std::string out;
  run(root, scope, out);
  return out;
}

void Machine::print(std::string& out, std::string_view text) {
  heap_.spend(1 + text.size() / 64);
  if (out.size() + text.size() > most_output) reject("the template makes more than {} bytes", most_output);
  out += text;
}

Machine::Flow Machine::run(const Node& node, Scope& scope, std::string& out) {
  const Deeper deeper(*this, node);
  switch (node.op) {
    case Op::body:
      for (const std::string& name : node.names) set(scope, name, Value());
      heap_.spend(node.names.size() * (1 + scope.names.size() / 16));
      for (const NodePtr& part : node.parts) {
        if (const Flow flow = run(*part, scope, out); flow != Flow::on) return flow;
      }
      return Flow::on;
    case Op::data: print(out, node.text); return Flow::on;
    case Op::print: print(out, heap_.str(evaluate(*node.parts[0], scope))); return Flow::on;
    case Op::loop: return run_loop(node, scope, out);
    case Op::branch: return run_branch(node, scope, out);
    case Op::set: assign(*node.parts[0], scope, evaluate(*node.parts[1], scope)); return Flow::on;
    case Op::set_block: {
      std::string text;
      Scope& inner = *heap_.make(Scope{&scope, {}});
      if (const Flow flow = run(*node.parts[1], inner, text); flow != Flow::on) return flow;
      piped_ = heap_.text(std::move(text));
      assign(*node.parts[0], scope, node.parts[2] ? evaluate(*node.parts[2], inner) : piped_);
      return Flow::on;
    }
    case Op::macro:
      for (Scope* s = &scope; s && !s->kept; s = s->outer) s->kept = true;
      set(scope, node.text, heap_.macro(&node, &scope));
      return Flow::on;
    case Op::call_block: {
      for (Scope* s = &scope; s && !s->kept; s = s->outer) s->kept = true;
      const Node& call_node = *node.parts[0];
      const Value function = evaluate(*call_node.parts[0], scope);
      Arguments given = arguments(call_node, scope);
      given.named.emplace_back("caller", heap_.macro(node.parts[1].get(), &scope));
      print(out, heap_.str(call(function, std::move(given))));
      return Flow::on;
    }
    case Op::filter_block: {
      std::string text;
      Scope& inner = *heap_.make(Scope{&scope, {}});
      if (const Flow flow = run(*node.parts[1], inner, text); flow != Flow::on) return flow;
      piped_ = heap_.text(std::move(text));
      print(out, heap_.str(evaluate(*node.parts[0], inner)));
      return Flow::on;
    }
    case Op::with: {
      Scope& inner = *heap_.make(Scope{&scope, {}});
      for (std::size_t i = 0; i + 1 < node.parts.size(); i += 2) assign(*node.parts[i], inner, evaluate(*node.parts[i + 1], scope));
      return run(*node.parts.back(), inner, out);
    }
    case Op::generation: return run(*node.parts[0], *heap_.make(Scope{&scope, {}}), out);
    case Op::stop: return Flow::stop;
    case Op::next: return Flow::next;
    default: reject("an expression where a statement belongs");
  }
}

Machine::Flow Machine::run_branch(const Node& node, Scope& scope, std::string& out) {
  std::size_t i = 0;
  for (; i + 1 < node.parts.size(); i += 2) {
    if (holds(*node.parts[i], scope)) return run(*node.parts[i + 1], scope, out);
  }
  return i < node.parts.size() ? run(*node.parts[i], scope, out) : Flow::on;
}

// The elements for which the loop's condition holds, which is asked when they are.
Next Machine::elements_of(const Node& node, Scope& scope, const Value& source) {
  if (!node.parts[2]) return heap_.iterate(source);
  Scope* const inner = heap_.make(Scope{&scope, {}});
  return [this, &node, inner, next = heap_.iterate(source)]() -> std::optional<Value> {
    while (std::optional<Value> v = next()) {
      inner->names.clear();
      assign(*node.parts[0], *inner, *v);
      if (holds(*node.parts[2], *inner)) return v;
    }
    return std::nullopt;
  };
}

Machine::Flow Machine::run_loop(const Node& node, Scope& scope, std::string& out) {
  const Value source = evaluate(*node.parts[1], scope);
  const bool sized = !node.parts[2] && !source.is(Kind::iterator);
  Next next = elements_of(node, scope, source);
  const Value loop = heap_.loop({std::move(next), sized ? size_of(heap_, source) : -1});
  Loop& state = *loop.loop;
  Scope* inner = heap_.make(Scope{&scope, {}});
  bool otherwise = true;  // as in Jinja, until a body was run to its end: break and continue are none
  while (std::optional<Value> v = state.after ? std::exchange(state.after, std::nullopt) : state.next()) {
    ++state.index0;
    state.before = std::exchange(state.current, *v);
    if (inner->kept) inner = heap_.make(Scope{&scope, {}});
    inner->names.clear();
    assign(*node.parts[0], *inner, *v);
    set(*inner, "loop", loop);
    const Flow flow = run(*node.parts[3], *inner, out);
    if (flow == Flow::stop) break;
    otherwise = otherwise && flow != Flow::on;
  }
  if (otherwise && node.parts[4]) return run(*node.parts[4], *heap_.make(Scope{&scope, {}}), out);
  return Flow::on;
}

void Machine::assign(const Node& target, Scope& scope, const Value& value) {
  heap_.spend(1 + scope.names.size() / 16);
  if (target.op == Op::tuple) {
    const std::vector<Value> values = heap_.elements(value);
    if (values.size() != target.parts.size()) reject("{} values for {} names", values.size(), target.parts.size());
    for (std::size_t i = 0; i < values.size(); ++i) assign(*target.parts[i], scope, values[i]);
  } else if (target.names.empty()) {
    set(scope, target.text, value);
  } else {
    const Value space = look_up(scope, target.text);
    if (!space.is(Kind::space)) reject("cannot assign an attribute of '{}', which is no namespace", target.text);
    if (target.names[0].starts_with('_')) reject("a namespace's attribute cannot begin with '_'");
    heap_.set(space.space->attributes, heap_.text(target.names[0]), value);
  }
}

}  // namespace kvmesh::jinja
