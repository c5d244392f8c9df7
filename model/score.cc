// Rows are cut into slices, slices are packed into passes; every position before a completion token asks for its logits.
#include "model/score.h"

#include <algorithm>

namespace kvmesh {

struct Scorer::Pass {
  std::vector<std::int32_t> tokens, wanted;
  std::vector<Segment> segments;
  std::vector<SampleRow> draws;       // one for each of `wanted`
  std::vector<std::size_t> rows;      // whose score it adds to
};

Scorer::Scorer(const Gpt& gpt)
    : gpt_(gpt),
      cache_(gpt.device(), gpt.config(), gpt.dtype(), places, gpt.config().seqlen),
      workspace_(gpt, pass_tokens),
      logits_(gpt.device().empty(DType::f32, {pass_tokens, gpt.config().vocab_size})) {}

std::vector<Score> Scorer::run(std::span<const ScoreRow> rows) {
  std::vector<Score> scores(rows.size());
  Pass pass;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const ScoreRow& row = rows[r];
    std::vector<std::int32_t> all(row.prompt.begin(), row.prompt.end());
    all.insert(all.end(), row.completion.begin(), row.completion.end());
    const auto prompt = static_cast<std::int64_t>(row.prompt.size()), fed = static_cast<std::int64_t>(all.size()) - 1;  // the last token is only predicted
    for (std::int64_t at = 0; at < fed;) {
      if (std::ssize(pass.tokens) == pass_tokens || std::ssize(pass.segments) == places) flush(pass, scores);
      const std::int64_t count = std::min(fed - at, pass_tokens - std::ssize(pass.tokens));
      pass.segments.push_back({gpt_.config().seqlen, gpt_.config().seqlen + at, static_cast<std::int32_t>(r % places), static_cast<std::int32_t>(count),
                               static_cast<std::int32_t>(pass.tokens.size())});
      for (std::int64_t i = at; i < at + count; ++i) {
        if (i + 1 >= prompt) {
          pass.wanted.push_back(static_cast<std::int32_t>(pass.tokens.size()));
          pass.draws.emplace_back().forced = all[static_cast<std::size_t>(i) + 1];
          pass.rows.push_back(r);
        }
        pass.tokens.push_back(all[static_cast<std::size_t>(i)]);
      }
      at += count;
    }
  }
  flush(pass, scores);
  return scores;
}

void Scorer::flush(Pass& pass, std::vector<Score>& scores) {
  if (pass.tokens.empty()) return;
  const auto n = static_cast<std::int64_t>(pass.wanted.size());
  const Tensor logits = logits_.slice(0, n);
  gpt_.forward(pass.tokens, pass.segments, pass.wanted, cache_, workspace_, logits);
  if (n > 0) {
    Device& device = gpt_.device();
    const SampleOut out{device.empty(DType::i32, {n}), device.empty(DType::f32, {n, 1}), Tensor()};
    device.sample(logits, pass.draws, out);
    const Tensor tokens = host_tensor(DType::i32, {n}), log_probs = host_tensor(DType::f32, {n, 1});
    device.copy(out.tokens, tokens);
    device.copy(out.log_probs, log_probs);
    for (std::size_t i = 0; i < pass.rows.size(); ++i) {
      Score& score = scores[pass.rows[i]];
      score.log_likelihood += static_cast<double>(log_probs.data<float>()[i]);
      score.greedy = score.greedy && tokens.data<std::int32_t>()[i] == pass.draws[i].forced;
    }
  }
  pass = {};
}

}  // namespace kvmesh
