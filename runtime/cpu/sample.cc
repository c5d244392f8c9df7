// A row's way: its largest logit; top-k, temperature, top-p, min-p, each of which leaves fewer entries; noise for those that are
// left. Thresholds are found without sorting: few entries reach the m-th largest of the blocks' maxima.
#include "runtime/cpu/sample.h"

#include "runtime/cpu/kernels/sample.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <vector>

namespace kvmesh::cpu {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

const SampleKernels& kernels_of(Isa isa) {
  constexpr const SampleKernels* tables[] = {&scalar::sample_kernels, &avx2::sample_kernels, &avx512::sample_kernels, &avx512_bf16::sample_kernels,
                                             &amx::sample_kernels};
  return *tables[static_cast<int>(isa)];
}

struct Weighed {
  std::uint32_t order;  // compares as the values do, -0 equal to 0
  std::int32_t position;
  std::uint64_t weight;
};

std::uint32_t order_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Working memory of one thread.
struct Scratch {
  std::vector<float> maxima, values, scaled, weights, spare;
  std::vector<std::int32_t> ids, kept;
  std::vector<Weighed> weighed, live;
  std::vector<Best> draws;

  void reserve(std::int64_t n) {
    const auto size = static_cast<std::size_t>(n);
    if (values.size() >= size) return;
    for (auto* v : {&maxima, &values, &scaled, &weights, &spare}) v->resize(size);
    for (auto* v : {&ids, &kept}) v->resize(size);
    for (auto* v : {&weighed, &live}) v->reserve(size);
  }
};

/// The smallest order of which entries are taken so that the weights, by descending order and then ascending position, reach `target`
/// ≥ 1, and how many entries of that order are needed. target ≤ the sum of all weights.
struct Cut {
  std::uint32_t order;
  std::uint64_t ties;
};

Cut cut_at(std::vector<Weighed>& live, std::uint64_t target) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    std::uint64_t sums[256] = {};
    for (const Weighed& e : live) sums[(e.order >> shift) & 255] += e.weight;
    std::uint32_t digit = 255;
    for (; digit > 0 && sums[digit] < target; --digit) target -= sums[digit];
    std::erase_if(live, [=](const Weighed& e) { return ((e.order >> shift) & 255) != digit; });
  }
  return {live.front().order, (target + live.front().weight - 1) / live.front().weight};
}

class Row {
 public:
  Row(const SampleKernels& kernels, const float* x, std::int64_t n, const SampleRow& row, ThreadPool& pool, Scratch& scratch)
      : kernels_(kernels), x_(x), n_(n), row_(row), pool_(pool), scratch_(scratch), top_(kernels.largest(x, n)) {
    scratch.reserve(n);
  }

  std::int32_t token() {
    if (row_.forced >= 0 || !(row_.temperature > 0)) return top_.id;
    const float temperature = std::clamp(row_.temperature, FLT_MIN, FLT_MAX);
    if (!std::isfinite(top_.value / temperature)) return top_.id;
    Entries entries{x_, nullptr, n_};
    if (row_.top_k > 0 && row_.top_k < n_) entries = top_k(row_.top_k);
    if (row_.top_p < 1 || row_.min_p > 0) return draw(probable(entries, temperature), 1);
    return draw(entries, temperature);
  }

  /// log_probs [1 + best_ids.size()]: of `token`, then of the best; either span may be empty.
  void report(std::int32_t token, std::span<float> log_probs, std::span<std::int32_t> best_ids) {
    if (!best_ids.empty()) {
      const auto begin = scratch_.ids.begin(), end = begin + superset(x_, n_, std::ssize(best_ids), scratch_.ids.data());
      std::partial_sort_copy(begin, end, best_ids.begin(), best_ids.end(), [this](std::int32_t a, std::int32_t b) {
        return logit(a) != logit(b) ? logit(a) > logit(b) : a < b;
      });
    }
    if (log_probs.empty()) return;
    const double log_sum = top_.value > -inf ? log_of(kernels_.weigh(x_, n_, 1, top_.value, nullptr, nullptr)) : 0;
    const auto log_prob = [&](std::int32_t id) {
      const double below = top_.value > -inf ? static_cast<double>(logit(id)) - static_cast<double>(top_.value) : -HUGE_VAL;
      return static_cast<float>(below - log_sum);
    };
    log_probs[0] = log_prob(token);
    std::transform(best_ids.begin(), best_ids.end(), log_probs.begin() + 1, log_prob);
  }

