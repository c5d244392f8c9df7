// A block draws one row's token. The rules, and every number that decides something, are those of runtime/cpu/sample.cc: the same float32 operations,
// sums of whole numbers, comparisons; so the two devices draw the same token from the same logits. Thresholds are found by radix select: eight
// bits of the key a pass, the weights of the entries that share the bits so far in a histogram.
#include "runtime/cuda/device_code.h"

#include <cfloat>

namespace kvmesh::cuda {
namespace {

constexpr unsigned threads = 512;
constexpr int warps = threads / 32;
using Word = unsigned long long;

/// NaN counts as -inf, +inf as the largest float.
__device__ __forceinline__ float clean(float x) { return x >= -infinity ? (x < FLT_MAX ? x : FLT_MAX) : -infinity; }

/// Compares as the values do, -0 equal to 0.
__device__ __forceinline__ std::uint32_t order_of(float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Larger for a larger value, among equals for a lower id.
constexpr int id_bits = 20;
__device__ __forceinline__ Word key_of(float value, std::int64_t id) {
  return static_cast<Word>(order_of(value)) << id_bits | (((1u << id_bits) - 1) - static_cast<std::uint32_t>(id));
}
__device__ __forceinline__ std::int32_t id_of(Word key) { return static_cast<std::int32_t>(((1u << id_bits) - 1) - (key & ((1u << id_bits) - 1))); }

/// Natural logarithm of a sum of weights: log_f32, and what rounding the sum to float32 left.
__device__ double log_of(Word sum) {
  const double s = static_cast<double>(sum) * fixed_point_unit;
  const float rounded = static_cast<float>(s);
  return static_cast<double>(log_f32(rounded)) + (s - static_cast<double>(rounded)) / static_cast<double>(rounded);
}

class Row {
 public:
  __device__ Row(const float* x, std::int64_t n, const SampleRow& row) : x_(x), n_(n), row_(row), lane_(static_cast<int>(threadIdx.x % 32)), warp_(static_cast<int>(threadIdx.x / 32)) {
    top_id_ = id_of(largest_below(~Word{0}, [&](std::int64_t i) { return key_of(read(i), i); }));
    top_ = read(top_id_);
  }

  __device__ std::int32_t token() {
    if (row_.forced >= 0 || !(row_.temperature > 0)) return top_id_;
    const float temperature = row_.temperature < FLT_MIN ? FLT_MIN : row_.temperature < FLT_MAX ? row_.temperature : FLT_MAX;
    const float top = top_ / temperature;
    if (!(top >= -FLT_MAX && top <= FLT_MAX)) return top_id_;
    const auto scaled = [&](std::int64_t i) { return read(i) / temperature; };

    Word kth = 0;
    if (row_.top_k > 0 && row_.top_k < n_) {
      kth = select<32>([&](std::int64_t i) { return Word{order_of(read(i))}; }, [](std::int64_t) { return Word{1}; }, static_cast<Word>(row_.top_k));
    }
    const auto in_top_k = [&](std::int64_t i) { return order_of(read(i)) >= kth; };
    Word cut = 0;
    if (row_.top_p < 1) {
      const auto weight = [&](std::int64_t i) { return in_top_k(i) ? static_cast<Word>(fixed_point(exp_f32(scaled(i) - top))) : Word{0}; };
      const Word sum = sum_of(weight);
      const double wanted = ceil(static_cast<double>(row_.top_p) * static_cast<double>(sum));
      const Word target = wanted > 1 ? static_cast<Word>(wanted) : Word{1};
      cut = select<56>([&](std::int64_t i) { return key_of(scaled(i), i); }, weight, target < sum ? target : sum);
    }
    const float least = row_.min_p < 1 ? row_.min_p : 1.0f;
    const float floor = top + gumbel(row_.key, row_.first_count + static_cast<std::uint64_t>(top_id_));
    return id_of(largest_below(~Word{0}, [&](std::int64_t i) {
      const float s = scaled(i);
      if (!(s + gumbel_bound >= floor) || !in_top_k(i) || key_of(s, i) < cut || (least > 0 && exp_f32(s - top) < least)) return Word{0};
      return key_of(s + gumbel(row_.key, row_.first_count + static_cast<std::uint64_t>(i)), i);
    }));
  }

  /// log_probs [1 + best]: of `token`, then of the best; either may be null.
  __device__ void report(std::int32_t token, float* log_probs, std::int32_t* best_ids, std::int64_t best) {
    double log_sum = 0;
    if (log_probs && top_ > -infinity) log_sum = log_of(sum_of([&](std::int64_t i) { return static_cast<Word>(fixed_point(exp_f32(read(i) - top_))); }));
    const auto write = [&](std::int64_t at, std::int32_t id) {
      if (!log_probs || threadIdx.x != 0) return;
      const double below = top_ > -infinity ? static_cast<double>(read(id)) - static_cast<double>(top_) : -__builtin_huge_val();
      log_probs[at] = static_cast<float>(below - log_sum);
    };
    write(0, token);
    Word previous = ~Word{0};
    for (std::int64_t j = 0; j < best; ++j) {
      previous = largest_below(previous, [&](std::int64_t i) { return key_of(read(i), i); });
      write(1 + j, id_of(previous));
      if (threadIdx.x == 0) best_ids[j] = id_of(previous);
    }
  }

 private:
  __device__ float read(std::int64_t i) const { return clean(x_[i]); }

  /// The same on every thread: what `both` makes of all threads' values.
  template <typename Both>
  __device__ Word of_block(Word x, const Both& both) {
    __shared__ Word parts[warps];
    for (int lanes = 16; lanes > 0; lanes /= 2) x = both(x, __shfl_xor_sync(all_lanes, x, lanes));
    __syncthreads();  // whoever reads the parts of the call before
    if (lane_ == 0) parts[warp_] = x;
    __syncthreads();
    x = parts[0];
    for (int w = 1; w < warps; ++w) x = both(x, parts[w]);
    return x;
  }

  /// The largest key(i) that is below `bound`; 0 if there is none.
  template <typename Key>
  __device__ Word largest_below(Word bound, const Key& key) {
    Word best = 0;
    for (std::int64_t i = threadIdx.x; i < n_; i += threads) {
      const Word k = key(i);
      if (k < bound && k > best) best = k;
    }
    return of_block(best, [](Word a, Word b) { return a > b ? a : b; });
  }

  template <typename Weight>
  __device__ Word sum_of(const Weight& weight) {
    Word sum = 0;
    for (std::int64_t i = threadIdx.x; i < n_; i += threads) sum += weight(i);
    return of_block(sum, [](Word a, Word b) { return a + b; });
  }

  /// The largest key such that the weights of the entries with this key or a larger one reach `target`, 1 ≤ target ≤ the sum of all.
  template <int bits, typename Key, typename Weight>
  __device__ Word select(const Key& key, const Weight& weight, Word target) {
    __shared__ Word sums[256];
    __shared__ Word found[2];  // digit, what is left of the target
    Word prefix = 0;
    for (int shift = bits - 8; shift >= 0; shift -= 8) {
      __syncthreads();
      for (unsigned i = threadIdx.x; i < 256; i += threads) sums[i] = 0;
      __syncthreads();
      for (std::int64_t i = threadIdx.x; i < n_; i += threads) {
        const Word k = key(i);
        if ((k >> shift) >> 8 != prefix) continue;
        const Word w = weight(i);
        if (w > 0) atomicAdd(&sums[(k >> shift) & 255], w);
      }
      __syncthreads();
      if (warp_ == 0) {  // lane l has the eight digits from 255 - 8 l down
        Word own = 0;
        for (int d = 0; d < 8; ++d) own += sums[255 - 8 * lane_ - d];
        Word up_to = own;
        for (int lanes = 1; lanes < 32; lanes *= 2) {
          const Word before = __shfl_up_sync(all_lanes, up_to, lanes);
          if (lane_ >= lanes) up_to += before;
        }
        if (up_to >= target && up_to - own < target) {
          Word left = target - (up_to - own);
          int digit = 255 - 8 * lane_;
          for (; sums[digit] < left; --digit) left -= sums[digit];
          found[0] = static_cast<Word>(digit);
          found[1] = left;
        }
      }
      __syncthreads();
      prefix = prefix << 8 | found[0];
      target = found[1];
    }
    return prefix;
  }

  const float* x_;  // [n_]
  std::int64_t n_;
  const SampleRow& row_;
  const int lane_, warp_;
  std::int32_t top_id_ = 0;
  float top_ = 0;
};

__global__ void __launch_bounds__(threads) sample_kernel(SampleTask t) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t r = blockIdx.x;
  const SampleRow options = t.rows[r];
  Row row(t.logits + r * t.vocab, t.vocab, options);
  const std::int32_t token = row.token();
  if (threadIdx.x == 0) t.tokens[r] = token;
  row.report(options.forced >= 0 ? options.forced : token, t.log_probs ? t.log_probs + r * (1 + t.best) : nullptr, t.best_ids ? t.best_ids + r * t.best : nullptr, t.best);
}

}  // namespace

cudaError_t sample(const Queue& queue, const SampleTask& task) { return launch(queue, dim3(static_cast<unsigned>(task.count)), threads, 0, sample_kernel, task); }

}  // namespace kvmesh::cuda
