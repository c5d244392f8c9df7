#include "model/train/muon_blocks.h"
#include "model/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace kvmesh {
namespace {

constexpr std::int64_t block = TrainOps::square_block;

Tensor rows_of(const Tensor& buffer, std::int64_t rows, std::int64_t columns) {
  return buffer.view({buffer.numel()}).slice(0, rows * columns).view({rows, columns});
}

/// f(matrix, its part that lies in one of the stretches, where this begins among all their elements).
template <typename F>
void each_part(const ParamLayout& layout, std::span<const Range> stretches, const F& f) {
  std::int64_t before = 0;
  for (const Range& stretch : stretches) {
    for (const Matrix& m : layout.matrices) {
      const Range part{std::max(m.offset, stretch.begin), std::min(m.offset + m.size(), stretch.end)};
      if (part.begin < part.end) f(m, part, before + part.begin - stretch.begin);
    }
    before += stretch.size();
  }
}

/// Blocks of at most so many elements are made orthogonal side by side.
constexpr std::int64_t small_area = 1 << 17;

}  // namespace

double scheduled_lr(const OptimizerOptions& o, std::int64_t step) {
  const auto t = static_cast<double>(step), warmup = static_cast<double>(o.warmup);
  if (step < o.warmup) return o.floor + (o.lr - o.floor) * t / warmup;
  const double length = std::max(1.0, std::max(1.0, static_cast<double>(o.steps) - warmup) - warmup);
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * std::min(t - warmup, length) / length));
  return o.floor + (o.lr - o.floor) * cosine;
}

/// What Muon needs for the matrices of `own`, [1] for small blocks: elements of the largest matrix and of the largest block, bytes of packed blocks. Zero where it has none.
struct Optimizer::Sizes {
  std::int64_t matrix = 0, height[2] = {}, area[2] = {}, packed[2] = {}, packed_turned[2] = {};

  /// Bytes of a workspace.
  std::int64_t bytes(int small, DType products) const {
    const auto f32 = static_cast<std::int64_t>(sizeof(float));
    return f32 * (2 * height[small] * height[small] + area[small]) + (products == DType::f32 ? f32 : 2 * static_cast<std::int64_t>(size_of(products))) * area[small] + packed[small] +
           packed_turned[small];
  }
};

Optimizer::Sizes Optimizer::sizes_of(const ParamLayout& layout, const Device& device, DType products, const OptimizerOptions& options, std::span<const Range> own) {
  Sizes s;
  const auto bytes = [&](std::int64_t k, std::int64_t n) { return static_cast<std::int64_t>(device.weight_bytes(products, k, n)); };
  each_part(layout, own, [&](const Matrix& m, Range, std::int64_t) {
    if (!options.muon || m.group != Group::rest) return;
    const Blocks b = blocks_of(m);
    const int small = b.height * b.width <= small_area;
    s.matrix = std::max(s.matrix, m.size());
    s.height[small] = std::max(s.height[small], b.height);
    s.area[small] = std::max(s.area[small], b.height * b.width);
    s.packed[small] = std::max(s.packed[small], bytes(b.height, b.width));
    s.packed_turned[small] = std::max(s.packed_turned[small], bytes(b.width, b.height));
  });
  return s;
}

Optimizer::Workspace Optimizer::workspace(const Sizes& s, bool small) const {
  if (s.area[small] == 0) return {};
  const auto empty = [&](DType dtype, Shape shape) { return device_.empty(dtype, shape); };
  return {.gram = empty(DType::f32, {s.height[small], s.height[small]}),
          .square = empty(DType::f32, {s.height[small], s.height[small]}),
          .product = empty(DType::f32, {s.area[small]}),
          .transposed = empty(products_, {s.area[small]}),
          .rounded = products_ == DType::f32 ? Tensor() : empty(products_, {s.area[small]}),
          .packed = empty(DType::u8, {s.packed[small]}),
          .packed_turned = empty(DType::u8, {s.packed_turned[small]})};
}

Optimizer::Optimizer(const ModelConfig& config, const ParamLayout& layout, Device& device, DType products, const OptimizerOptions& options, int rank, int ranks)
    : layout_(layout), device_(device), ops_(device.train_ops()), products_(products), options_(options), width_scale_(1 / std::sqrt(static_cast<double>(config.d_emb) / 768)), rank_(rank),
      owners_(divide(layout, options, ranks)) {
  m_ = device.empty(DType::f32, {size_of(own())});
  v_ = device.empty(DType::f32, {size_of(own())});
  ops_.zero(m_);
  ops_.zero(v_);
  const Sizes s = sizes_of(layout, device, products, options, own());
  if (s.matrix == 0) return;
  update_ = device.empty(DType::f32, {s.matrix});
  large_ = workspace(s, false);
  for (int i = 0; i < ops_.parallel(); ++i) small_.push_back(workspace(s, true));
}

