// Values of a chat template, as Python has them, and the heap on which a rendering keeps them: bounded, and freed as a whole.
#pragma once

#include "model/chat/python_text.h"

#include <nlohmann/json.hpp>

#include <deque>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>

namespace kvmesh::jinja {

using Json = nlohmann::ordered_json;

enum class Kind : std::uint8_t { undefined, none, boolean, integer, real, text, list, tuple, range, view, dict, iterator, space, macro, function, loop };

struct Text;
struct List;
struct Dict;
struct Iterator;
struct Space;
struct Macro;
struct Function;
struct Loop;

struct Value {
  Kind kind = Kind::undefined;
  union {
    bool boolean;
    std::int64_t integer = 0;
    double real;
    const Text* text;
    const List* list;  ///< also a tuple's, a range's, a view's
    const Dict* dict;
    Iterator* iterator;
    Space* space;
    const Macro* macro;
    const Function* function;
    Loop* loop;
  };

  Value() = default;
  explicit Value(bool b) : kind(Kind::boolean), boolean(b) {}
  explicit Value(std::int64_t i) : kind(Kind::integer), integer(i) {}
  explicit Value(double d) : kind(Kind::real), real(d) {}
  static Value none() {
    Value v;
    v.kind = Kind::none;
    return v;
  }

  bool is(Kind k) const { return kind == k; }
  bool is_listed() const { return kind >= Kind::list && kind <= Kind::view; }
  bool is_whole() const { return is(Kind::integer) || is(Kind::boolean); }  ///< Python's bool is an int
  bool is_number() const { return is_whole() || is(Kind::real); }
  std::int64_t whole() const { return is(Kind::boolean) ? boolean : integer; }
  double number() const { return is(Kind::real) ? real : static_cast<double>(whole()); }
};

struct Text {
  std::string bytes;
  bool safe;  ///< marked as HTML (Markup in Jinja): may be printed and joined, not worked with
};
struct List {
  std::vector<Value> items;
  const char* view;  ///< a view's name
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  ///< in the order of insertion; keys are hashable in Python
};
using Next = std::function<std::optional<Value>()>;  ///< the next element, as long as there is one
struct Iterator {
  Next next;
  int depth;  ///< iterators that it takes its elements from, one from the other
};
struct Space {
  Dict attributes;
};
/// A method, or a function of its own if `self` is undefined.
struct Function {
  std::string_view name;
  Value self;
};

struct Node;
struct Scope {
  Scope* outer;
  std::vector<std::pair<std::string_view, Value>> names;
  bool kept = false;  ///< a macro was defined in it, which may outlive the block
};
struct Macro {
  const Node* node;
  Scope* scope;
};
/// A running `for`, the template's variable `loop`.
struct Loop {
  Next next;
  std::int64_t length;  ///< -1: not known yet
  std::int64_t index0 = -1;
  std::optional<Value> after{};  ///< taken from `next` already
  Value current{}, before{};
};

/// What a call is given. Taking an argument says that it is known; done() rejects what nobody knew.
class Arguments {
 public:
  std::vector<Value> values;
  std::vector<std::pair<std::string_view, Value>> named;

  /// The argument at this position or of this name. Names are taken in the order of the positions.
  std::optional<Value> take(std::string_view name);
  Value need(std::string_view name);
  void done() const;
  /// The arguments behind the first `n`.
  Arguments without(std::size_t n) const { return {{values.begin() + static_cast<std::ptrdiff_t>(n), values.end()}, named}; }

  Arguments() = default;
  Arguments(std::vector<Value> v, std::vector<std::pair<std::string_view, Value>> n) : values(std::move(v)), named(std::move(n)) {}

 private:
  std::size_t taken_ = 0, taken_named_ = 0;
};

class Heap {
 public:
  /// Counts work: about one for what takes 50 ns.
  void spend(std::size_t steps) {
    if (steps > steps_) reject("the template takes more than {} steps", most_steps);
    steps_ -= steps;
  }

  /// Rejects what will need more memory than is left, before it is made.
  void room_for(std::size_t bytes) const {
    if (bytes > bytes_) reject("the template takes more than {} bytes of memory", most_bytes);
  }

  template <typename T>
  T* make(T object, std::size_t bytes = 0) {
    spend(2 + bytes / 64);
    bytes += sizeof(T) + 16;
    if (bytes > bytes_) reject("the template takes more than {} bytes of memory", most_bytes);
    bytes_ -= bytes;
    return &std::get<std::deque<T>>(objects_).emplace_back(std::move(object));
  }

  Value text(std::string bytes, bool safe = false);
  Value text(std::string_view bytes) { return text(std::string(bytes)); }
  Value list(std::vector<Value> items, Kind kind = Kind::list, const char* view = nullptr);
  Value dict(std::vector<std::pair<Value, Value>> items);
  /// `source` is what `next` takes its elements from.
  Value iterator(Next next, const Value& source);
  Value function(std::string_view name, const Value& self);
  Value space(Dict attributes);
  Value macro(const Node* node, Scope* scope);
  Value loop(Loop loop);
  /// Rejects numbers that Python would keep and this cannot.
  Value from_json(const Json& json);

  /// A dict's value, or null. Rejects a key that Python cannot hash.
  const Value* find(const Dict& dict, const Value& key);
  const Value* find(const Dict& dict, std::string_view key);
  void set(Dict& dict, const Value& key, const Value& value);

  bool equal(const Value& a, const Value& b, int depth = 0);
  /// a < b, where Python has an order.
  bool less(const Value& a, const Value& b, int depth = 0);
  bool contains(const Value& container, const Value& item);
  /// Python's text.replace(old, now, most), most < 0: every one.
  Value replaced(std::string_view text, std::string_view old, std::string_view now, std::int64_t most);
  bool truth(const Value& v);
  /// Elements as Python's iter() gives them; rejects what is none. An iterator goes on where it is.
  Next iterate(const Value& v);
  std::vector<Value> elements(const Value& v);

  /// Python's str, repr and json.dumps.
  std::string str(const Value& v);
  void repr(std::string& out, const Value& v, int depth = 0);
  struct JsonStyle {
    std::string comma = ", ", colon = ": ";
    std::optional<std::string> indent;
    bool ascii = false, sorted = false;
  };
  void to_json(std::string& out, const Value& v, const JsonStyle& style, int depth = 0);

 private:
  static constexpr std::size_t most_steps = 4'000'000, most_bytes = std::size_t{1} << 28;
  std::size_t steps_ = most_steps, bytes_ = most_bytes;
  std::tuple<std::deque<Text>, std::deque<List>, std::deque<Dict>, std::deque<Iterator>, std::deque<Space>, std::deque<Function>, std::deque<Scope>,
             std::deque<Macro>, std::deque<Loop>> objects_;
};

/// "str", "list" and so on, as errors name it.
const char* type_name(const Value& v);
/// The bytes of a text that may be worked with.
const std::string& plain(const Value& v);

}  // namespace kvmesh::jinja
