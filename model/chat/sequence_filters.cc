// Jinja's filters of sequences.
#include "model/chat/builtins.h"

#include <algorithm>

namespace kvmesh::jinja {
namespace {

using Pairs = std::vector<std::pair<Value, Value>>;

bool flag(Heap& heap, Arguments& a, const char* name) { return heap.truth(a.take(name).value_or(Value(false))); }

// Elements of `in` that are asked for when the first is, as Python's generators do; falsy values have none.
Next later(Heap& heap, const Value& in) {
  return [&heap, in, next = Next()]() mutable -> std::optional<Value> {
    if (!heap.truth(in)) return std::nullopt;
    if (!next) next = heap.iterate(in);
    return next();
  };
}

// item.a.b of an attribute "a.b", or item[3] of 3; the item itself without.
using Getter = std::function<Value(Value)>;
Getter getter(Heap& heap, const std::optional<Value>& attribute, bool ignore_case = false, const std::optional<Value>& otherwise = std::nullopt) {
  std::vector<Value> path;
  if (attribute && attribute->is(Kind::text)) {
    const std::string_view dot = ".";
    for (const std::string_view part : split(plain(*attribute), &dot, -1, false)) {
      const bool digits = !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == part.npos;
      path.push_back(digits ? Value(static_cast<std::int64_t>(std::stoll(std::string(part)))) : heap.text(part));
    }
  } else if (attribute && !attribute->is(Kind::none)) {
    path.push_back(*attribute);
  }
  return [&heap, path, ignore_case, otherwise](Value v) {
    for (const Value& key : path) {
      v = item(heap, v, key);
      if (v.is(Kind::undefined) && otherwise && !otherwise->is(Kind::none)) v = *otherwise;
    }
    return ignore_case && v.is(Kind::text) ? heap.text(lower(plain(v))) : v;
  };
}

// Which elements select, reject, selectattr and rejectattr keep; all of them only when they are asked for.
Value selected(Heap& heap, const Value& in, Arguments a, bool keep, bool by_attribute) {
  if (by_attribute && a.values.empty()) reject("the attribute's name is missing");
  const Getter get = getter(heap, by_attribute ? std::optional(a.values[0]) : std::nullopt);
  a = a.without(by_attribute ? 1 : 0);
  const std::string_view test = a.values.empty() ? std::string_view() : plain(a.values[0]);
  if (!a.values.empty()) a = a.without(1);
  return heap.iterator(
      [&heap, next = later(heap, in), get, test, a, keep]() -> std::optional<Value> {
        while (std::optional<Value> v = next()) {
          const Value of = get(*v);
          if ((test.empty() ? heap.truth(of) : apply_test(heap, test, of, a)) == keep) return v;
        }
        return std::nullopt;
      },
      in);
}

Value mapped(Heap& heap, const Value& in, Arguments a) {
  if (a.values.empty()) {
    const std::optional<Value> attribute = a.take("attribute"), otherwise = a.take("default");
    a.done();
    if (!attribute) reject("map needs a filter or an attribute");
    return heap.iterator(
        [next = later(heap, in), get = getter(heap, attribute, false, otherwise)]() -> std::optional<Value> {
          const std::optional<Value> v = next();
          return v ? std::optional(get(*v)) : std::nullopt;
        },
        in);
  }
  const std::string_view filter = plain(a.values[0]);
  return heap.iterator(
      [&heap, next = later(heap, in), filter, rest = a.without(1)]() -> std::optional<Value> {
        const std::optional<Value> v = next();
        return v ? std::optional(apply_filter(heap, filter, *v, rest)) : std::nullopt;
      },
      in);
}

// By the first of each pair, stable, also downwards.
void sort_by(Heap& heap, Pairs& keyed, bool down) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) { return down ? heap.less(y.first, x.first) : heap.less(x.first, y.first); });
}

Value sorted(Heap& heap, const Value& in, Arguments& a) {
  const bool down = flag(heap, a, "reverse"), exact = flag(heap, a, "case_sensitive");
  const std::optional<Value> attribute = a.take("attribute");
  a.done();
  std::vector<Getter> gets;
  if (attribute && attribute->is(Kind::text)) {
    const std::string_view comma = ",";
    for (const std::string_view part : split(plain(*attribute), &comma, -1, false)) gets.push_back(getter(heap, heap.text(part), !exact));
  } else {
    gets.push_back(getter(heap, attribute, !exact));
  }
  Pairs keyed;
  for (const Value& v : heap.elements(in)) {
    std::vector<Value> key;
    for (const Getter& get : gets) key.push_back(get(v));
    keyed.emplace_back(heap.list(std::move(key)), v);
  }
  sort_by(heap, keyed, down);
  std::vector<Value> out;
  for (const auto& [key, v] : keyed) out.push_back(v);
  return heap.list(std::move(out));
}