std::int64_t Optimizer::memory(const ParamLayout& layout, Device& device, DType products, const OptimizerOptions& options, std::span<const Range> own) {
  const Sizes s = sizes_of(layout, device, products, options, own);
  return (2 * size_of(own) + s.matrix) * static_cast<std::int64_t>(sizeof(float)) + s.bytes(0, products) + device.train_ops().parallel() * s.bytes(1, products);
}

Tensor Optimizer::square_sums(const Tensor& gradient) const {
  const Tensor out = host_tensor(DType::f64, {square_counts()[static_cast<std::size_t>(rank_)]}), there = device_.counterpart(out);
  std::int64_t done = 0;
  each_part(layout_, own(), [&](const Matrix&, Range part, std::int64_t at) {
    const std::int64_t count = (part.size() + block - 1) / block;
    ops_.square_sums(gradient.slice(at, at + part.size()), there.slice(done, done + count));
    done += count;
  });
  device_.copy(there, out);
  return out;
}

std::vector<std::int64_t> Optimizer::square_counts() const {
  std::vector<std::int64_t> counts;
  for (const std::vector<Range>& owner : owners_) {
    counts.push_back(0);
    each_part(layout_, owner, [&](const Matrix&, Range part, std::int64_t) { counts.back() += (part.size() + block - 1) / block; });
  }
  return counts;
}

/// f(matrix, square sum) in the order of the vector: the ranks' first stretches, then their second ones …
void Optimizer::each_square(std::span<const double> all, const std::function<void(const Matrix&, double)>& f) const {
  std::vector<std::size_t> next;  // of each rank
  std::size_t before = 0;
  for (const std::int64_t n : square_counts()) {
    next.push_back(before);
    before += static_cast<std::size_t>(n);
  }
  for (std::size_t stretch = 0; stretch < owners_[0].size(); ++stretch) {
    for (std::size_t r = 0; r < owners_.size(); ++r) {
      each_part(layout_, {&owners_[r][stretch], 1}, [&](const Matrix& m, Range part, std::int64_t) {
        for (std::int64_t i = 0; i < part.size(); i += block) f(m, all[next[r]++]);
      });
    }
  }
}

double Optimizer::squared_norm(std::span<const double> all) const {
  double sum = 0;
  each_square(all, [&](const Matrix&, double x) { sum += x; });
  return sum;
}

std::string Optimizer::matrix_of_square(std::span<const double> all) const {
  std::string name;
  each_square(all, [&](const Matrix& m, double x) {
    if (name.empty() && !std::isfinite(x)) name = m.name;
  });
  return name;
}

Weight Optimizer::pack(const Tensor& x, const Tensor& memory) const {
  const Weight weight{x.size(0), x.size(1), products_, memory.slice(0, static_cast<std::int64_t>(device_.weight_bytes(products_, x.size(0), x.size(1))))};
  ops_.pack(x, weight);
  return weight;
}

Tensor Optimizer::rounded(const Tensor& x, const Workspace& w) const {
  if (products_ == DType::f32) return x;
  const Tensor out = rows_of(w.rounded, x.size(0), x.size(1));
  ops_.convert(x, out);
  return out;
}

/// out [n, n] = x [n, k] · xᵀ. Of a large one some columns at a time, down to the diagonal only: the products of two rows are the same bits in either order.
void Optimizer::times_own_transpose(const Tensor& x, const Workspace& w, const Tensor& out) const {
  const std::int64_t n = x.size(0), k = x.size(1), step = n < 256 ? n : (n / 4 + 63) / 64 * 64;
  const Tensor rows = rounded(x, w);
  for (std::int64_t from = 0; from < n; from += step) {
    const std::int64_t to = std::min(n, from + step);
    const Tensor turned = rows_of(w.transposed, k, to - from), columns = step == n ? out : rows_of(w.product, to, to - from);
    ops_.transpose(x.slice(from, to), turned);
    device_.linear(rows.slice(0, to), pack(turned, w.packed_turned), Epilogue::none, columns);
    if (step < n) ops_.mirror(columns, from, out);
  }
}

