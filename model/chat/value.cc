// What Python's built-in types do: equality, order, truth, iteration, and conversion from JSON.
#include "model/chat/value.h"

#include "model/utf8.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvmesh::jinja {
namespace {

constexpr int most_depth = 300;  // of lists in lists; JSON rows have less

template <typename T>
Value object(Kind kind, T* Value::* member, T* made) {
  Value v;
  v.kind = kind;
  v.*member = made;
  return v;
}

void check_hashable(const Value& key) {
  if (key.is(Kind::list) || key.is(Kind::dict) || key.is(Kind::view)) reject("unhashable type: '{}'", type_name(key));
  if (key.is(Kind::tuple)) {
    for (const Value& v : key.list->items) check_hashable(v);
  }
}

}  // namespace

const char* type_name(const Value& v) {
  static constexpr const char* names[] = {"Undefined", "NoneType", "bool",     "int",       "float", "str",      "list", "tuple",
                                          "range",     "view",     "dict",     "generator", "Namespace", "Macro", "function", "loop"};
  return names[static_cast<int>(v.kind)];
}

const std::string& plain(const Value& v) {
  if (!v.is(Kind::text)) reject("expected str, found {}", type_name(v));
  if (v.text->safe) reject("text marked as safe can only be printed and joined");
  return v.text->bytes;
}

std::optional<Value> Arguments::take(std::string_view name) {
  if (taken_ < values.size()) return values[taken_++];
  const auto found = std::find_if(named.begin(), named.end(), [&](const auto& n) { return n.first == name; });
  if (found == named.end()) return std::nullopt;
  ++taken_named_;
  return found->second;
}

Value Arguments::need(std::string_view name) {
  const std::optional<Value> v = take(name);
  if (!v) reject("the argument '{}' is missing", name);
  return *v;
}

void Arguments::done() const {
  if (taken_ < values.size()) reject("too many arguments");
  if (taken_named_ < named.size()) reject("an argument that is not known or given twice, of '{}'", named.front().first);
}

Value Heap::text(std::string bytes, bool safe) {
  const std::size_t size = bytes.size();
  return object<const Text>(Kind::text, &Value::text, make(Text{std::move(bytes), safe}, size));
}

Value Heap::list(std::vector<Value> items, Kind kind, const char* view) {
  const std::size_t size = items.size() * sizeof(Value);
  return object<const List>(kind, &Value::list, make(List{std::move(items), view}, size));
}

Value Heap::dict(std::vector<std::pair<Value, Value>> items) {
  const std::size_t size = items.size() * 2 * sizeof(Value);
  return object<const Dict>(Kind::dict, &Value::dict, make(Dict{std::move(items)}, size));
}

Value Heap::iterator(Next next, const Value& source) {
  const int depth = source.is(Kind::iterator) ? source.iterator->depth + 1 : 1;
  if (depth > 100) reject("filters are nested too deeply");
  return object(Kind::iterator, &Value::iterator, make(Iterator{std::move(next), depth}, 64));
}

Value Heap::function(std::string_view name, const Value& self) { return object<const Function>(Kind::function, &Value::function, make(Function{name, self})); }
Value Heap::space(Dict attributes) { return object(Kind::space, &Value::space, make(Space{std::move(attributes)})); }
Value Heap::macro(const Node* node, Scope* scope) { return object<const Macro>(Kind::macro, &Value::macro, make(Macro{node, scope})); }
Value Heap::loop(Loop loop) { return object(Kind::loop, &Value::loop, make(std::move(loop))); }

Value Heap::from_json(const Json& json) {
  switch (json.type()) {
    case Json::value_t::null: return Value::none();
    case Json::value_t::boolean: return Value(json.get<bool>());
    case Json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) reject("the number {} is too large", json.dump());
      [[fallthrough]];
    case Json::value_t::number_integer: return Value(json.get<std::int64_t>());
    case Json::value_t::number_float:
      if (std::abs(json.get<double>()) >= 0x1p63) reject("the number {} is too large", json.dump());  // it may have been an integer
      return Value(json.get<double>());
    case Json::value_t::string: return text(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& e : json) items.push_back(from_json(e));
      return list(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      for (const auto& [key, e] : json.items()) items.emplace_back(text(key), from_json(e));
      return dict(std::move(items));
    }
    default: reject("not JSON");
  }
}

const Value* Heap::find(const Dict& dict, const Value& key) {
  if (key.is(Kind::text)) return find(dict, key.text->bytes);
  check_hashable(key);
  spend(dict.items.size());
  for (const auto& [k, v] : dict.items) {
    if (equal(k, key)) return &v;
  }
  return nullptr;
}

const Value* Heap::find(const Dict& dict, std::string_view key) {
  spend(dict.items.size() / 8);
  for (const auto& [k, v] : dict.items) {
    if (k.is(Kind::text) && k.text->bytes == key) return &v;
  }
  return nullptr;
}

