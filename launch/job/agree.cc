// One rank acts, all ranks know.
#include "launch/job/agree.h"

#include <chrono>
#include <cstring>
#include <filesystem>
#include <future>
#include <new>
#include <numeric>

namespace kvmesh {
namespace {

constexpr std::chrono::milliseconds sign_of_life{200};

}  // namespace

Error error_of(const std::exception& thrown) {
  if (const auto* error = dynamic_cast<const Error*>(&thrown)) return *error;
  if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&thrown)) {  // a name that is too long, a folder that may not be looked into
    return Error(Fault::usage, fmt::format("{}: {}", file->path1().string(), file->code().message()));
  }
  if (dynamic_cast<const std::bad_alloc*>(&thrown)) return Error(Fault::rank, "out of memory");
  return Error(Fault::rank, thrown.what());
}

std::int64_t from_first_rank(Communicator& ranks, std::int64_t value) {
  const Tensor t = host_tensor(DType::i64, {1});
  t.data<std::int64_t>()[0] = value;
  ranks.broadcast(t, 0);
  return t.data<std::int64_t>()[0];
}

std::int64_t largest(Communicator& ranks, std::int64_t value) {
  if (ranks.size() == 1) return value;
  const Tensor t = host_tensor(DType::i64, {1});
  t.data<std::int64_t>()[0] = value;
  ranks.all_reduce(t, Reduce::max);
  return t.data<std::int64_t>()[0];
}

void broadcast_bytes(Communicator& ranks, std::string& bytes) {
  if (ranks.size() == 1) return;
  const std::int64_t size = from_first_rank(ranks, std::ssize(bytes));
  if (size == 0) return bytes.clear();
  const Tensor t = host_tensor(DType::u8, {size});
  if (ranks.rank() == 0) std::memcpy(t.raw(), bytes.data(), bytes.size());
  ranks.broadcast(t, 0);
  bytes.assign(reinterpret_cast<const char*>(t.data<std::uint8_t>()), static_cast<std::size_t>(size));
}

std::vector<std::string> gather_bytes(Communicator& ranks, const std::string& bytes) {
  const Tensor size = host_tensor(DType::i64, {1}), sizes = host_tensor(DType::i64, {ranks.size(), 1});
  size.data<std::int64_t>()[0] = std::ssize(bytes);
  ranks.all_gather(size, sizes);
  const std::span<const std::int64_t> counts = sizes.span<std::int64_t>();
  const Tensor mine = host_tensor(DType::u8, {std::ssize(bytes)}), all = host_tensor(DType::u8, {std::accumulate(counts.begin(), counts.end(), std::int64_t{0})});
  std::memcpy(mine.raw(), bytes.data(), bytes.size());
  ranks.all_gather_ragged(mine, counts, all);
  std::vector<std::string> gathered;
  const char* from = reinterpret_cast<const char*>(all.data<std::uint8_t>());
  for (const std::int64_t n : counts) {
    gathered.emplace_back(from, static_cast<std::size_t>(n));
    from += n;
  }
  return gathered;
}

void on_first_rank(Communicator& ranks, const std::function<void()>& body) {
  if (ranks.size() == 1) return body();
  constexpr std::int64_t busy = -1;
  std::int64_t fault = 0;
  std::string message;
  if (ranks.rank() == 0) {
    std::future<void> done = std::async(std::launch::async, body);
    while (done.wait_for(sign_of_life) != std::future_status::ready) from_first_rank(ranks, busy);
    try {
      done.get();
    } catch (const std::exception& e) {
      const Error error = error_of(e);
      fault = static_cast<std::int64_t>(error.fault());
      message = error.what();
    }
    from_first_rank(ranks, fault);
  } else {
    while ((fault = from_first_rank(ranks, 0)) == busy) {
    }
  }
  if (fault == 0) return;
  broadcast_bytes(ranks, message);
  throw Error(static_cast<Fault>(fault), message);
}

}  // namespace kvmesh
