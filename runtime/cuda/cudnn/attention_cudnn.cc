// Plans for the shapes that come, and their execution.
#include "runtime/cuda/attention_cudnn.h"

#include "runtime/check.h"
#include "runtime/cuda/cudnn/sdpa_graph.h"

#include <limits>
#include <stdexcept>
#include <unordered_map>

namespace kvmesh::cuda {
namespace {

namespace fe = cudnn_frontend;

std::string version_name(std::size_t v) { return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100); }

void must(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) fail(Fault::rank, "cuDNN: {} gives status {}", what, static_cast<int>(status));
}

// The reason in one line: the front end tells it with a trail of conditions.
std::string first_line(std::string text) {
  text = text.substr(0, text.find('\n'));
  return text.empty() ? "no reason given" : text;
}

}  // namespace

std::string cudnn_versions() {
  const std::string& why = load_cudnn();
  return fmt::format("{} compiled in, {}", version_name(CUDNN_VERSION), why.empty() ? version_name(fe::detail::get_backend_version()) + " loaded" : "not found here");
}

struct CudnnAttention::Library {
  cudnnHandle_t handle = nullptr;
  int compute_capability;
  ~Library() {
    if (handle) fe::detail::destroy_handle(handle);
  }
};

struct CudnnAttention::Plan {
  std::unique_ptr<SdpaGraph> graph;
  std::string refusal;
  std::size_t workspace_bytes = 0;
};

CudnnAttention::CudnnAttention(cudaStream_t stream, int compute_capability) : library_(std::make_unique<Library>()) {
  const std::string& why = load_cudnn();
  kvmesh::check(why.empty(), "--attention cudnn: {}", why);
  name_ = "cudnn-" + version_name(fe::detail::get_backend_version());
  library_->compute_capability = compute_capability;
  must(fe::detail::create_handle(&library_->handle), "cudnnCreate");
  must(fe::detail::set_stream(library_->handle, stream), "cudnnSetStream");
}

CudnnAttention::~CudnnAttention() = default;

std::int64_t CudnnAttention::most_elements() { return std::numeric_limits<std::int32_t>::max(); }
std::size_t CudnnAttention::most_workspace() { return std::size_t{2} << 30; }

const std::string& CudnnAttention::refusal(const SdpaShape& shape) {
  if (const auto found = plans_.find(shape); found != plans_.end()) return found->second->refusal;
  const auto plan = std::make_shared<Plan>();
  fe::error_t status;
  try {
    plan->graph = sdpa_graph(layout_of(shape), library_->compute_capability);
    status = finalize(*plan->graph, library_->handle);
    const auto next = [&](auto&& step) {
      if (status.is_good()) status = step();
    };
    std::int64_t bytes = 0;
    next([&] { return find_engines(*plan->graph, shape.pass); });
    next([&] { return plan->graph->build_plans(); });
    next([&] { return plan->graph->get_workspace_size(bytes); });
    plan->workspace_bytes = static_cast<std::size_t>(bytes);
  } catch (const std::runtime_error& e) {  // the front end's own: a function that this cuDNN does not have
    status = {fe::error_code_t::GRAPH_NOT_SUPPORTED, e.what()};
  }
  if (status.is_bad() && !says_unsupported(status)) fail(Fault::rank, "cuDNN's attention: {}", first_line(status.get_message()));
  if (status.is_bad()) plan->refusal = first_line(status.get_message());
  return plans_.emplace(shape, plan).first->second->refusal;
}

std::size_t CudnnAttention::workspace_bytes(const SdpaShape& shape) const { return plans_.at(shape)->workspace_bytes; }

void CudnnAttention::enqueue(const SdpaShape& shape, const SdpaMemory& m, void* workspace) const {
  std::unordered_map<std::int64_t, void*> memory;
  for (const auto& [uid, p] : std::initializer_list<std::pair<SdpaTensor, const void*>>{{sdpa_q, m.q},
                                                                                        {sdpa_k, m.k},
                                                                                        {sdpa_v, m.v},
                                                                                        {sdpa_out, m.out},
                                                                                        {sdpa_statistics, m.statistics},
                                                                                        {sdpa_dout, m.dout},
                                                                                        {sdpa_dq, m.dq},
                                                                                        {sdpa_dk, m.dk},
                                                                                        {sdpa_dv, m.dv},
                                                                                        {sdpa_query_lengths, m.rows.query_lengths},
                                                                                        {sdpa_key_lengths, m.rows.key_lengths},
                                                                                        {sdpa_query_offsets, m.rows.query_offsets},
                                                                                        {sdpa_key_offsets, m.rows.key_offsets},
                                                                                        {sdpa_dkv_offsets, m.rows.dkv_offsets}}) {
    if (p) memory.emplace(uid, const_cast<void*>(p));
  }
  if (auto status = plans_.at(shape)->graph->execute(library_->handle, memory, workspace); status.is_bad()) fail(Fault::rank, "cuDNN's attention: {}", status.get_message());
}

}  // namespace kvmesh::cuda