void Heap::set(Dict& dict, const Value& key, const Value& value) {
  if (const Value* found = find(dict, key)) {
    *const_cast<Value*>(found) = value;  // the dict is ours to change
  } else {
    spend(1);
    dict.items.emplace_back(key, value);
  }
}

bool Heap::equal(const Value& a, const Value& b, int depth) {
  spend(1);
  if (depth > most_depth) reject("values are nested too deeply");
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return a.whole() == b.whole();
    const auto exact = [](const Value& v) { return v.is_whole() ? static_cast<long double>(v.whole()) : static_cast<long double>(v.real); };
    return exact(a) == exact(b);
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::undefined:
    case Kind::none: return true;
    case Kind::text: return spend(std::min(a.text->bytes.size(), b.text->bytes.size()) / 256), a.text->bytes == b.text->bytes;
    case Kind::list:
    case Kind::tuple:
    case Kind::range:
      return a.list->items.size() == b.list->items.size() &&
             std::equal(a.list->items.begin(), a.list->items.end(), b.list->items.begin(), [&](const Value& x, const Value& y) { return equal(x, y, depth + 1); });
    case Kind::dict:
      return a.dict->items.size() == b.dict->items.size() && std::all_of(a.dict->items.begin(), a.dict->items.end(), [&](const auto& item) {
               const Value* other = find(*b.dict, item.first);
               return other && equal(item.second, *other, depth + 1);
             });
    case Kind::view: reject("views of a dict cannot be compared");
    default: return a.integer == b.integer;  // the same object
  }
}

bool Heap::less(const Value& a, const Value& b, int depth) {
  spend(1);
  if (depth > most_depth) reject("values are nested too deeply");
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return a.whole() < b.whole();
    const auto exact = [](const Value& v) { return v.is_whole() ? static_cast<long double>(v.whole()) : static_cast<long double>(v.real); };
    return exact(a) < exact(b);
  }
  if (a.kind == b.kind && a.is(Kind::text)) return spend(std::min(a.text->bytes.size(), b.text->bytes.size()) / 256), a.text->bytes < b.text->bytes;
  if (a.kind == b.kind && (a.is(Kind::list) || a.is(Kind::tuple))) {
    const std::vector<Value>&x = a.list->items, &y = b.list->items;
    for (std::size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equal(x[i], y[i], depth + 1)) return less(x[i], y[i], depth + 1);
    }
    return x.size() < y.size();
  }
  reject("'<' not supported between '{}' and '{}'", type_name(a), type_name(b));
}

bool Heap::contains(const Value& container, const Value& item) {
  if (container.is(Kind::text)) return spend((container.text->bytes.size() + plain(item).size()) / 16), find_text(container.text->bytes, plain(item)) != std::string::npos;
  if (container.is(Kind::dict)) return find(*container.dict, item) != nullptr;
  const auto next = iterate(container);
  while (const std::optional<Value> v = next()) {
    if (equal(*v, item)) return true;
  }
  return false;
}

Value Heap::replaced(std::string_view text, std::string_view old, std::string_view now, std::int64_t most) {
  spend((text.size() + old.size()) / 16);
  const std::int64_t found = count_text(text, old), times = most < 0 ? found : std::min(found, most);
  const std::size_t size = text.size() + static_cast<std::size_t>(times) * now.size();  // at most
  room_for(size);
  spend(size / 16 + static_cast<std::size_t>(times));
  return this->text(replace(text, old, now, most));
}

bool Heap::truth(const Value& v) {
  switch (v.kind) {
    case Kind::undefined:
    case Kind::none: return false;
    case Kind::boolean: return v.boolean;
    case Kind::integer: return v.integer != 0;
    case Kind::real: return v.real != 0;
    case Kind::text: return !v.text->bytes.empty();
    case Kind::dict: return !v.dict->items.empty();
    default: return !v.is_listed() || !v.list->items.empty();
  }
}

Next Heap::iterate(const Value& v) {
  std::size_t at = 0;
  if (v.is(Kind::undefined)) return [] { return std::nullopt; };
  if (v.is_listed()) return [this, list = v.list, at]() mutable { return spend(1), at < list->items.size() ? std::optional(list->items[at++]) : std::nullopt; };
  if (v.is(Kind::dict)) return [this, dict = v.dict, at]() mutable { return spend(1), at < dict->items.size() ? std::optional(dict->items[at++].first) : std::nullopt; };
  if (v.is(Kind::iterator)) return [iterator = v.iterator] { return iterator->next(); };
  if (v.is(Kind::text)) {
    return [this, bytes = std::string_view(v.text->bytes), at]() mutable -> std::optional<Value> {
      if (at == bytes.size()) return std::nullopt;
      const std::size_t begin = at;
      at += character_at(bytes, at).length;
      return text(bytes.substr(begin, at - begin));
    };
  }
  reject("'{}' object is not iterable", type_name(v));
}

std::vector<Value> Heap::elements(const Value& v) {
  std::vector<Value> all;
  const auto next = iterate(v);
  while (const std::optional<Value> e = next()) all.push_back(*e);
  return all;
}

}  // namespace kvmesh::jinja