void Optimizer::orthogonalize(const Tensor& x, const Workspace& w) const {
  constexpr float a = 3.4445f, b = -4.775f, c = 2.0315f;
  const std::int64_t height = x.size(0), width = x.size(1);
  const Tensor gram = rows_of(w.gram, height, height), square = rows_of(w.square, height, height), product = rows_of(w.product, height, width);
  ops_.scale_add(0, x, 1 / (static_cast<float>(std::sqrt(ops_.sum_squares(x))) + 1e-8f), x);
  for (int i = 0; i < options_.newton_schulz_steps; ++i) {
    times_own_transpose(x, w, gram);
    times_own_transpose(gram, w, square);  // gram is symmetric
    ops_.scale_add(b, gram, c, square);
    device_.linear(rounded(square, w), pack(x, w.packed), Epilogue::none, product);
    ops_.scale_add(1, product, a, x);
  }
}

void Optimizer::step(std::int64_t step, const Tensor& gradient, float scale, const Tensor& vector) {
  const double lr = scheduled_lr(options_, step), share = options_.schedule_all ? lr / options_.lr : 1, t = static_cast<double>(step + 1);
  const auto decay_of = [&](const Matrix& m) { return Decay{m.group == Group::rest ? static_cast<float>(lr * options_.weight_decay) : 0, options_.rule}; };
  const auto is_muons = [&](const Matrix& m) { return options_.muon && m.group == Group::rest; };
  std::vector<Tensor> large, small;  // blocks to be made orthogonal, where the gradient was
  each_part(layout_, own(), [&](const Matrix& m, Range part, std::int64_t at) {
    const auto of_own = [&](const Tensor& x) { return x.slice(at, at + part.size()); };
    const Tensor p = vector.slice(part.begin, part.end), g = of_own(gradient);
    if (!is_muons(m)) {
      const double rate = m.group == Group::rest ? lr : share * width_scale_ * (m.group == Group::embed ? options_.embed_lr : options_.head_lr);
      ops_.adamw({.lr = static_cast<float>(rate),
                  .beta1 = static_cast<float>(options_.beta1),
                  .beta2 = static_cast<float>(options_.beta2),
                  .eps = static_cast<float>(options_.eps),
                  .correction1 = static_cast<float>(1 - std::pow(options_.beta1, t)),
                  .correction2 = static_cast<float>(1 - std::pow(options_.beta2, t)),
                  .scale = scale,
                  .decay = decay_of(m)},
                 p, g, of_own(m_), of_own(v_));
      return;
    }
    const Blocks b = blocks_of(m);
    const Tensor update = b.turned ? rows_of(update_, m.rows, m.cols) : g;
    ops_.momentum({.beta = static_cast<float>(options_.momentum),
                   .correction_m = static_cast<float>(1 - std::pow(options_.momentum, t + 1)),
                   .correction_g = static_cast<float>(1 - std::pow(options_.momentum, t)),
                   .scale = scale},
                  g, of_own(m_), update);
    if (b.turned) ops_.transpose(update, rows_of(g, m.cols, m.rows));
    const Tensor rows = rows_of(g, m.size() / b.width, b.width);
    for (std::int64_t i = 0; i < m.heads; ++i) (b.height * b.width <= small_area ? small : large).push_back(rows.slice(i * b.height, (i + 1) * b.height));
  });

  for (const Tensor& x : large) orthogonalize(x, large_);
  ops_.each(std::ssize(small), [&](std::int64_t i) {
    std::unique_lock lock(small_mutex_);
    Workspace w = std::move(small_.back());
    small_.pop_back();
    lock.unlock();
    orthogonalize(small[static_cast<std::size_t>(i)], w);
    lock.lock();
    small_.push_back(std::move(w));
  });

  each_part(layout_, own(), [&](const Matrix& m, Range part, std::int64_t at) {
    if (!is_muons(m)) return;
    const Blocks b = blocks_of(m);
    const Tensor g = gradient.slice(at, at + part.size()), update = b.turned ? rows_of(update_, m.rows, m.cols) : g;
    if (b.turned) ops_.transpose(rows_of(g, m.cols, m.rows), update);
    const double rows = static_cast<double>(b.turned ? b.width : b.height), cols = static_cast<double>(b.turned ? b.height : b.width);
    ops_.apply(decay_of(m), static_cast<float>(lr * std::sqrt(std::max(1.0, cols / rows))), vector.slice(part.begin, part.end), update);
  });
}

}  // namespace kvmesh
