// Plans for the shapes that come, and their execution.
#include "runtime/cuda/attention_cudnn.h"

#include "runtime/check.h"
#include "runtime/cuda/cudnn/sdpa_graph.h"

#include <exception>
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

const std::string& CudnnAttention::refusal(const SdpaShape& shape) {
  const auto [found, added] = plans_.try_emplace(shape);
  if (!added) return found->second->refusal;
  Plan& plan = *(found->second = std::make_shared<Plan>());
  try {
    plan.graph = sdpa_graph(layout_of(shape), library_->compute_capability);
    plan.refusal = finalize(*plan.graph, library_->handle);
    const auto next = [&](auto&& step) {
      if (!plan.refusal.empty()) return;
      if (auto status = step(); status.is_bad()) plan.refusal = first_line(status.get_message());
    };
    std::int64_t bytes = 0;
    next([&] { return plan.graph->create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}); });
    next([&] { return plan.graph->check_support(); });
    next([&] { return plan.graph->build_plans(); });
    next([&] { return plan.graph->get_workspace_size(bytes); });
    plan.workspace_bytes = static_cast<std::size_t>(bytes);
  } catch (const std::exception& e) {  // the front end's own: a function that this cuDNN does not have
    plan.refusal = first_line(e.what());
  }
  return plan.refusal;
}

std::size_t CudnnAttention::workspace_bytes(const SdpaShape& shape) const { return plans_.at(shape)->workspace_bytes; }

void CudnnAttention::enqueue(const SdpaShape& shape, const SdpaMemory& m, void* workspace) const {
  std::unordered_map<std::int64_t, void*> memory = {{sdpa_q, const_cast<void*>(m.q)},
                                                    {sdpa_k, const_cast<void*>(m.k)},
                                                    {sdpa_v, const_cast<void*>(m.v)},
                                                    {sdpa_out, m.out},
                                                    {sdpa_query_lengths, m.rows.query_lengths},
                                                    {sdpa_key_lengths, m.rows.key_lengths},
                                                    {sdpa_query_offsets, m.rows.query_offsets},
                                                    {sdpa_key_offsets, m.rows.key_offsets}};
  if (auto status = plans_.at(shape)->graph->execute(library_->handle, memory, workspace); status.is_bad()) fail(Fault::rank, "cuDNN's attention: {}", status.get_message());
}

}  // namespace kvmesh::cuda