 private:
  /// Some entries of the row, by ascending id; ids null: all of them.
  struct Entries {
    const float* values;
    const std::int32_t* ids;
    std::int64_t n;
  };

  float logit(std::int32_t id) const { return std::isnan(x_[id]) ? -inf : std::min(x_[id], FLT_MAX); }

  /// Natural logarithm of a sum of weights, at least one of which is 1: log_f32, and what rounding the sum to float32 left.
  static double log_of(std::uint64_t sum) {
    const double s = static_cast<double>(sum) * fixed_point_unit;
    const float rounded = static_cast<float>(s);
    return static_cast<double>(log_f32(rounded)) + (s - static_cast<double>(rounded)) / static_cast<double>(rounded);
  }

  /// Positions of every x that is among the m largest or equals one of them, and of some more; their values go to scratch.spare.
  std::int64_t superset(const float* x, std::int64_t n, std::int64_t m, std::int32_t* positions) {
    const std::int64_t blocks = (n + sample_block - 1) / sample_block;
    float bound = -inf;
    if (m <= blocks) {
      float* maxima = scratch_.maxima.data();
      kernels_.block_maxima(x, n, maxima);
      std::nth_element(maxima, maxima + m - 1, maxima + blocks, std::greater<>());
      bound = maxima[m - 1];
    }
    return kernels_.at_least(x, n, bound, scratch_.spare.data(), positions);
  }

  /// The entries that are no smaller than the k-th largest.
  Entries top_k(std::int64_t k) {
    const std::int64_t found = superset(x_, n_, k, scratch_.kept.data());
    float* values = scratch_.values.data();
    const float* spare = scratch_.spare.data();
    std::copy_n(spare, found, values);
    std::nth_element(values, values + k - 1, values + found, std::greater<>());
    const float kth = values[k - 1];
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < found; ++i) {
      if (!(spare[i] >= kth)) continue;
      values[n] = spare[i];
      scratch_.ids[n++] = scratch_.kept[i];
    }
    return {values, scratch_.ids.data(), n};
  }

  /// What top-p and min-p leave, divided by the temperature.
  Entries probable(const Entries& from, float temperature) {
    float *scaled = scratch_.scaled.data(), *weights = scratch_.weights.data();
    const std::uint64_t sum = kernels_.weigh(from.values, from.n, temperature, top_.value / temperature, scaled, weights);
    std::int32_t* kept = scratch_.kept.data();
    std::int64_t n = 0;
    const float least = std::min(row_.min_p, 1.0f);
    if (row_.top_p < 1) {
      n = top_p(from.n, sum, top_.value / temperature);
      if (least > 0) n = std::remove_if(kept, kept + n, [=](std::int32_t i) { return weights[i] < least; }) - kept;
    } else {
      n = kernels_.at_least(weights, from.n, least, scratch_.spare.data(), kept);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      scratch_.values[i] = scaled[kept[i]];
      scratch_.ids[i] = from.ids ? from.ids[kept[i]] : kept[i];
    }
    return {scratch_.values.data(), scratch_.ids.data(), n};
  }

  /// Positions, to scratch.kept, of the smallest set of the largest scaled values whose weights reach top_p · sum.
  std::int64_t top_p(std::int64_t n, std::uint64_t sum, float top) {
    constexpr float tries[] = {4, 8, 16};  // how far below the top: a trained model's set is seldom deeper
    const double wanted = std::ceil(static_cast<double>(row_.top_p) * static_cast<double>(sum));
    const std::uint64_t target = std::clamp(static_cast<std::uint64_t>(std::max(wanted, 1.0)), std::uint64_t{1}, sum);
    const auto reaches = [&](float least) { return gather(kernels_.at_least(scratch_.scaled.data(), n, least, scratch_.spare.data(), scratch_.kept.data())) >= target; };
    if (std::none_of(std::begin(tries), std::end(tries), [&](float depth) { return reaches(top - depth); })) reaches(-inf);
    scratch_.live = scratch_.weighed;
    auto [order, ties] = cut_at(scratch_.live, target);
    std::int64_t kept = 0;
    for (const Weighed& e : scratch_.weighed) {
      if (e.order > order || (e.order == order && ties > 0 && ties--)) scratch_.kept[kept++] = e.position;
    }
    return kept;
  }

  /// scratch.weighed = the scaled values at the first `n` positions of scratch.kept; returns their weights' sum.
  std::uint64_t gather(std::int64_t n) {
    std::uint64_t sum = 0;
    scratch_.weighed.resize(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int32_t position = scratch_.kept[i];
      scratch_.weighed[i] = {order_of(scratch_.scaled[position]), position, fixed_point(scratch_.weights[position])};
      sum += scratch_.weighed[i].weight;
    }
    return sum;
  }

  std::int32_t draw(const Entries& from, float temperature) {
    constexpr std::int64_t least = 4096;  // entries that are worth another thread
    const auto id_of = [&](std::int64_t i) { return from.ids ? from.ids[i] : static_cast<std::int32_t>(i); };
    const Best top = from.ids ? kernels_.largest(from.values, from.n) : top_;
    const float floor = top.value / temperature + gumbel(row_.key, row_.first_count + static_cast<std::uint64_t>(id_of(top.id)));
    const std::int64_t grain = std::max(least, (from.n + pool_.size() - 1) / pool_.size());
    auto& draws = scratch_.draws;
    draws.assign(static_cast<std::size_t>((from.n + grain - 1) / grain), {-inf, std::numeric_limits<std::int32_t>::max()});
    pool_.parallel_for(from.n, grain, [&](std::int64_t begin, std::int64_t end) {
      draws[begin / grain] = kernels_.draw(from.values + begin, from.ids ? from.ids + begin : nullptr, end - begin, id_of(begin), temperature,
                                           row_.key, row_.first_count, floor);
    });
    return std::min_element(draws.begin(), draws.end(), [](const Best& a, const Best& b) { return a.value != b.value ? a.value > b.value : a.id < b.id; })->id;
  }

  const SampleKernels& kernels_;
  const float* x_;  // [n_]
  std::int64_t n_;
  const SampleRow& row_;
  ThreadPool& pool_;
  Scratch& scratch_;
  Best top_;
};

}  // namespace

void sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out, ThreadPool& pool, Isa isa) {
  const std::int64_t count = std::ssize(rows), v = logits.size(1), best = out.top_ids.defined() ? out.top_ids.size(1) : 0;
  check(v > 0 && v < (1 << 20), "sampling: a vocabulary of {} entries; 1 to {} are possible", v, (1 << 20) - 1);
  check(best <= v, "logprobs: {} best of a vocabulary of {} entries", best, v);
  for (const SampleRow& row : rows) check(row.forced < v, "token {} lies outside the vocabulary of {} entries", row.forced, v);
  const auto* x = logits.data<float>();
  auto* tokens = out.tokens.data<std::int32_t>();
  float* log_probs = out.log_probs.defined() ? out.log_probs.data<float>() : nullptr;
  std::int32_t* best_ids = best > 0 ? out.top_ids.data<std::int32_t>() : nullptr;

  const auto do_rows = [&](std::int64_t begin, std::int64_t end) {
    thread_local Scratch scratch;
    for (std::int64_t r = begin; r < end; ++r) {
      Row row(kernels_of(isa), x + r * v, v, rows[r], pool, scratch);
      tokens[r] = row.token();
      row.report(rows[r].forced >= 0 ? rows[r].forced : tokens[r], {log_probs + (log_probs ? r * (1 + best) : 0), static_cast<std::size_t>(log_probs ? 1 + best : 0)},
                 {best_ids + (best_ids ? r * best : 0), static_cast<std::size_t>(best)});
    }
  };
  if (count >= pool.size()) {
    pool.parallel_for(count, 1, do_rows);
  } else {
    do_rows(0, count);  // each row's noise is shared out instead
  }
}

}  // namespace kvmesh::cpu
