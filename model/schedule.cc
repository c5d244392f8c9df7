// Entering and feeding.
#include "model/schedule.h"

#include "comm/sharding.h"
#include "model/hash.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace kvmesh {
namespace {

constexpr std::int64_t longest_queue = 1 << 16;  // Shards::fixed: a rank that is so many rows ahead of another waits for it

}  // namespace

Schedule::Schedule(const GenerateOptions& options, int ranks, std::int64_t size)
    : options_(options), places_(static_cast<std::size_t>(options.batch_size)), waiting_(static_cast<std::size_t>(ranks)), end_(size) {
  for (int r = 0; r < ranks; ++r) first_place_.push_back(split(options.batch_size, ranks, r).begin);
  first_place_.push_back(options.batch_size);
  options_.sync_every = std::min(options_.sync_every, size);  // no row takes more, and a meeting has room for all that may be drawn before it
  if (ranks == 1 || options.rng == Rng::jax || options.sync == Sync::logits) options_.sync_every = 1;
  if (options.static_batches || options.rng == Rng::jax) options_.prefill_chunk = std::numeric_limits<std::int64_t>::max();
}

std::int64_t Schedule::begin_round(const Next& next) {
  std::vector<std::int64_t> rows(waiting_.size());  // of each rank, in flight
  for (std::size_t p = 0; p < places_.size(); ++p) rows[static_cast<std::size_t>(rank_of(p))] += places_[p].active;
  std::int64_t in_flight = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  const bool idle = in_flight == 0;
  end_ += idle ? 0 : options_.sync_every;
  if (idle || !options_.static_batches) {
    Entering entering = options_.shards == Shards::shared ? take_shared(next, rows) : take_fixed(next, rows);
    std::size_t longest = 0;
    for (const auto& of_rank : entering) {
      for (const Row& row : of_rank) longest = std::max(longest, row.prompt->size());
    }
    if (idle && longest > 0) end_ += padded_length(static_cast<std::int64_t>(longest), options_.pad);  // a new batch: its prompts are left-padded to one length
    for (std::size_t r = 0; r < entering.size(); ++r) {
      auto p = static_cast<std::size_t>(first_place_[r]);
      for (Row& row : entering[r]) {
        while (places_[p].active) ++p;
        enter(p, std::move(row));
        ++in_flight;
      }
    }
  }
  return in_flight;
}

// One row after another goes to the rank with the fewest rows (the lowest such rank) until places or rows run out; then rank 0 gets the
// first of these rows, rank 1 the next, and so on. Into an empty mesh this is the batch axis' contiguous split.
Schedule::Entering Schedule::take_shared(const Next& next, std::vector<std::int64_t> rows) {
  const std::int64_t free = std::ssize(places_) - std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  std::vector<Row> taken;
  while (std::ssize(taken) < free && !exhausted_) {
    if (std::optional<Row> row = next()) taken.push_back(std::move(*row));
    else exhausted_ = true;
  }
  std::vector<std::int64_t> counts(rows.size());
  for (std::size_t i = 0; i < taken.size(); ++i) {
    std::size_t best = rows.size();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (rows[r] < places_of_rank(r) && (best == rows.size() || rows[r] < rows[best])) best = r;
    }
    ++rows[best], ++counts[best];
  }
  Entering entering(rows.size());
  auto row = std::make_move_iterator(taken.begin());
  for (std::size_t r = 0; r < rows.size(); row += counts[r++]) entering[r].assign(row, row + counts[r]);
  return entering;
}

// Every rank waits for its own rows, in their order.
Schedule::Entering Schedule::take_fixed(const Next& next, std::span<const std::int64_t> rows) {
  Entering entering(rows.size());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    while (rows[r] + std::ssize(entering[r]) < places_of_rank(r)) {
      while (waiting_[r].empty() && !exhausted_ && std::none_of(waiting_.begin(), waiting_.end(), [](const auto& queue) { return std::ssize(queue) >= longest_queue; })) {
        if (std::optional<Row> row = next()) waiting_[static_cast<std::size_t>(row->index) % rows.size()].push_back(std::move(*row));
        else exhausted_ = true;
      }
      if (waiting_[r].empty()) break;
      entering[r].push_back(std::move(waiting_[r].front()));
      waiting_[r].pop_front();
    }
  }
  return entering;
}

