// Attributes, items, methods and functions.
#include "model/chat/builtins.h"
#include "model/utf8.h"

#include <algorithm>
#include <iterator>

namespace kvmesh::jinja {
namespace {

template <std::size_t n>
const std::string_view* among(const std::string_view (&names)[n], std::string_view name) {
  const auto* const found = std::find(std::begin(names), std::end(names), name);
  return found == std::end(names) ? nullptr : found;
}

constexpr std::string_view text_methods[] = {"capitalize", "count",  "endswith", "find",       "join",      "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rfind",
                                             "rsplit",     "rstrip", "split",    "splitlines", "startswith", "strip", "title",  "upper"};
constexpr std::string_view text_others[] = {"casefold",     "center",    "encode",     "expandtabs", "format",  "format_map", "index",     "isalnum", "isalpha",   "isascii",
                                            "isdecimal",    "isdigit",   "isidentifier", "islower",  "isnumeric", "isprintable", "isspace", "istitle", "isupper",   "ljust",
                                            "maketrans",    "partition", "rindex",     "rjust",      "rpartition", "swapcase", "translate", "zfill"};
constexpr std::string_view dict_methods[] = {"get", "items", "keys", "values"};
constexpr std::string_view dict_forbidden[] = {"clear", "pop", "popitem", "setdefault", "update"};  // the sandbox makes these undefined
constexpr std::string_view dict_others[] = {"copy", "fromkeys"};
constexpr std::string_view list_methods[] = {"count", "index"};
constexpr std::string_view list_others[] = {"copy"};
constexpr std::string_view rest_others[] = {"as_integer_ratio", "bit_count", "bit_length", "close", "conjugate", "count", "denominator", "from_bytes", "fromhex", "hex", "imag", "index",
                                            "is_integer", "isdisjoint", "mapping", "numerator", "real", "send", "start", "step", "stop", "throw", "to_bytes"};  // of numbers, ranges, views, generators
constexpr std::string_view functions[] = {"range", "namespace", "dict", "raise_exception", "strftime_now"};
constexpr std::string_view function_others[] = {"lipsum", "cycler", "joiner"};

// What `object` has of its own under the name; nothing if it has no such attribute.
std::optional<Value> own(Heap& heap, const Value& object, std::string_view name) {
  const auto method = [&](const std::string_view* found) { return found ? std::optional(heap.function(*found, object)) : std::nullopt; };
  const auto refuse = [&](bool other) {
    if (other) reject("the method {} of {} is not supported", name, type_name(object));
  };
  if (name.starts_with("__") && name.ends_with("__")) return Value();
  switch (object.kind) {
    case Kind::text: refuse(among(text_others, name)); return method(among(text_methods, name));
    case Kind::dict:
      if (among(dict_forbidden, name)) return Value();
      refuse(among(dict_others, name));
      return method(among(dict_methods, name));
    case Kind::list:
    case Kind::tuple: refuse(among(list_others, name)); return method(among(list_methods, name));
    case Kind::space: {
      const Value* found = heap.find(object.space->attributes, name);
      return found ? std::optional(*found) : std::nullopt;
    }
    case Kind::loop: {
      Loop& loop = *object.loop;
      const auto peek = [&] {
        if (!loop.after) loop.after = loop.next();
        return loop.after;
      };
      const auto length = [&] {
        if (loop.length < 0) {
          std::vector<Value> rest;
          while (const std::optional<Value> v = loop.next()) rest.push_back(*v);
          loop.length = std::ssize(rest) + loop.index0 + 1 + loop.after.has_value();
          loop.next = heap.iterate(heap.list(std::move(rest)));
        }
        return loop.length;
      };
      if (name == "index") return Value(loop.index0 + 1);
      if (name == "index0") return Value(loop.index0);
      if (name == "first") return Value(loop.index0 == 0);
      if (name == "last") return Value(!peek().has_value());
      if (name == "length") return Value(length());
      if (name == "revindex") return Value(length() - loop.index0);
      if (name == "revindex0") return Value(length() - loop.index0 - 1);
      if (name == "previtem") return loop.index0 == 0 ? Value() : loop.before;
      if (name == "nextitem") return peek().value_or(Value());
      if (name == "depth" || name == "depth0") return Value(std::int64_t{name == "depth"});
      if (name == "cycle") return heap.function("cycle", object);
      if (name == "changed") reject("loop.changed is not supported");
      return std::nullopt;
    }
    case Kind::macro:
    case Kind::function: reject("attributes of a {} are not supported", type_name(object));
    case Kind::undefined:
    case Kind::none: return std::nullopt;
    default: refuse(among(rest_others, name)); return std::nullopt;
  }
}

Value text_list(Heap& heap, const std::vector<std::string_view>& parts) {
  std::vector<Value> list;
  for (const std::string_view p : parts) list.push_back(heap.text(p));
  return heap.list(std::move(list));
}

Value call_text(Heap& heap, std::string_view name, std::string_view text, Arguments& a) {
  heap.spend(text.size() / 16);
  const auto finish = [&](Value v) {
    a.done();
    return v;
  };
  const auto optional_text = [&](const char* argument) -> std::optional<std::string_view> {
    const std::optional<Value> v = a.take(argument);
    return v && !v->is(Kind::none) ? std::optional<std::string_view>(plain(*v)) : std::nullopt;
  };
  if (name == "upper") return finish(heap.text(upper(text)));
  if (name == "lower") return finish(heap.text(lower(text)));
  if (name == "title") return finish(heap.text(title_method(text)));
  if (name == "capitalize") return finish(heap.text(capitalize(text)));
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const std::optional<std::string_view> chars = optional_text("");
    return finish(heap.text(strip(text, chars ? &*chars : nullptr, name != "rstrip", name != "lstrip")));
  }
  if (name == "split" || name == "rsplit") {
    const std::optional<std::string_view> separator = optional_text("sep");
    const std::int64_t most = whole(a.take("maxsplit").value_or(Value(std::int64_t{-1})), "maxsplit");
    heap.spend(text.size() / 16 + (name == "rsplit" && separator ? (text.size() / 16 + 1) * (separator->size() / 16) : 0));
    return finish(text_list(heap, split(text, separator ? &*separator : nullptr, most, name == "rsplit")));
  }
  if (name == "splitlines") return finish(text_list(heap, split_lines(text)));
  if (name == "join") {
    std::string out;
    bool first = true;
    for (const Value& v : heap.elements(a.need(""))) {
      heap.room_for(out.size() + text.size() + plain(v).size());
      heap.spend((text.size() + v.text->bytes.size()) / 64);
      if (!std::exchange(first, false)) out += text;
      out += plain(v);
    }
    return finish(heap.text(std::move(out)));
  }
  const Value argument = a.need("");
  if (name == "startswith" || name == "endswith") {
    const auto fits = [&](const Value& v) { return name == "startswith" ? text.starts_with(plain(v)) : text.ends_with(plain(v)); };
    const bool any = argument.is(Kind::tuple) ? std::any_of(argument.list->items.begin(), argument.list->items.end(), fits) : fits(argument);
    return finish(Value(any));
  }
  const std::string& part = plain(argument);
  if (name == "find" || name == "rfind") {
    heap.spend(name == "find" ? (text.size() + part.size()) / 16 : (text.size() / 16 + 1) * (part.size() / 16 + 1));  // backwards there is no quick way
    const std::size_t at = name == "find" ? find_text(text, part) : text.rfind(part);
    return finish(Value(at == text.npos ? std::int64_t{-1} : length(text.substr(0, at))));
  }
  if (name == "removeprefix") return finish(heap.text(text.starts_with(part) ? text.substr(part.size()) : text));
  if (name == "removesuffix") return finish(heap.text(text.ends_with(part) ? text.substr(0, text.size() - part.size()) : text));
  if (name == "replace") {
    const std::string& now = plain(a.need(""));
    const std::int64_t most = whole(a.take("count").value_or(Value(std::int64_t{-1})), "count");
    return finish(heap.replaced(text, part, now, most));
  }
  heap.spend((text.size() + part.size()) / 16);
  return finish(Value(count_text(text, part)));  // name == "count"
}

Value call_dict(Heap& heap, std::string_view name, const Value& self, Arguments& a) {
  if (name == "get") {
    const Value key = a.need(""), otherwise = a.take("").value_or(Value::none());
    a.done();
    const Value* found = heap.find(*self.dict, key);
    return found ? *found : otherwise;
  }
  a.done();
  std::vector<Value> list;
  for (const auto& [key, value] : self.dict->items) list.push_back(name == "keys" ? key : name == "values" ? value : heap.list({key, value}, Kind::tuple));
  return heap.list(std::move(list), Kind::view, name == "keys" ? "dict_keys" : name == "values" ? "dict_values" : "dict_items");
}

Dict dict_of(Heap& heap, Arguments& a) {
  Dict dict;
  if (!a.values.empty()) {
    const Value from = a.need("");
    if (from.is(Kind::dict)) {
      dict = *from.dict;
      heap.spend(dict.items.size());
    } else {
      const auto next = heap.iterate(from);
      while (const std::optional<Value> pair = next()) {
        const std::vector<Value> two = heap.elements(*pair);
        if (two.size() != 2) reject("an element of the argument of dict() is no pair");
        heap.set(dict, two[0], two[1]);
      }
    }
    if (a.values.size() > 1) reject("too many arguments");
  }
  for (const auto& [key, value] : a.named) heap.set(dict, heap.text(key), value);
  return dict;
}

Value range(Heap& heap, Arguments& a) {
  std::vector<std::int64_t> n;
  for (const Value& v : a.values) n.push_back(whole(v, "an argument of range()"));
  if (n.empty() || n.size() > 3 || !a.named.empty()) reject("range() takes 1 to 3 numbers");
  const std::int64_t start = n.size() > 1 ? n[0] : 0, stop = n.size() > 1 ? n[1] : n[0], step = n.size() > 2 ? n[2] : 1;
  if (step == 0) reject("range()'s step must not be zero");
  std::vector<Value> list;
  for (std::int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (list.size() == 100'000) reject("a range of more than 100000");
    list.push_back(Value(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return heap.list(std::move(list), Kind::range);
}

}  // namespace

std::int64_t whole(const Value& v, const char* what) {
  if (!v.is_whole()) reject("{} must be an int, not {}", what, type_name(v));
  return v.whole();
}

std::int64_t size_of(Heap& heap, const Value& v) {
  if (v.is(Kind::undefined)) return 0;
  if (v.is(Kind::text)) return heap.spend(v.text->bytes.size() / 64), length(v.text->bytes);
  if (v.is(Kind::dict)) return std::ssize(v.dict->items);
  if (!v.is_listed()) reject("object of type '{}' has no len()", type_name(v));
  return std::ssize(v.list->items);
}

Value attribute(Heap& heap, const Value& object, std::string_view name) {
  if (object.is(Kind::undefined)) reject("an undefined value has no attribute '{}'", name);
  if (const std::optional<Value> v = own(heap, object, name)) return *v;
  const Value* found = object.is(Kind::dict) ? heap.find(*object.dict, name) : nullptr;
  return found ? *found : Value();
}

Value item(Heap& heap, const Value& object, const Value& key) {
  if (object.is(Kind::undefined)) reject("an undefined value has no element");
  if (object.is(Kind::dict) && !key.is(Kind::list) && !key.is(Kind::dict) && !key.is(Kind::view)) {
    if (const Value* found = heap.find(*object.dict, key)) return *found;
  }
  const bool sequence = object.is(Kind::text) || (object.is_listed() && !object.is(Kind::view));
  if (sequence && key.is_whole()) {
    if (object.is(Kind::text)) heap.spend(object.text->bytes.size() / 16);
    const std::int64_t size = size_of(heap, object), at = key.whole() < 0 ? key.whole() + size : key.whole();
    if (at < 0 || at >= size) return Value();
    if (!object.is(Kind::text)) return object.list->items[static_cast<std::size_t>(at)];
    const std::string_view text = object.text->bytes;
    const std::size_t begin = byte_of(text, at);
    return heap.text(std::string(text.substr(begin, byte_of(text.substr(begin), 1))), object.text->safe);
  }
  return key.is(Kind::text) ? own(heap, object, key.text->bytes).value_or(Value()) : Value();
}

Value global(Heap& heap, std::string_view name) {
  if (among(function_others, name)) reject("the function {} is not supported", name);
  const std::string_view* const found = among(functions, name);
  return found ? heap.function(*found, Value()) : Value();
}

Value call_function(Heap& heap, const Function& function, Arguments a) {
  const std::string_view name = function.name;
  const Value& self = function.self;
  if (self.is(Kind::text)) return call_text(heap, name, plain(self), a);
  if (self.is(Kind::dict)) return call_dict(heap, name, self, a);
  if (self.is(Kind::loop)) {  // cycle
    if (a.values.empty()) reject("no items for cycling given");
    return a.values[static_cast<std::size_t>(self.loop->index0) % a.values.size()];
  }
  if (self.is_listed()) {
    const Value wanted = a.need("");
    a.done();
    const std::vector<Value>& items = self.list->items;
    const auto same = [&](const Value& v) { return heap.equal(v, wanted); };
    if (name == "count") return Value(static_cast<std::int64_t>(std::count_if(items.begin(), items.end(), same)));
    const auto found = std::find_if(items.begin(), items.end(), same);
    if (found == items.end()) reject("index(): the value is not in the list");
    return Value(static_cast<std::int64_t>(found - items.begin()));
  }
  if (name == "range") return range(heap, a);
  if (name == "raise_exception") {
    const std::string message = heap.str(a.need("message"));
    a.done();
    throw Rejected{message};
  }
  Dict dict = dict_of(heap, a);
  if (name == "dict") return heap.dict(std::move(dict.items));
  for (const auto& [key, value] : dict.items) {
    if (key.is(Kind::text) && key.text->bytes.starts_with('_')) reject("a namespace's attribute cannot begin with '_'");
  }
  return heap.space(std::move(dict));
}

}  // namespace kvmesh::jinja
