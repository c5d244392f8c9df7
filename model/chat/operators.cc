// Python's arithmetic, comparisons and slices.
#include "model/chat/builtins.h"

#include <algorithm>
#include <cmath>

namespace kvmesh::jinja {
namespace {

constexpr std::int64_t most_repeated = std::int64_t{1} << 24;  // bytes or elements

[[noreturn]] void too_large() { reject("a number that is too large"); }

std::int64_t power(std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  if (base == 0 || base == 1) return exponent == 0 ? 1 : base;
  if (base == -1) return exponent % 2 ? -1 : 1;
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(result, base, &result)) too_large();
  }
  return result;
}

Value whole_arithmetic(std::string_view op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (op == "+" || op == "-" || op == "*") {
    const bool overflow = op == "+" ? __builtin_add_overflow(a, b, &result) : op == "-" ? __builtin_sub_overflow(a, b, &result) : __builtin_mul_overflow(a, b, &result);
    if (overflow) too_large();
    return Value(result);
  }
  if (op == "**") {
    if (b >= 0) return Value(power(a, b));
    if (a == 0) reject("0.0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  if (b == 0) reject("division by zero");
  if (op == "/") {
    constexpr std::int64_t exact = std::int64_t{1} << 53;
    if (a > exact || a < -exact || b > exact || b < -exact) too_large();
    return Value(static_cast<double>(a) / static_cast<double>(b));
  }
  if (b == -1) {
    if (op == "%") return Value(std::int64_t{0});
    if (__builtin_sub_overflow(std::int64_t{0}, a, &result)) too_large();
    return Value(result);
  }
  const bool down = a % b != 0 && (a % b < 0) != (b < 0);  // Python rounds towards minus infinity
  return Value(op == "//" ? a / b - down : a % b + (down ? b : 0));
}

Value real_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    const double result = std::pow(a, b);
    if ((a == 0 && b < 0) || (std::isfinite(a) && std::isfinite(b) && !std::isfinite(result))) reject("a power that is no number");
    return Value(result);
  }
  if (b == 0) reject("float division by zero");
  if (op == "/") return Value(a / b);
  double rest = std::fmod(a, b), quotient = (a - rest) / b;
  if (rest != 0 && (b < 0) != (rest < 0)) rest += b, quotient -= 1;
  if (rest == 0) rest = std::copysign(0.0, b);
  if (op == "%") return Value(rest);
  double floor = std::floor(quotient);
  if (quotient != 0 && quotient - floor > 0.5) floor += 1;
  return Value(quotient == 0 ? std::copysign(0.0, a / b) : floor);
}

Value repeated(Heap& heap, const Value& sequence, std::int64_t times) {
  times = std::max<std::int64_t>(times, 0);
  const auto too_long = [&](std::size_t size) { return size > 0 && times > most_repeated / static_cast<std::int64_t>(size); };
  if (sequence.is(Kind::text)) {
    const std::string& text = plain(sequence);
    if (too_long(text.size())) reject("a text that is too long");
    std::string out;
    for (std::int64_t i = 0; i < times && !text.empty(); ++i) out += text;
    return heap.text(std::move(out));
  }
  const std::vector<Value>& items = sequence.list->items;
  if (too_long(items.size())) reject("a list that is too long");
  std::vector<Value> out;
  for (std::int64_t i = 0; i < times && !items.empty(); ++i) out.insert(out.end(), items.begin(), items.end());
  return heap.list(std::move(out), sequence.kind);
}

}  // namespace

