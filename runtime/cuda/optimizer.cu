// Element by element: the optimizers' steps, with the operations of the CPU's in their order, and what else treats each element alone.
#include "runtime/cuda/device_code.h"
#include "runtime/cuda/train_kernels.h"

namespace kvmesh::cuda {
namespace {

constexpr unsigned threads = 256;

template <typename F>
__global__ void __launch_bounds__(threads) each_kernel(F f, std::int64_t count) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i < count) f(i);
}

template <typename F>
cudaError_t each(const Queue& queue, const F& f, std::int64_t count) {
  return count == 0 ? cudaSuccess : launch(queue, static_cast<unsigned>(ceil_div<std::int64_t>(count, threads)), threads, 0, each_kernel<F>, f, count);
}

/// What is taken from p next to the step along u.
__device__ __forceinline__ float decay_of(const Decay& d, float p, float u) {
  const float along = u * p, all = d.rate * p;
  if (d.rule == DecayRule::plain) return all;
  return (d.rule == DecayRule::cautious ? along >= 0.0f : along <= 0.0f) ? all : 0.0f;
}

struct Round {
  const float* x;
  bfloat16* out;
  __device__ void operator()(std::int64_t i) const { out[i] = bfloat16(x[i]); }
};

template <typename T>
struct ReluSquaredBackward {
  const T* hidden;
  T* dhidden;
  __device__ void operator()(std::int64_t i) const { dhidden[i] = from_float<T>(to_float(dhidden[i]) * (2.0f * sqrtf(to_float(hidden[i])))); }
};

struct Adamw {
  AdamwStep s;
  float* p;
  const float* g;
  float *m, *v;
  __device__ void operator()(std::int64_t i) const {
    const float gradient = s.scale * g[i], old = p[i];
    const float mean = (1.0f - s.beta1) * gradient + s.beta1 * m[i], square = (1.0f - s.beta2) * (gradient * gradient) + s.beta2 * v[i];
    const float update = (mean / s.correction1) / (sqrtf(square / s.correction2) + s.eps);
    m[i] = mean;
    v[i] = square;
    p[i] = old - (s.lr * update + decay_of(s.decay, old, update));
  }
};

struct Momentum {
  MuonStep s;
  const float* g;  // may be `update`
  float *m, *update;
  __device__ void operator()(std::int64_t i) const {
    const float gradient = s.scale * g[i], mean = (1.0f - s.beta) * gradient + s.beta * m[i];
    m[i] = mean;
    update[i] = s.beta * (mean / s.correction_m) + (1.0f - s.beta) * (gradient / s.correction_g);
  }
};

struct Apply {
  Decay decay;
  float rate;
  float* p;
  const float* update;
  __device__ void operator()(std::int64_t i) const { p[i] = p[i] - (rate * update[i] + decay_of(decay, p[i], update[i])); }
};

struct ScaleAdd {
  float a;
  const float* x;
  float b;
  float* out;
  __device__ void operator()(std::int64_t i) const { out[i] = a * x[i] + b * out[i]; }
};

/// A block of threads a block of elements; squares are exact in float64.
__global__ void __launch_bounds__(threads) square_sums_kernel(const float* x, std::int64_t count, std::int64_t block, double* sums) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ double parts[threads / 32];
  const std::int64_t begin = blockIdx.x * block, end = begin + block < count ? begin + block : count;
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += threads) sum = sum + static_cast<double>(x[i]) * static_cast<double>(x[i]);
  sum = block_sum<threads / 32>(sum, parts);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

cudaError_t round_to_bf16(const Queue& queue, const float* x, void* out, std::int64_t count) { return each(queue, Round{x, static_cast<bfloat16*>(out)}, count); }

cudaError_t relu_squared_backward(const Queue& queue, const void* hidden, void* dhidden, bool bf16, std::int64_t count) {
  if (bf16) return each(queue, ReluSquaredBackward<bfloat16>{static_cast<const bfloat16*>(hidden), static_cast<bfloat16*>(dhidden)}, count);
  return each(queue, ReluSquaredBackward<float>{static_cast<const float*>(hidden), static_cast<float*>(dhidden)}, count);
}

cudaError_t square_sums(const Queue& queue, const float* x, std::int64_t count, std::int64_t block, double* sums) {
  return count == 0 ? cudaSuccess : launch(queue, static_cast<unsigned>(ceil_div(count, block)), threads, 0, square_sums_kernel, x, count, block, sums);
}

cudaError_t adamw(const Queue& queue, const AdamwStep& step, float* p, const float* g, float* m, float* v, std::int64_t count) {
  return each(queue, Adamw{step, p, g, m, v}, count);
}

cudaError_t momentum(const Queue& queue, const MuonStep& step, const float* g, float* m, float* update, std::int64_t count) {
  return each(queue, Momentum{step, g, m, update}, count);
}

cudaError_t apply(const Queue& queue, const Decay& decay, float rate, float* p, const float* update, std::int64_t count) {
  return each(queue, Apply{decay, rate, p, update}, count);
}

cudaError_t scale_add(const Queue& queue, float a, const float* x, float b, float* out, std::int64_t count) { return each(queue, ScaleAdd{a, x, b, out}, count); }

}  // namespace kvmesh::cuda