// A rank prefills its prompts one after another, prefill_chunk tokens a step. The row starts where its last prompt token will be at the cursor.
void Schedule::enter(std::size_t place, Row row) {
  const std::int64_t length = std::ssize(*row.prompt);
  std::int64_t pending = length;
  for (const Place& other : places_of(rank_of(place))) pending += other.active && other.fork_of < 0 ? other.prompt() - other.cached : 0;
  Place& p = places_[place];
  p = Place{};
  p.active = true;
  p.row = std::move(row);
  p.fork_of = sibling_of(place);
  if (p.fork_of < 0) {
    p.start = end_ - length + (pending - 1) / options_.prefill_chunk;
  } else {
    const Place& sibling = places_[static_cast<std::size_t>(p.fork_of)];
    p.start = sibling.decodes() ? end_ - length : sibling.start;
  }
  p.entry = entries_++;
  p.key = p.row.seed ? noise_key(*p.row.seed) : fold_in(noise_key(options_.seed), static_cast<std::uint32_t>(p.row.index));
  if (options_.samples > 1) p.key = fold_in(p.key, static_cast<std::uint32_t>(p.row.sample));
  p.entered = std::chrono::steady_clock::now();
  const std::int64_t entry[] = {static_cast<std::int64_t>(place), p.row.index, p.row.sample, p.row.max_new_tokens, p.start};
  hash_ = hash_of(*p.row.prompt, hash_of(entry, hash_));
}

bool Schedule::busy(int rank) const {
  const std::span<const Place> own = places_of(rank);
  return std::any_of(own.begin(), own.end(), [](const Place& p) { return p.active; });
}

void Schedule::end_step(int rank) {
  for (Place& p : places_of(rank)) p.cached += std::exchange(p.fed, 0);
}

bool Schedule::finished() const {
  const bool empty = std::none_of(places_.begin(), places_.end(), [](const Place& p) { return p.active; });
  return exhausted_ && empty && std::all_of(waiting_.begin(), waiting_.end(), [](const auto& queue) { return queue.empty(); });
}

int Schedule::rank_of(std::size_t place) const {
  return static_cast<int>(std::upper_bound(first_place_.begin(), first_place_.end(), static_cast<std::int64_t>(place)) - first_place_.begin()) - 1;
}

std::span<Place> Schedule::places_of(int rank) {
  const auto r = static_cast<std::size_t>(rank);
  return std::span(places_).subspan(static_cast<std::size_t>(first_place_[r]), static_cast<std::size_t>(places_of_rank(r)));
}

// A place of the same rank that has the same prompt in the cache or will have it, or -1.
std::int32_t Schedule::sibling_of(std::size_t place) const {
  const auto rank = static_cast<std::size_t>(rank_of(place));
  for (auto p = static_cast<std::size_t>(first_place_[rank]); p < static_cast<std::size_t>(first_place_[rank + 1]); ++p) {
    const Place& other = places_[p];
    if (p != place && other.active && (other.fork_of < 0 || other.decodes()) && other.row.index == places_[place].row.index) return static_cast<std::int32_t>(p);
  }
  return -1;
}

// Of prompts, the next prefill_chunk tokens; forks whose prompt is whole by then.
std::vector<std::size_t> Schedule::begin_step(int rank) {
  const std::span<Place> own = places_of(rank);
  std::vector<Place*> prompts;
  for (Place& p : own) {
    if (p.active && !p.decodes() && p.fork_of < 0) prompts.push_back(&p);
  }
  std::sort(prompts.begin(), prompts.end(), [](const Place* a, const Place* b) { return a->entry < b->entry; });
  std::int64_t left = options_.prefill_chunk;
  for (Place* p : prompts) left -= p->fed = std::min(left, p->prompt() - p->cached);
  for (Place& p : own) {
    if (p.active && !p.decodes() && p.fork_of >= 0 && places_[static_cast<std::size_t>(p.fork_of)].draws()) p.fed = p.prompt();
  }
  std::vector<std::size_t> order;
  for (const int kind : {0, 1, 2}) {
    for (const Place& p : own) {
      if (p.draws() && kind == (p.decodes() ? 2 : p.fork_of < 0 ? 0 : 1)) order.push_back(static_cast<std::size_t>(&p - places_.data()));
    }
  }
  return order;
}

}  // namespace kvmesh
