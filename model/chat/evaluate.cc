// Expressions and calls.
#include "model/chat/machine.h"

#include <algorithm>

namespace kvmesh::jinja {
namespace {

// An expression as an error names it.
std::string described(const Node& node) {
  if (node.op == Op::name) return node.text;
  if (node.op == Op::attribute) return described(*node.parts[0]) + "." + node.text;
  if (node.op == Op::item) {
    const Node& key = *node.parts[1];
    return described(*node.parts[0]) + (key.constant.is(Kind::text) ? "['" + key.literal.bytes + "']" : key.constant.is(Kind::integer) ? fmt::format("[{}]", key.constant.integer) : "[…]");
  }
  return "…";
}

void check_defined(const Value& v, const Node& node) {
  if (v.is(Kind::undefined)) reject("'{}' is undefined", described(node));
}

}  // namespace

Value Machine::evaluate(const Node& node, Scope& scope) {
  const Deeper deeper(*this, node);
  const auto part = [&](std::size_t i) { return evaluate(*node.parts[i], scope); };
  switch (node.op) {
    case Op::constant: return node.constant;
    case Op::name: return look_up(scope, node.text);
    case Op::list:
    case Op::tuple: {
      std::vector<Value> items;
      for (std::size_t i = 0; i < node.parts.size(); ++i) items.push_back(part(i));
      return heap_.list(std::move(items), node.op == Op::list ? Kind::list : Kind::tuple);
    }
    case Op::dict: {
      Dict dict;
      for (std::size_t i = 0; i < node.parts.size(); i += 2) {
        const Value key = part(i);
        heap_.set(dict, key, part(i + 1));
      }
      return heap_.dict(std::move(dict.items));
    }
    case Op::attribute:
    case Op::item: {
      const Value object = part(0);
      check_defined(object, *node.parts[0]);
      return node.op == Op::attribute ? attribute(heap_, object, node.text) : item(heap_, object, part(1));
    }
    case Op::slice: {
      const Value object = part(0);
      check_defined(object, *node.parts[0]);
      std::optional<Value> bounds[3];
      for (std::size_t i = 0; i < 3; ++i) {
        if (node.parts[i + 1]) bounds[i] = part(i + 1);
      }
      const auto given = [&](int i) { return bounds[i] ? &*bounds[i] : nullptr; };
      return slice(heap_, object, given(0), given(1), given(2));
    }
    case Op::call: {
      const Value function = part(0);
      check_defined(function, *node.parts[0]);
      return call(function, arguments(node, scope));
    }
    case Op::filter: {
      const Value in = node.parts[0] ? part(0) : piped_;
      return apply_filter(heap_, node.text, in, arguments(node, scope));
    }
    case Op::test: {
      const Value in = part(0);
      return Value(apply_test(heap_, node.text, in, arguments(node, scope)));
    }
    default: return evaluate_operator(node, scope);
  }
}

Value Machine::evaluate_operator(const Node& node, Scope& scope) {
  const auto part = [&](std::size_t i) { return evaluate(*node.parts[i], scope); };
  switch (node.op) {
    case Op::negative:
    case Op::positive: return signed_value(part(0), node.op == Op::negative);
    case Op::invert: return Value(!holds(*node.parts[0], scope));
    case Op::either:
    case Op::both: {
      const Value left = part(0);
      return heap_.truth(left) == (node.op == Op::either) ? left : part(1);
    }
    case Op::condition:
      if (holds(*node.parts[0], scope)) return part(1);
      return node.parts[2] ? part(2) : Value();
    case Op::compare: {
      Value left = part(0);
      for (std::size_t i = 0; i < node.names.size(); ++i) {
        const Value right = part(i + 1);
        if (!compare(heap_, node.names[i], left, right)) return Value(false);
        left = right;
      }
      return Value(true);
    }
    case Op::concat: {
      std::string out;
      for (std::size_t i = 0; i < node.parts.size(); ++i) print(out, heap_.str(part(i)));
      return heap_.text(std::move(out));
    }
    case Op::arithmetic: {
      const Value left = part(0), right = part(1);
      check_defined(left, *node.parts[0]);
      check_defined(right, *node.parts[1]);
      return arithmetic(heap_, node.text, left, right);
    }
    default: reject("a statement where an expression belongs");
  }
}

Arguments Machine::arguments(const Node& node, Scope& scope) {
  Arguments out;
  const std::size_t named = node.parts.size() - node.names.size();
  for (std::size_t i = 1; i < node.parts.size(); ++i) {
    const Value v = evaluate(*node.parts[i], scope);
    if (i < named) out.values.push_back(v);
    else out.named.emplace_back(node.names[i - named], v);
  }
  line_ = node.line;
  return out;
}

Value Machine::look_up(const Scope& scope, std::string_view name) {
  for (const Scope* s = &scope; s; s = s->outer) {
    heap_.spend(s->names.size() / 16);
    const auto found = std::find_if(s->names.begin(), s->names.end(), [&](const auto& n) { return n.first == name; });
    if (found != s->names.end()) return found->second;
  }
  return global(heap_, name);
}

Value Machine::call(const Value& function, Arguments given) {
  if (function.is(Kind::macro)) return call_macro(*function.macro, std::move(given));
  if (!function.is(Kind::function)) reject("'{}' object is not callable", type_name(function));
  if (function.function->name == "strftime_now") return date(std::move(given));
  return call_function(heap_, *function.function, std::move(given));
}

Value Machine::call_macro(const Macro& macro, Arguments given) {
  const Node& node = *macro.node;
  Scope& scope = *heap_.make(Scope{macro.scope, {}});
  const std::size_t optional = node.names.size() - (node.parts.size() - 1);
  const auto named = [&](std::string_view name) -> std::optional<Value> {
    heap_.spend(given.named.size() / 4);
    const auto found = std::find_if(given.named.begin(), given.named.end(), [&](const auto& n) { return n.first == name; });
    if (found == given.named.end()) return std::nullopt;
    const Value v = found->second;
    given.named.erase(found);
    return v;
  };
  bool has_caller = false;
  for (std::size_t i = 0; i < node.names.size(); ++i) {
    std::optional<Value> v = i < given.values.size() ? std::optional(given.values[i]) : named(node.names[i]);
    if (!v) v = i >= optional ? evaluate(*node.parts[1 + i - optional], scope) : Value();
    scope.names.emplace_back(node.names[i], *v);
    has_caller = has_caller || node.names[i] == "caller";
  }
  if (node.takes_caller && !has_caller) scope.names.emplace_back("caller", named("caller").value_or(Value()));
  if (node.takes_named) {
    Dict rest;
    for (const auto& [name, v] : given.named) heap_.set(rest, heap_.text(name), v);
    scope.names.emplace_back("kwargs", heap_.dict(std::move(rest.items)));
  } else if (!given.named.empty()) {
    reject("macro '{}' takes no keyword argument '{}'", node.text, given.named[0].first);
  }
  const std::size_t taken = std::min(given.values.size(), node.names.size());
  if (node.takes_values) scope.names.emplace_back("varargs", heap_.list({given.values.begin() + static_cast<std::ptrdiff_t>(taken), given.values.end()}, Kind::tuple));
  else if (taken < given.values.size()) reject("macro '{}' takes not more than {} arguments", node.text, node.names.size());
  std::string out;
  run(*node.parts[0], scope, out);
  return heap_.text(std::move(out));
}

Value Machine::date(Arguments given) {
  const std::string format = plain(given.need("format"));
  heap_.spend(format.size() / 16);
  given.done();
  for (std::size_t at = format.find('%'); at != format.npos; at = format.find('%', at + 1)) {
    at += at + 1 < format.size() && format[at + 1] == '-' ? 2 : 1;
    if (at >= format.size() || std::string_view("aAbBcdDeFHIjmMpSTuwxXyY%").find(format[at]) == std::string_view::npos) reject("strftime_now: the format '{}' is not supported", format);
  }
  char text[512];
  const std::size_t bytes = std::strftime(text, sizeof text, format.c_str(), &now_);
  if (bytes == 0 && !format.empty()) reject("strftime_now: the format is too long");
  return heap_.text(std::string(text, bytes));
}

}  // namespace kvmesh::jinja
