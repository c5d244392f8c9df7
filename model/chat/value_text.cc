// Values as text: Python's str, repr and json.dumps.
#include "model/chat/value.h"
#include "model/utf8.h"

#include <algorithm>
#include <cmath>

namespace kvmesh::jinja {
namespace {

constexpr int most_depth = 300;

std::string real_text(double d) {
  if (!std::isfinite(d)) return std::isnan(d) ? "nan" : d > 0 ? "inf" : "-inf";
  std::string s = fmt::format("{}", d);
  return s.find_first_of(".e") == s.npos ? s + ".0" : s;
}

std::string json_real(double d) { return std::isfinite(d) ? real_text(d) : std::isnan(d) ? "NaN" : d > 0 ? "Infinity" : "-Infinity"; }

void json_text(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = character_at(text, at);
    const auto code = static_cast<std::uint32_t>(c);
    constexpr std::string_view escaped = "\"\\\n\r\t\f\b", letters = "\"\\nrtfb";
    if (const std::size_t e = c < 0x80 ? escaped.find(static_cast<char>(c)) : escaped.npos; e != escaped.npos) out += {'\\', letters[e]};
    else if (c < 0x20 || (ascii && c > 0x7e && c < 0x10000 && c != 0x7f)) out += fmt::format("\\u{:04x}", code);
    else if (ascii && c >= 0x10000) out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + (code & 0x3ff));
    else out += text.substr(at, bytes);
    at += bytes;
  }
  out += '"';
}

std::string json_key(const Value& key) {
  switch (key.kind) {
    case Kind::text: return key.text->bytes;
    case Kind::integer: return std::to_string(key.integer);
    case Kind::real: return json_real(key.real);
    case Kind::boolean: return key.boolean ? "true" : "false";
    case Kind::none: return "null";
    default: reject("keys of JSON cannot be {}", type_name(key));
  }
}

}  // namespace

std::string Heap::str(const Value& v) {
  if (v.is(Kind::undefined)) return "";
  if (v.is(Kind::text)) return spend(v.text->bytes.size() / 64), v.text->bytes;
  std::string out;
  repr(out, v);
  return out;
}

void Heap::repr(std::string& out, const Value& v, int depth) {
  spend(1);
  if (depth > most_depth) reject("values are nested too deeply");
  if (out.size() > most_bytes / 8) reject("the template makes a text that is too long");
  switch (v.kind) {
    case Kind::undefined: out += "Undefined"; return;
    case Kind::none: out += "None"; return;
    case Kind::boolean: out += v.boolean ? "True" : "False"; return;
    case Kind::integer: out += std::to_string(v.integer); return;
    case Kind::real: out += real_text(v.real); return;
    case Kind::text:
      spend(v.text->bytes.size() / 8);
      out += literal_of(plain(v));
      return;
    case Kind::list:
    case Kind::tuple:
    case Kind::view: {
      const std::vector<Value>& items = v.list->items;
      if (v.is(Kind::view)) out += fmt::format("{}(", v.list->view);
      out += v.is(Kind::tuple) ? '(' : '[';
      for (std::size_t i = 0; i < items.size(); ++i) {
        if (i) out += ", ";
        repr(out, items[i], depth + 1);
      }
      out += v.is(Kind::tuple) ? (items.size() == 1 ? ",)" : ")") : "]";
      if (v.is(Kind::view)) out += ')';
      return;
    }
    case Kind::dict: {
      out += '{';
      bool first = true;
      for (const auto& [key, value] : v.dict->items) {
        if (!std::exchange(first, false)) out += ", ";
        repr(out, key, depth + 1);
        out += ": ";
        repr(out, value, depth + 1);
      }
      out += '}';
      return;
    }
    default: reject("printing a {} is not supported", type_name(v));
  }
}

void Heap::to_json(std::string& out, const Value& v, const JsonStyle& style, int depth) {
  spend(1);
  if (depth > most_depth) reject("values are nested too deeply");
  if (out.size() > most_bytes / 8) reject("the template makes a text that is too long");
  const auto line = [&](int levels) {
    if (!style.indent) return;
    out += '\n';
    for (int i = 0; i < levels; ++i) out += *style.indent;
    spend(style.indent->size() * static_cast<std::size_t>(levels) / 64);
  };
  switch (v.kind) {
    case Kind::none: out += "null"; return;
    case Kind::boolean: out += v.boolean ? "true" : "false"; return;
    case Kind::integer: out += std::to_string(v.integer); return;
    case Kind::real: out += json_real(v.real); return;
    case Kind::text:
      spend(v.text->bytes.size() / 8);
      json_text(out, v.text->bytes, style.ascii);
      return;
    case Kind::list:
    case Kind::tuple: {
      const std::vector<Value>& items = v.list->items;
      out += '[';
      for (std::size_t i = 0; i < items.size(); ++i) {
        if (i) out += style.comma;
        line(depth + 1);
        to_json(out, items[i], style, depth + 1);
      }
      if (!items.empty()) line(depth);
      out += ']';
      return;
    }
    case Kind::dict: {
      std::vector<std::pair<Value, Value>> items = v.dict->items;
      spend(items.size());
      if (style.sorted) std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) { return less(a.first, b.first); });
      out += '{';
      bool first = true;
      for (const auto& [key, value] : items) {
        if (!std::exchange(first, false)) out += style.comma;
        line(depth + 1);
        json_text(out, json_key(key), style.ascii);
        out += style.colon;
        to_json(out, value, style, depth + 1);
      }
      if (!items.empty()) line(depth);
      out += '}';
      return;
    }
    default: reject("Object of type {} is not JSON serializable", type_name(v));
  }
}

}  // namespace kvmesh::jinja
