// Input lines to rows, and finished rows to output lines (contract, section 4).
#pragma once

#include "launch/job/chat.h"
#include "launch/options.h"

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

namespace kvmesh {

using Json = nlohmann::ordered_json;

/// What of an input row comes back in its output lines.
struct RowText {
  std::int64_t index = 0;
  Json id;           ///< null: none given
  Json prompt;       ///< null: none given
  Json passed_through = Json::object();  ///< fields that kvmesh does not know
  std::string error; ///< not empty: the row cannot be served, and why
};

/// A parsed input line: `row` is complete but for `sample`, and only meaningful if text.error is empty.
struct InputRow {
  RowText text;
  Row row;
};

/// What rows are checked against and filled up from.
struct RowContext {
  const RowDefaults& defaults;
  const ModelConfig& config;
  const Tokenizer* tokenizer;  ///< null: rows must have "tokens"
  const Chat* chat = nullptr;  ///< null: a prompt is taken as it is

  std::int32_t pad() const;                      ///< -1 if there is none
  std::vector<std::int32_t> stop_ids() const;    ///< tokens that end a text

 private:
  std::int32_t special(const char* name) const;
};

/// Never throws for bad input: the reason is in text.error.
InputRow parse_row(std::string_view line, std::int64_t index, const RowContext& context);

/// A row of "prompt"/"tokens" and "completion"/"completion_tokens", for scoring.
struct ScoreInputRow {
  RowText text;
  std::vector<std::int32_t> prompt, completion;
};
ScoreInputRow parse_score_row(std::string_view line, std::int64_t index, const RowContext& context);

/// One line, without the line feed.
std::string error_line(const RowText& text);
std::string completion_line(const RowText& text, const Completion& completion, bool with_text, const GenerateOptions& options, std::int64_t sample);
std::string score_line(const RowText& text, double log_likelihood, std::int64_t tokens, bool greedy);

}  // namespace kvmesh
