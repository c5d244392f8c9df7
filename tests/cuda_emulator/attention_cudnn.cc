// cuDNN's attention as its documents describe it, by plain loops: a row's queries, keys and values begin at its offsets and are as many as its lengths say, a
// row's last query sees its last key. What cuDNN itself makes of it only a GPU shows.
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

const std::string& CudnnAttention::refusal(const SdpaShape& shape) {
  std::shared_ptr<Plan>& plan = plans_[shape];
  if (!plan) plan = std::make_shared<Plan>(shape.head_dim % 8 == 0 ? "" : "hidden_dim should be multiple of 8");
  return plan->refusal;
}

std::size_t CudnnAttention::workspace_bytes(const SdpaShape&) const { return 256; }

namespace {

void attend(const SdpaShape& s, const SdpaMemory& m) {
  const SdpaLayout layout = layout_of(s);
  const auto* q = static_cast<const bfloat16*>(m.q);
  const auto *k = static_cast<const bfloat16*>(m.k), *v = static_cast<const bfloat16*>(m.v);
  auto* out = static_cast<bfloat16*>(m.out);
  for (std::int64_t row = 0; row < s.rows; ++row) {
    const std::int64_t queries = m.rows.query_lengths[row], keys = m.rows.key_lengths[row];
    if (queries > s.queries || keys > s.size || (queries > 0 && m.rows.key_offsets[row] + layout.kv_strides[0] > CudnnAttention::most_elements())) std::abort();
    for (std::int64_t head = 0; head < s.heads; ++head) {
      const std::int64_t kv = m.rows.key_offsets[row] + head / (s.heads / s.kv_heads) * layout.kv_strides[1];
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t at = m.rows.query_offsets[row] + head * layout.q_strides[1] + i * layout.q_strides[2], newest = s.queries > 1 ? i + keys - queries : keys - 1;
        const std::int64_t oldest = s.queries > 1 && s.window >= 0 ? std::max<std::int64_t>(0, newest - s.window) : 0;
        std::vector<double> sum(static_cast<std::size_t>(s.head_dim));
        double weights = 0;
        for (std::int64_t j = oldest; j <= newest; ++j) {
          double score = 0;
          for (std::int64_t d = 0; d < s.head_dim; ++d) score += double{q[at + d]} * double{k[kv + j * layout.kv_strides[2] + d]};
          const double weight = std::exp(score / std::sqrt(static_cast<double>(s.head_dim)));
          weights += weight;
          for (std::int64_t d = 0; d < s.head_dim; ++d) sum[static_cast<std::size_t>(d)] += weight * double{v[kv + j * layout.kv_strides[2] + d]};
        }
        for (std::int64_t d = 0; d < s.head_dim; ++d) out[at + d] = bfloat16(static_cast<float>(sum[static_cast<std::size_t>(d)] / weights));
      }
    }
  }
}

}  // namespace

void CudnnAttention::enqueue(const SdpaShape& shape, const SdpaMemory& memory, void*) const {
  library_->stream->enqueue([=] { attend(shape, memory); });
}

}  // namespace kvmesh::cuda