Value arithmetic(Heap& heap, std::string_view op, const Value& a, const Value& b) {
  if (a.is_whole() && b.is_whole()) return whole_arithmetic(op, a.whole(), b.whole());
  if (a.is_number() && b.is_number()) return real_arithmetic(op, a.number(), b.number());
  const auto repeats = [](const Value& v) { return v.is(Kind::text) || v.is(Kind::list) || v.is(Kind::tuple); };
  if (op == "+" && a.kind == b.kind && repeats(a)) {
    if (a.is(Kind::text)) return heap.text(plain(a) + plain(b));
    std::vector<Value> items = a.list->items;
    items.insert(items.end(), b.list->items.begin(), b.list->items.end());
    return heap.list(std::move(items), a.kind);
  }
  if (op == "*" && repeats(a) && b.is_whole()) return repeated(heap, a, b.whole());
  if (op == "*" && repeats(b) && a.is_whole()) return repeated(heap, b, a.whole());
  if (op == "%" && a.is(Kind::text)) reject("formatting with % is not supported");
  reject("unsupported operand types for {}: '{}' and '{}'", op, type_name(a), type_name(b));
}

Value signed_value(const Value& v, bool negative) {
  if (v.is(Kind::real)) return Value(negative ? -v.real : v.real);
  if (!v.is_whole()) reject("a sign before '{}'", type_name(v));
  return negative ? whole_arithmetic("-", 0, v.whole()) : Value(v.whole());
}

bool compare(Heap& heap, std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return heap.equal(a, b);
  if (op == "!=") return !heap.equal(a, b);
  if (op == "in") return heap.contains(b, a);
  if (op == "not in") return !heap.contains(b, a);
  if (op == "<") return heap.less(a, b);
  if (op == ">") return heap.less(b, a);
  return op == "<=" ? heap.less(a, b) || heap.equal(a, b) : heap.less(b, a) || heap.equal(a, b);
}

Value slice(Heap& heap, const Value& object, const Value* start, const Value* stop, const Value* step) {
  if (!object.is(Kind::text) && !(object.is_listed() && !object.is(Kind::view))) reject("'{}' cannot be sliced", type_name(object));
  const auto given = [](const Value* v) { return v && !v->is(Kind::none); };
  const std::int64_t by = given(step) ? whole(*step, "a slice's step") : 1, size = size_of(heap, object);
  if (by == 0) reject("slice step cannot be zero");
  const auto bound = [&](const Value* v, std::int64_t otherwise) {
    if (!given(v)) return otherwise;
    std::int64_t i = whole(*v, "a slice's bound");
    if (i < 0) i = std::max(i, -size - 1) + size;
    return by > 0 ? std::clamp<std::int64_t>(i, 0, size) : std::clamp<std::int64_t>(i, -1, size - 1);
  };
  const std::int64_t from = bound(start, by > 0 ? 0 : size - 1), to = bound(stop, by > 0 ? size : -1);
  std::vector<std::int64_t> places;
  if (by > 0) {
    for (std::int64_t i = from; i < to; i += std::min(by, size)) places.push_back(i);
  } else {
    for (std::int64_t i = from; i > to; i += std::max(by, -size)) places.push_back(i);
  }
  heap.spend(places.size() + static_cast<std::size_t>(size) / 64);
  if (!object.is(Kind::text)) {
    std::vector<Value> items;
    for (const std::int64_t i : places) items.push_back(object.list->items[static_cast<std::size_t>(i)]);
    return heap.list(std::move(items), object.kind);
  }
  const std::string_view text = object.text->bytes;
  std::string out;
  if (by == 1) {
    const std::size_t begin = byte_of(text, from);
    out = text.substr(begin, byte_of(text.substr(begin), std::max<std::int64_t>(to - from, 0)));
  } else {
    std::vector<std::size_t> begins;
    for (std::size_t at = 0; at < text.size(); at += byte_of(text.substr(at), 1)) begins.push_back(at);
    begins.push_back(text.size());
    for (const std::int64_t i : places) out += text.substr(begins[static_cast<std::size_t>(i)], begins[static_cast<std::size_t>(i) + 1] - begins[static_cast<std::size_t>(i)]);
  }
  return heap.text(std::move(out), object.text->safe);
}

}  // namespace kvmesh::jinja
