// cuDNN's attention as its documents describe it, by plain loops: a row's queries, keys and values begin at its offsets and are as many as its lengths say, a
// row's last query sees its last key; likewise its gradients. What cuDNN itself makes of it only a GPU shows.
#include "runtime/cuda/attention_cudnn.h"

#include "runtime/dtype.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmesh::cuda {

struct CudnnAttention::Library {
  cudaStream_t stream;
};
struct CudnnAttention::Plan {
  std::string refusal;
  explicit Plan(std::string why) : refusal(std::move(why)) {}
};

std::string cudnn_versions() { return "none compiled in, emulated"; }

CudnnAttention::CudnnAttention(cudaStream_t stream, int) : library_(std::make_unique<Library>()), name_("cudnn-emulated") { library_->stream = stream; }
CudnnAttention::~CudnnAttention() = default;

std::int64_t CudnnAttention::most_elements() { return 1 << 20; }  // few, so that a test goes beyond
std::size_t CudnnAttention::most_workspace() { return 1 << 20; }   // likewise

const std::string& CudnnAttention::refusal(const SdpaShape& shape) {
  std::shared_ptr<Plan>& plan = plans_[shape];
  const bool too_large = shape.pass == SdpaPass::backward && shape.head_dim > 128;  // as on most GPUs
  if (!plan) plan = std::make_shared<Plan>(shape.head_dim % 8 != 0 ? "hidden_dim should be multiple of 8" : too_large ? "hidden_dim should be less than or equal to 128" : "");
  return plan->refusal;
}

std::size_t CudnnAttention::workspace_bytes(const SdpaShape& s) const {
  return s.pass == SdpaPass::backward ? static_cast<std::size_t>(s.rows * s.heads * s.queries * s.queries) * sizeof(bfloat16) : 256;
}

namespace {

const bfloat16* elements(const void* p) { return static_cast<const bfloat16*>(p); }

/// One query head of one row.
class Head {
 public:
  Head(const SdpaShape& shape, const SdpaMemory& memory, std::int64_t row, std::int64_t head) : s(shape), m(memory), layout(layout_of(shape)), kv_head(head / (s.heads / s.kv_heads)) {
    queries = s.ragged ? m.rows.query_lengths[row] : s.queries;
    keys = s.ragged ? m.rows.key_lengths[row] : s.queries;
    q_at = (s.ragged ? m.rows.query_offsets[row] : row * layout.q_strides[0]) + head * layout.q_strides[1];
    kv_at = (s.ragged ? m.rows.key_offsets[row] : row * layout.kv_strides[0]) + kv_head * layout.kv_strides[1];
    if (s.pass == SdpaPass::backward) dkv_at = (s.ragged ? m.rows.dkv_offsets[row] : row * layout.dkv_strides[0]) + kv_head * layout.dkv_strides[1];
    if (m.statistics) statistics = m.statistics + (row * s.heads + head) * s.queries;
    if (queries > s.queries || keys > s.size || (s.pass != SdpaPass::forward && keys != queries)) std::abort();
    if (s.ragged && queries > 0 && m.rows.key_offsets[row] + layout.kv_strides[0] > CudnnAttention::most_elements()) std::abort();
  }

  void attend() const {
    for (std::int64_t i = 0; i < queries; ++i) {
      std::vector<double> sum(static_cast<std::size_t>(s.head_dim));
      double weights = 0;
      for (std::int64_t j = oldest(i); j <= newest(i); ++j) {
        const double weight = std::exp(score(i, j));
        weights += weight;
        for (std::int64_t d = 0; d < s.head_dim; ++d) sum[static_cast<std::size_t>(d)] += weight * double{elements(m.v)[key(j) + d]};
      }
      for (std::int64_t d = 0; d < s.head_dim; ++d) static_cast<bfloat16*>(m.out)[query(i) + d] = bfloat16(static_cast<float>(sum[static_cast<std::size_t>(d)] / weights));
      if (s.pass == SdpaPass::statistics) statistics[i] = static_cast<float>(std::log(weights));
    }
  }

