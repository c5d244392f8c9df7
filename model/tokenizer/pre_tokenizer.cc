// The steps that cut a text; each hands its pieces to the next.
#include "model/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "model/tokenizer/normalizer.h"
#include "model/utf8.h"

namespace kvmesh {
namespace {

/// Bytes of the first piece when numbers are cut out of `text`.
std::size_t digits_length(std::string_view text, bool one_by_one) {
  const UnicodeClasses& classes = UnicodeClasses::get();
  const Character first = character_at(text, 0);
  const bool numeric = classes.is_numeric(first.code);
  std::size_t end = first.length;
  while (end < text.size() && !(numeric && one_by_one)) {
    const Character next = character_at(text, end);
    if (classes.is_numeric(next.code) != numeric) break;
    end += next.length;
  }
  return end;
}

}  // namespace

void PreTokenizer::operator()(std::string_view text, bool first, const Sink& sink) const {
  if (steps.empty()) sink(text);
  else cut_further(0, text, first, sink);
}

void PreTokenizer::cut_further(std::size_t step_index, std::string_view text, bool first, const Sink& sink) const {
  const Step& step = steps[step_index];
  std::string changed;
  switch (step.kind) {
    case Step::split:
    case Step::digits: break;
    case Step::metaspace:
      changed = replaced(text, " ", step.replacement);
      if (step.prepend && (first || !step.prepend_first_only) && !changed.starts_with(step.replacement)) changed = step.replacement + changed;
      text = changed;
      break;
    case Step::prefix_space:
      if (!text.starts_with(' ')) text = changed = " " + std::string(text);
      break;
  }
  while (!text.empty()) {
    std::size_t length = text.size();
    if (step.kind == Step::split) length = step.pattern->piece_length(text);
    if (step.kind == Step::digits) length = digits_length(text, step.one_by_one);
    if (step.kind == Step::metaspace && step.cut) length = std::min(length, text.find(step.replacement, text.starts_with(step.replacement) ? 1 : 0));
    if (step_index + 1 < steps.size()) cut_further(step_index + 1, text.substr(0, length), first, sink);
    else sink(text.substr(0, length));
    text.remove_prefix(length);
    first = false;
  }
}

}  // namespace kvmesh