Value dictsorted(Heap& heap, const Value& in, Arguments& a) {
  const bool exact = flag(heap, a, "case_sensitive");
  const std::string by = plain(a.take("by").value_or(heap.text(std::string_view("key"))));
  const bool down = flag(heap, a, "reverse");
  a.done();
  if (!in.is(Kind::dict) || (by != "key" && by != "value")) reject("dictsort: needs a dict, sorted by key or value");
  const Getter get = getter(heap, std::nullopt, !exact);
  Pairs keyed;
  for (const auto& [key, v] : in.dict->items) keyed.emplace_back(get(by == "key" ? key : v), heap.list({key, v}, Kind::tuple));
  sort_by(heap, keyed, down);
  std::vector<Value> out;
  for (const auto& [key, pair] : keyed) out.push_back(pair);
  return heap.list(std::move(out));
}

Value unique(Heap& heap, const Value& in, Arguments& a) {
  const bool exact = flag(heap, a, "case_sensitive");
  const Getter get = getter(heap, a.take("attribute"), !exact);
  a.done();
  Dict seen;
  std::vector<Value> out;
  for (const Value& v : heap.elements(in)) {
    const Value key = get(v);
    if (heap.find(seen, key)) continue;
    heap.set(seen, key, Value());
    out.push_back(v);
  }
  const Value list = heap.list(std::move(out));
  return heap.iterator(heap.iterate(list), list);
}

Value extreme(Heap& heap, const Value& in, Arguments& a, bool most) {
  const bool exact = flag(heap, a, "case_sensitive");
  const Getter get = getter(heap, a.take("attribute"), !exact);
  a.done();
  std::optional<std::pair<Value, Value>> best;
  for (const Value& v : heap.elements(in)) {
    const Value key = get(v);
    if (!best || (most ? heap.less(best->first, key) : heap.less(key, best->first))) best.emplace(key, v);
  }
  return best ? best->second : Value();
}

Value joined(Heap& heap, const Value& in, Arguments& a) {
  const std::string between = heap.str(a.take("d").value_or(heap.text(std::string())));
  const Getter get = getter(heap, a.take("attribute"));
  a.done();
  std::string out;
  bool first = true;
  const auto next = heap.iterate(in);
  while (const std::optional<Value> v = next()) {
    if (!std::exchange(first, false)) out += between;
    const std::size_t before = out.size();
    out += heap.str(get(*v));
    heap.spend((out.size() - before + between.size()) / 64);
  }
  return heap.text(std::move(out));
}

Value reversed(Heap& heap, const Value& in) {
  if (in.is(Kind::text)) {
    const Value by(std::int64_t{-1});
    return slice(heap, in, nullptr, nullptr, &by);
  }
  std::vector<Value> items = heap.elements(in);
  std::reverse(items.begin(), items.end());
  const Value list = heap.list(std::move(items));
  return in.is(Kind::iterator) ? list : heap.iterator(heap.iterate(list), list);
}

Value sum(Heap& heap, const Value& in, Arguments& a) {
  const Getter get = getter(heap, a.take("attribute"));
  Value total = a.take("start").value_or(Value(std::int64_t{0}));
  a.done();
  if (total.is(Kind::text)) reject("sum() of texts is not supported");
  for (const Value& v : heap.elements(in)) total = arithmetic(heap, "+", total, get(v));
  return total;
}

Value items_of(Heap& heap, const Value& in) {
  std::size_t at = 0;
  return heap.iterator(
      [&heap, in, at]() mutable -> std::optional<Value> {
        if (in.is(Kind::undefined)) return std::nullopt;
        if (!in.is(Kind::dict)) reject("Can only get item pairs from a mapping.");
        if (at == in.dict->items.size()) return std::nullopt;
        const auto& [key, v] = in.dict->items[at++];
        return heap.list({key, v}, Kind::tuple);
      },
      in);
}

}  // namespace

std::optional<Value> apply_sequence_filter(Heap& heap, std::string_view name, const Value& in, Arguments& a) {
  if (name == "select") return selected(heap, in, a, true, false);
  if (name == "reject") return selected(heap, in, a, false, false);
  if (name == "selectattr") return selected(heap, in, a, true, true);
  if (name == "rejectattr") return selected(heap, in, a, false, true);
  if (name == "map") return mapped(heap, in, a);
  if (name == "sort") return sorted(heap, in, a);
  if (name == "unique") return unique(heap, in, a);
  if (name == "min" || name == "max") return extreme(heap, in, a, name == "max");
  if (name == "dictsort") return dictsorted(heap, in, a);
  if (name == "join") return joined(heap, in, a);
  if (name == "sum") return sum(heap, in, a);
  const bool known = name == "first" || name == "last" || name == "list" || name == "length" || name == "count" || name == "reverse" || name == "items";
  if (!known) return std::nullopt;
  a.done();
  if (name == "first") return heap.iterate(in)().value_or(Value());
  if (name == "list") return heap.list(heap.elements(in));
  if (name == "reverse") return reversed(heap, in);
  if (name == "items") return items_of(heap, in);
  if (name == "length" || name == "count") return Value(size_of(heap, in));
  if (in.is(Kind::iterator)) reject("'generator' object is not reversible");
  const std::vector<Value> all = heap.elements(in);  // of "last"
  return all.empty() ? Value() : all.back();
}

}  // namespace kvmesh::jinja
