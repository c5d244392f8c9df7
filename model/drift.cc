// Sequences go through both models in pieces whose logits fit a small buffer; what is compared is computed in float64.
#include "model/drift.h"

#include "runtime/noise.h"

#include <algorithm>
#include <cmath>

namespace kvmesh {
namespace {

constexpr std::int64_t piece = 64;  // tokens whose logits are there at once

/// One model's logits of a sequence, piece by piece.
class Reader {
 public:
  explicit Reader(const Gpt& gpt)
      : gpt_(gpt),
        cache_(gpt.device(), gpt.config(), gpt.dtype(), 1, gpt.config().seqlen),
        workspace_(gpt, piece),
        logits_(gpt.device().empty(DType::f32, {piece, gpt.config().vocab_size})),
        host_(host_tensor(DType::f32, {piece, gpt.config().vocab_size})) {}

  /// f32 [count, V] of tokens [at, at + count); those before have been read.
  const float* read(std::span<const std::int32_t> tokens, std::int64_t at, std::int64_t count) {
    const std::int64_t start = gpt_.config().seqlen;
    const Segment run{.start = start, .begin = start + at, .place = 0, .count = static_cast<std::int32_t>(count), .offset = 0};
    std::vector<std::int32_t> wanted(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = static_cast<std::int32_t>(i);
    gpt_.forward(tokens.subspan(static_cast<std::size_t>(at), wanted.size()), std::span(&run, 1), wanted, cache_, workspace_, logits_.slice(0, count));
    gpt_.device().copy(logits_.slice(0, count), host_.slice(0, count));
    return host_.data<float>();
  }

 private:
  const Gpt& gpt_;
  KvCache cache_;
  Gpt::Workspace workspace_;
  Tensor logits_, host_;
};

/// Logarithm of the sum of exponentials.
double log_sum(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - most);
  return most + std::log(sum);
}

}  // namespace

Drift drift_between(const Gpt& first, const Gpt& other, std::span<const std::vector<std::int32_t>> sequences) {
  const auto vocab = static_cast<std::size_t>(first.config().vocab_size);
  Reader first_reader(first), other_reader(other);
  Drift drift;
  for (const std::vector<std::int32_t>& sequence : sequences) {
    const std::int64_t fed = std::ssize(sequence) - 1;  // the last token is only predicted
    check(fed >= 1 && fed < first.config().seqlen, "a sequence of {} tokens: 2 to {} can be compared", fed + 1, first.config().seqlen);
    for (std::int64_t at = 0; at < fed; at += piece) {
      const std::int64_t count = std::min(piece, fed - at);
      const float *a = first_reader.read(sequence, at, count), *b = other_reader.read(sequence, at, count);
      for (std::int64_t i = 0; i < count; ++i, a += vocab, b += vocab) {
        const std::span x(a, vocab), y(b, vocab);
        const double x_sum = log_sum(x), y_sum = log_sum(y);
        const auto next = static_cast<std::size_t>(sequence[static_cast<std::size_t>(at + i + 1)]);
        const double difference = std::abs((x[next] - x_sum) - (y[next] - y_sum));
        double divergence = 0;
        for (std::size_t v = 0; v < vocab; ++v) divergence += std::exp(x[v] - x_sum) * ((x[v] - x_sum) - (y[v] - y_sum));
        ++drift.tokens;
        drift.mean += difference;
        drift.most = std::max(drift.most, difference);
        drift.divergence += divergence;
        drift.same_top += std::max_element(x.begin(), x.end()) - x.begin() == std::max_element(y.begin(), y.end()) - y.begin();
      }
    }
  }
  if (drift.tokens > 0) {
    for (double* sum : {&drift.mean, &drift.divergence, &drift.same_top}) *sum /= static_cast<double>(drift.tokens);
  }
  return drift;
}

std::vector<std::vector<std::int32_t>> random_sequences(std::int64_t count, std::int64_t tokens, std::int64_t vocab_size, std::uint32_t seed) {
  std::vector<std::vector<std::int32_t>> sequences(static_cast<std::size_t>(count));
  std::uint64_t drawn = 0;
  for (auto& sequence : sequences) {
    while (std::ssize(sequence) < tokens) sequence.push_back(static_cast<std::int32_t>(std::uint64_t{noise_bits(noise_key(seed), drawn++)} * static_cast<std::uint64_t>(vocab_size) >> 32));
  }
  return sequences;
}

}  // namespace kvmesh
