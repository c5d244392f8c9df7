// Jinja's tests: what may stand behind `is`.
#include "model/chat/builtins.h"

#include <algorithm>

namespace kvmesh::jinja {
namespace {

// The operators under the names that tests have.
std::string_view operator_of(std::string_view test) {
  static constexpr std::pair<std::string_view, std::string_view> names[] = {{"eq", "=="}, {"equalto", "=="}, {"==", "=="}, {"ne", "!="}, {"!=", "!="}, {"gt", ">"}, {"greaterthan", ">"}, {">", ">"},
                                                                            {"ge", ">="}, {">=", ">="}, {"lt", "<"}, {"lessthan", "<"}, {"<", "<"}, {"le", "<="}, {"<=", "<="}, {"in", "in"}};
  const auto* const found = std::find_if(std::begin(names), std::end(names), [&](const auto& n) { return n.first == test; });
  return found == std::end(names) ? std::string_view() : found->second;
}

// Python's islower() or isupper().
bool has_case(Heap& heap, const Value& v, bool wants_upper) {
  bool any = false;
  for (const char c : heap.str(v)) {
    if (static_cast<unsigned char>(c) >= 0x80) reject("the case of text that is not ASCII is not supported");
    const bool up = c >= 'A' && c <= 'Z', low = c >= 'a' && c <= 'z';
    if (wants_upper ? low : up) return false;
    any = any || up || low;
  }
  return any;
}

bool same(const Value& a, const Value& b) {
  if (a.kind != b.kind) return false;
  if (a.is(Kind::integer) || a.is(Kind::real) || a.is(Kind::text) || a.is(Kind::undefined)) reject("sameas of a {} is not supported", type_name(a));
  if (a.is(Kind::boolean)) return a.boolean == b.boolean;
  return a.is(Kind::none) || a.list == b.list;
}

}  // namespace

bool apply_test(Heap& heap, std::string_view name, const Value& v, Arguments a) {
  if (const std::string_view op = operator_of(name); !op.empty()) {
    const Value other = a.need("");
    a.done();
    return compare(heap, op, v, other);
  }
  if (name == "divisibleby" || name == "odd" || name == "even") {
    const Value by = name == "divisibleby" ? a.need("num") : Value(std::int64_t{2});
    a.done();
    return heap.equal(arithmetic(heap, "%", v, by), Value(std::int64_t{name == "odd"}));
  }
  if (name == "sameas") {
    const Value other = a.need("other");
    a.done();
    return same(v, other);
  }
  a.done();  // the others take none
  if (name == "defined") return !v.is(Kind::undefined);
  if (name == "undefined") return v.is(Kind::undefined);
  if (name == "none") return v.is(Kind::none);
  if (name == "boolean") return v.is(Kind::boolean);
  if (name == "true" || name == "false") return v.is(Kind::boolean) && v.boolean == (name == "true");
  if (name == "integer") return v.is(Kind::integer);
  if (name == "float") return v.is(Kind::real);
  if (name == "number") return v.is_number();
  if (name == "string") return v.is(Kind::text);
  if (name == "mapping") return v.is(Kind::dict);
  if (name == "sequence") return v.is(Kind::text) || v.is(Kind::dict) || v.is(Kind::undefined) || (v.is_listed() && !v.is(Kind::view));
  if (name == "iterable") return v.is(Kind::text) || v.is(Kind::dict) || v.is(Kind::undefined) || v.is_listed() || v.is(Kind::iterator) || v.is(Kind::loop);
  if (name == "callable") return v.is(Kind::macro) || v.is(Kind::function) || v.is(Kind::loop) || v.is(Kind::undefined);
  if (name == "escaped") return v.is(Kind::text) && v.text->safe;
  if (name == "lower" || name == "upper") return has_case(heap, v, name == "upper");
  reject("the test '{}' is not supported", name);
}

}  // namespace kvmesh::jinja
