#include "launch/job/train_checkup.h"

#include "launch/job/agree.h"
#include "launch/job/facts.h"
#include "model/memory.h"
#include "model/train/train_memory.h"

namespace kvmesh {
namespace {

/// The options as they are, and then others that need less and less.
std::vector<TrainerOptions> alternatives(const TrainerOptions& options) {
  std::vector<TrainerOptions> all = {options};
  for (;;) {
    TrainerOptions less = all.back();
    std::int64_t& rows = less.batch.micro_rows;
    if (!less.recompute) {
      less.recompute = true;
    } else if (rows > 1) {
      rows = rows % 2 == 0 ? rows / 2 : 1;
      less.recompute = options.recompute;
    } else {
      return all;
    }
    all.push_back(less);
  }
}

std::string words_of(const TrainerOptions& options, const TrainerOptions& asked) {
  const std::string rows = options.batch.micro_rows == asked.batch.micro_rows ? "" : fmt::format("--micro-rows {}", options.batch.micro_rows);
  return fmt::format("{}{}{}", rows, options.recompute && !asked.recompute && !rows.empty() ? " " : "", options.recompute && !asked.recompute ? "--recompute" : "");
}

/// What helps where bytes[0] is too much; bytes[i] is what all[i] needs.
std::string help_of(std::span<const TrainerOptions> all, std::span<const std::int64_t> bytes, std::int64_t available) {
  std::size_t fits = 0, least = 0;
  for (std::size_t i = all.size(); i-- > 1;) {
    if (bytes[i] <= available) fits = i;
    if (bytes[i] < bytes[least]) least = i;
  }
  return fits > 0    ? fmt::format("with {} it is {}", words_of(all[fits], all[0]), readable_bytes(bytes[fits]))
         : least > 0 ? fmt::format("even with {} it is {}", words_of(all[least], all[0]), readable_bytes(bytes[least]))
                     : "no option of train needs less";
}

}  // namespace

std::int64_t check_train_memory(const Job& job, const ParamLayout& layout, const TrainerOptions& options, std::int64_t samples, ProcessGroup& group) {
  const Facts facts = look_around(group);
  const std::vector<TrainerOptions> all = alternatives(options);
  const auto needs = [&](const TrainerOptions& o) { return train_memory(job.config, job.dtype, *job.device, layout, o, group.rank(), group.size(), samples); };
  const Tensor host = host_tensor(DType::i64, {std::ssize(all)});  // what the host's ranks need together
  for (std::size_t i = 0; i < all.size(); ++i) host.data<std::int64_t>()[i] = needs(all[i]).bytes();
  group.host().all_reduce(host, Reduce::sum);
  const std::span<const std::int64_t> bytes = host.span<std::int64_t>();

  std::string lack;
  if (facts.available >= 0 && bytes[0] > facts.available) {
    lack = fmt::format("training needs {} of memory on {} and {} are free; {} ({} rank{}; rank {} needs {})", readable_bytes(bytes[0]), facts.host_name, readable_bytes(facts.available),
                       help_of(all, bytes, facts.available), group.local_size(), group.local_size() == 1 ? "" : "s", group.rank(), to_string(needs(options)));
  } else if (const std::int64_t free = job.device->free_bytes(); free >= 0) {
    const int sharing = job.share_gpus ? group.local_size() : 1;
    const std::int64_t usable = free / sharing / 10 * 9;  // libraries and what is lost between tensors take the rest
    std::vector<std::int64_t> there;
    for (const TrainerOptions& o : all) there.push_back(needs(o).device);
    if (there[0] > usable) {
      lack = fmt::format("training needs {} of the memory of {}; {} are free, of which {} may be used{}; {} (rank {})", readable_bytes(there[0]), job.device->describe(), readable_bytes(free),
                         readable_bytes(usable), sharing > 1 ? fmt::format(" by each of {} ranks", sharing) : "", help_of(all, there, usable), group.rank());
    }
  }
  for (const std::string& text : gather_bytes(group.world(), lack)) check(text.empty(), "{}", text);
  return largest(group.world(), needs(options).bytes());
}

}  // namespace kvmesh
