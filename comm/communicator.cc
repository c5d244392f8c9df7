// The checks that every collective makes before anything is sent.
#include "comm/communicator.h"

#include <vector>

namespace kvmesh {
namespace {

/// "float32[2, 3]"
std::string describe(const Tensor& t) { return fmt::format("{}{}", name_of(t.dtype()), to_string(t.shape())); }

void check_memory(const char* collective, const char* name, const Tensor& t) {
  check(t.defined() || t.numel() == 0, "{}: `{}` {} has no memory", collective, name, describe(t));
}

/// Are a's dimensions from `skip_a` on those of b from `skip_b` on?
bool same_rows(const Shape& a, int skip_a, const Shape& b, int skip_b) {
  if (a.rank() - skip_a != b.rank() - skip_b) return false;
  for (int i = skip_a; i < a.rank(); ++i) {
    if (a[i] != b[i - skip_a + skip_b]) return false;
  }
  return true;
}

void check_pair(const char* collective, const Tensor& in, const Tensor& out) {
  check_memory(collective, "in", in);
  check_memory(collective, "out", out);
  check(in.dtype() == out.dtype(), "{}: `in` is {}, but `out` is {}", collective, describe(in), describe(out));
}

/// The rows of `t` that `counts` divides among the ranks, as bytes.
std::vector<std::int64_t> parts_in_bytes(const char* collective, const char* name, const Tensor& t, std::span<const std::int64_t> counts, int ranks) {
  check(counts.size() == static_cast<std::size_t>(ranks), "{}: {} counts for {} ranks", collective, counts.size(), ranks);
  std::int64_t total = 0;
  for (const std::int64_t count : counts) {
    check(count >= 0, "{}: a count is negative, {}", collective, count);
    total += count;
  }
  check(t.shape().rank() > 0 && t.size(0) == total, "{}: all counts make {}, `{}` cannot be {}", collective, total, name, describe(t));
  std::vector<std::int64_t> bytes(counts.begin(), counts.end());
  for (std::int64_t& n : bytes) n *= total > 0 ? static_cast<std::int64_t>(t.bytes()) / total : 0;
  return bytes;
}

/// What was done when it began.
class Done final : public Pending {
 public:
  bool poll() override { return true; }
  void wait() override {}
};

struct Bytes {
  std::vector<std::int64_t> send, receive;
};

/// An exchange's, after its checks.
Bytes exchanged_bytes(const Tensor& in, std::span<const std::int64_t> send_counts, const Tensor& out, std::span<const std::int64_t> receive_counts, int rank, int ranks) {
  check_pair("exchange", in, out);
  Bytes bytes{parts_in_bytes("exchange", "in", in, send_counts, ranks), parts_in_bytes("exchange", "out", out, receive_counts, ranks)};
  check(same_rows(in.shape(), 1, out.shape(), 1), "exchange: `in` is {}, `out` cannot be {}", describe(in), describe(out));
  const auto own = static_cast<std::size_t>(rank);
  check(bytes.send[own] == bytes.receive[own], "exchange: rank {} sends {} rows to itself and receives {}", rank, send_counts[own], receive_counts[own]);
  return bytes;
}

}  // namespace

void Communicator::all_gather(const Tensor& in, const Tensor& out) {
  check_pair("all_gather", in, out);
  check(out.shape().rank() > 0 && out.size(0) == size() && same_rows(in.shape(), 0, out.shape(), 1),
        "all_gather: `in` is {} on each of {} ranks, `out` cannot be {}", describe(in), size(), describe(out));
  const std::vector<std::int64_t> elements(static_cast<std::size_t>(size()), in.numel());
  do_all_gather(in, elements, out);
}

void Communicator::all_gather_ragged(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out) {
  check_pair("all_gather_ragged", in, out);
  check(counts.size() == static_cast<std::size_t>(size()), "all_gather_ragged: {} counts for {} ranks", counts.size(), size());
  std::int64_t total = 0;
  for (const std::int64_t count : counts) {
    check(count >= 0, "all_gather_ragged: a count is negative, {}", count);
    total += count;
  }
  check(in.shape().rank() > 0 && in.size(0) == counts[static_cast<std::size_t>(rank())],
        "all_gather_ragged: `in` of rank {} is {}, its count is {}", rank(), describe(in), counts[static_cast<std::size_t>(rank())]);
  check(out.shape().rank() > 0 && out.size(0) == total && same_rows(in.shape(), 1, out.shape(), 1),
        "all_gather_ragged: `in` is {} and all counts make {}, `out` cannot be {}", describe(in), total, describe(out));
  std::vector<std::int64_t> elements(counts.begin(), counts.end());
  for (std::int64_t& n : elements) n *= total > 0 ? out.numel() / total : 0;
  do_all_gather(in, elements, out);
}

void Communicator::all_reduce(const Tensor& inout, Reduce op) {
  check_memory("all_reduce", "inout", inout);
  switch (inout.dtype()) {
    case DType::i32:
    case DType::i64:
    case DType::u64:
    case DType::f32:
    case DType::f64: return do_all_reduce(inout, op);
    default: fail(Fault::usage, "all_reduce: {} is not among int32, int64, uint64, float32, float64", describe(inout));
  }
}

void Communicator::broadcast(const Tensor& inout, int root) {
  check_memory("broadcast", "inout", inout);
  check(0 <= root && root < size(), "broadcast: there is no rank {} to send, there are {}", root, size());
  do_broadcast(inout, root);
}

void Communicator::exchange(const Tensor& in, std::span<const std::int64_t> send_counts, const Tensor& out, std::span<const std::int64_t> receive_counts) {
  const Bytes bytes = exchanged_bytes(in, send_counts, out, receive_counts, rank(), size());
  do_exchange(in, bytes.send, out, bytes.receive);
}

std::unique_ptr<Pending> Communicator::begin_exchange(const Tensor& in, std::span<const std::int64_t> send_counts, const Tensor& out,
                                                      std::span<const std::int64_t> receive_counts) {
  const Bytes bytes = exchanged_bytes(in, send_counts, out, receive_counts, rank(), size());
  return do_begin_exchange(in, bytes.send, out, bytes.receive);
}

std::unique_ptr<Pending> Communicator::begin_library_sum(const Tensor& inout) {
  check_memory("library_sum", "inout", inout);
  check(inout.dtype() == DType::f32, "library_sum: {} is not float32", describe(inout));
  return do_begin_library_sum(inout);
}

std::unique_ptr<Pending> Communicator::do_begin_exchange(const Tensor& in, std::span<const std::int64_t> send, const Tensor& out, std::span<const std::int64_t> receive) {
  do_exchange(in, send, out, receive);
  return std::make_unique<Done>();
}

std::unique_ptr<Pending> Communicator::do_begin_library_sum(const Tensor& inout) {
  do_all_reduce(inout, Reduce::sum);
  return std::make_unique<Done>();
}

}  // namespace kvmesh
