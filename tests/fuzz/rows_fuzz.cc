// An input line, of generate and of score, with and without a tokenizer, as a conversation. A bad one never throws: its reason comes back in a line that is JSON.
#include "launch/job/rows.h"

#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

#include <algorithm>

namespace {

using namespace kvmesh;

void check_line(const std::string& line) { fuzz::require(line.find('\n') == std::string::npos && Json::parse(line).is_object()); }

void check_ids(const std::vector<std::int32_t>& ids) {
  fuzz::require(!ids.empty() && std::all_of(ids.begin(), ids.end(), [](std::int32_t id) { return id >= 0 && id < 1002; }));
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Tokenizer tokenizer(KVMESH_SOURCE_DIR "/tests/fixtures/small.tiktoken");
  static const ModelConfig config = parse_config(R"({"seqlen": 64, "vocab_size": 1002, "d_emb": 8, "num_layers": 1, "q_heads": 2, "kv_heads": 1})", "");
  static const RowDefaults defaults;
  const std::string_view line = fuzz::text_of(data, size);
  static const test::Scratch scratch;
  static const Chat chat({.on = true, .file = scratch.write("t.jinja", "{% for m in messages %}{{ m.role + m.content }}{% endfor %}{{ tools|tojson if tools }}{{ x }}"), .system = "S", .day = ""}, scratch.path(), "2026-07-26");
  const RowContext contexts[] = {{defaults, config, &tokenizer}, {defaults, config, nullptr}, {defaults, config, &tokenizer, &chat}};
  for (const RowContext& context : contexts) {
    const InputRow in = parse_row(line, 7, context);
    fuzz::require(in.text.index == 7);
    if (in.text.error.empty()) {
      const Row& row = in.row;
      check_ids(*row.prompt);
      fuzz::require(row.prompt->size() < 64 && row.max_new_tokens > 0 && row.top_k >= 0 && row.top_p > 0 && row.top_p <= 1 && row.min_p >= 0 && row.min_p <= 1);
      Completion completion;
      completion.tokens = *row.prompt;
      completion.bytes = line;
      check_line(completion_line(in.text, completion, true, GenerateOptions{}, 0));
    } else {
      check_line(error_line(in.text));
    }

    const ScoreInputRow score = parse_score_row(line, 7, context);
    if (score.text.error.empty()) {
      check_ids(score.prompt);
      check_ids(score.completion);
      fuzz::require(score.prompt.size() + score.completion.size() <= 64);
      check_line(score_line(score.text, -1.5, 2, false));
    } else {
      check_line(error_line(score.text));
    }
  }
  return 0;
}
