// Normalizing a text. utf8proc composes; the table of what NFC may change says which parts of a text it sees.
#include "model/tokenizer/normalizer.h"

#include <algorithm>
#include <array>
#include <iterator>

#include <utf8proc.h>

#include "model/tokenizer/unicode_classes.h"
#include "model/utf8.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

int combining_class(utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; }

void append_composed(std::string_view text, std::string& out) {
  constexpr utf8proc_option_t decompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  constexpr utf8proc_option_t compose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<utf8proc_int32_t> codes;
  for (std::size_t at = 0; at < text.size();) {
    const Character next = character_at(text, at);
    std::array<utf8proc_int32_t, 8> parts;  // no character has more than 4
    const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(next.code), parts.data(), std::ssize(parts), decompose, nullptr);
    check(count >= 0 && count <= std::ssize(parts), "U+{:04X} cannot be decomposed for NFC", static_cast<std::uint32_t>(next.code));
    codes.insert(codes.end(), parts.begin(), parts.begin() + count);
    at += next.length;
  }
  // utf8proc's own way to order combining characters takes n² time for n in a row.
  for (auto begin = codes.begin(); begin != codes.end();) {
    const auto end = std::find_if(begin, codes.end(), [](utf8proc_int32_t code) { return combining_class(code) == 0; });
    std::stable_sort(begin, end, [](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); });
    begin = end == codes.end() ? end : end + 1;
  }
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(codes.data(), std::ssize(codes), compose);
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    std::array<utf8proc_uint8_t, 4> bytes;
    const utf8proc_ssize_t length = utf8proc_encode_char(codes[static_cast<std::size_t>(i)], bytes.data());
    out.append(bytes.begin(), bytes.begin() + length);
  }
}

}  // namespace

std::string nfc(std::string_view text) {
  constexpr char32_t first_combining = 0x300;  // texts of characters below are composed
  const UnicodeClasses& classes = UnicodeClasses::get();
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    bool combining = false;
    while (at < text.size()) {
      const Character next = character_at(text, at);
      if (!classes.is_nfc_active(next.code)) break;
      combining |= next.code >= first_combining;
      at += next.length;
    }
    if (combining) append_composed(text.substr(begin, at - begin), out);
    else out.append(text.substr(begin, at - begin));
    if (at < text.size()) {
      const std::size_t length = character_at(text, at).length;
      out.append(text.substr(at, length));
      at += length;
    }
  }
  return out;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (std::size_t found; (found = text.find(from)) != text.npos; text.remove_prefix(found + from.size())) {
    out.append(text.substr(0, found));
    out.append(to);
  }
  out.append(text);
  return out;
}

std::string Normalizer::operator()(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps) {
    switch (step.kind) {
      case Step::nfc: out = nfc(out); break;
      case Step::prepend: out = step.to + out; break;
      case Step::replace: out = replaced(out, step.from, step.to); break;
    }
  }
  return out;
}

}  // namespace kvmesh