  /// To dq, and into the sums of a row's keys, [keys, head_dim].
  void slopes(std::vector<double>& dk, std::vector<double>& dv) const {
    for (std::int64_t i = 0; i < queries; ++i) {
      std::vector<double> dq(static_cast<std::size_t>(s.head_dim));
      double delta = 0;
      for (std::int64_t d = 0; d < s.head_dim; ++d) delta += double{elements(m.out)[query(i) + d]} * double{elements(m.dout)[query(i) + d]};
      for (std::int64_t j = oldest(i); j <= newest(i); ++j) {
        const double p = std::exp(score(i, j) - double{statistics[i]});
        double dp = 0;
        for (std::int64_t d = 0; d < s.head_dim; ++d) dp += double{elements(m.dout)[query(i) + d]} * double{elements(m.v)[key(j) + d]};
        const double ds = p * (dp - delta) / std::sqrt(static_cast<double>(s.head_dim));
        for (std::int64_t d = 0; d < s.head_dim; ++d) {
          dq[static_cast<std::size_t>(d)] += ds * double{elements(m.k)[key(j) + d]};
          dk[static_cast<std::size_t>(j * s.head_dim + d)] += ds * double{elements(m.q)[query(i) + d]};
          dv[static_cast<std::size_t>(j * s.head_dim + d)] += p * double{elements(m.dout)[query(i) + d]};
        }
      }
      for (std::int64_t d = 0; d < s.head_dim; ++d) static_cast<bfloat16*>(m.dq)[query(i) + d] = bfloat16(static_cast<float>(dq[static_cast<std::size_t>(d)]));
    }
  }

  void write(const std::vector<double>& sums, void* to) const {
    for (std::int64_t j = 0; j < keys; ++j) {
      bfloat16* const key = static_cast<bfloat16*>(to) + dkv_at + j * layout.dkv_strides[2];
      for (std::int64_t d = 0; d < s.head_dim; ++d) key[d] = bfloat16(static_cast<float>(sums[static_cast<std::size_t>(j * s.head_dim + d)]));
    }
  }

  const SdpaShape& s;
  const SdpaMemory& m;
  const SdpaLayout layout;
  const std::int64_t kv_head;
  std::int64_t queries, keys;

 private:
  std::int64_t query(std::int64_t i) const { return q_at + i * layout.q_strides[2]; }
  std::int64_t key(std::int64_t j) const { return kv_at + j * layout.kv_strides[2]; }
  std::int64_t newest(std::int64_t i) const { return s.queries > 1 ? i + keys - queries : keys - 1; }
  std::int64_t oldest(std::int64_t i) const { return s.queries > 1 && s.window >= 0 ? std::max<std::int64_t>(0, newest(i) - s.window) : 0; }
  double score(std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t d = 0; d < s.head_dim; ++d) sum += double{elements(m.q)[query(i) + d]} * double{elements(m.k)[key(j) + d]};
    return sum / std::sqrt(static_cast<double>(s.head_dim));
  }

  std::int64_t q_at, kv_at, dkv_at = 0;
  float* statistics = nullptr;
};

void execute(const SdpaShape& s, const SdpaMemory& m) {
  for (std::int64_t row = 0; row < s.rows; ++row) {
    if (s.pass != SdpaPass::backward) {
      for (std::int64_t head = 0; head < s.heads; ++head) Head(s, m, row, head).attend();
      continue;
    }
    for (std::int64_t kv_head = 0; kv_head < s.kv_heads; ++kv_head) {
      const std::int64_t group = s.heads / s.kv_heads;
      std::vector<double> dk(static_cast<std::size_t>(s.queries * s.head_dim)), dv(dk.size());
      for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) Head(s, m, row, head).slopes(dk, dv);
      const Head any(s, m, row, kv_head * group);
      any.write(dk, m.dk);
      any.write(dv, m.dv);
    }
  }
}

}  // namespace

void CudnnAttention::enqueue(const SdpaShape& shape, const SdpaMemory& memory, void*) const {
  library_->stream->enqueue([=] { execute(shape, memory); });
}

}  // namespace kvmesh::cuda
