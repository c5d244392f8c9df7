// The loop that all ranks run in step.
#include "model/generate.h"

#include "comm/agreement.h"
#include "comm/sharding.h"
#include "model/hash.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

namespace kvmesh {
namespace {

// After so long a rank meets the others before its next step, so that slow steps do not add up to what --comm-timeout takes for a dead rank.
constexpr std::chrono::seconds longest_round{1};

}  // namespace

// What every rank says of itself when they meet, in front of its records.
struct Generator::Beat {
  std::int32_t go;                                       // whether it wants another step
  float prefill, decode, sampling, waiting, rows, host;  // its seconds since its last beat
  std::int32_t steps, words, dropped;                    // steps that it took since they last met; words of the records that follow; its dropped draws
  std::uint64_t entries, tokens, weights;                // hashes, which must be everyone's
};

Generator::Generator(const Gpt& gpt, const Tokenizer* tokenizer, Communicator& ranks, GenerateOptions options, Communicator* device_ranks, TimeSink sink)
    : sink_(std::move(sink)),
      gpt_(gpt),
      tokenizer_(tokenizer),
      ranks_(ranks),
      device_ranks_(device_ranks),
      options_(options),
      cache_(gpt.device(), gpt.config(), gpt.dtype(), kvmesh::split(options.batch_size, ranks.size(), ranks.rank()).size(), gpt.config().seqlen),
      workspace_(gpt, Gpt::chunk_tokens),
      logits_(gpt.device().empty(DType::f32, {cache_.places(), gpt.config().vocab_size})),
      row_of_(static_cast<std::size_t>(options.batch_size)),
      schedule_(options, ranks.size(), gpt.config().seqlen),
      weights_(gpt),
      jax_split_{noise_key(options.seed), {}} {
  check(options.shards == Shards::shared || options.batch_size >= ranks.size(), "--shards static: a --batch-size of {} leaves some of the {} ranks without a place", options.batch_size, ranks.size());
  stats_.ranks.resize(static_cast<std::size_t>(ranks.size()));
  finished_.resize(stats_.ranks.size());
  taken_.resize(stats_.ranks.size());
}

GenerateStats Generator::run(const Schedule::Next& next, const std::function<void(const Row&, Completion&&)>& done,
                             const std::function<bool(const GenerateStats&)>& proceed) {
  const auto timed_next = [&] {
    lap(&TimeSplit::host);
    const ProfilerRange range(gpt_.device(), "io");
    std::optional<Row> row = next();
    lap(&TimeSplit::rows);
    return row;
  };
  const auto timed_done = [&](const Row& row, Completion&& completion) {
    lap(&TimeSplit::host);
    const ProfilerRange range(gpt_.device(), "io");
    done(row, std::move(completion));
    lap(&TimeSplit::rows);
  };
  try {
    for (bool go = true; go && (stats_.in_flight = schedule_.begin_round(timed_next)) > 0;) {
      lap(&TimeSplit::host);
      const bool mine = proceed(stats_);
      lap(&TimeSplit::rows);
      go = round(timed_done, mine);
    }
    stats_.stopped = stats_.in_flight > 0 && !schedule_.finished();
  } catch (const Error& e) {
    if (e.fault() != Fault::rank) throw;
    fail(Fault::rank, "step {}: {}", stats_.steps, e.what());  // of this rank: where it waited for another, or found out that one differs
  }
  lap(&TimeSplit::host);
  TimeSplit& own = stats_.ranks[static_cast<std::size_t>(ranks_.rank())];
  own.collectives += since_beat_.collectives, own.rows += since_beat_.rows, own.host += since_beat_.host;  // the others' last steps are theirs to tell
  return stats_;
}

// Each rank takes its steps, then all hear what the others have drawn and do with it what those have done.
bool Generator::round(const std::function<void(const Row&, Completion&&)>& done, bool go) {
  const int me = ranks_.rank();
  const std::int64_t most = schedule_.steps_a_round();
  std::vector<std::vector<std::int32_t>> records(static_cast<std::size_t>(ranks_.size()));  // of each rank, in the order in which it draws
  std::int64_t steps = 1;
  if (options_.sync == Sync::logits && ranks_.size() > 1) {
    step_everywhere(records);
    go = meet(records, go);
  } else {
    const Clock::time_point late = Clock::now() + longest_round;
    for (steps = 0; steps < most && schedule_.busy(me) && (steps == 0 || lap_ < late); ++steps) step(records[static_cast<std::size_t>(me)]);
    taken_[static_cast<std::size_t>(me)] = steps;
    go = meet(records, go);
    for (int r = 0; r < ranks_.size(); ++r) {
      if (r == me) continue;
      const std::int32_t* record = records[static_cast<std::size_t>(r)].data();
      for (std::int64_t step = 0; step < taken_[static_cast<std::size_t>(r)]; ++step) {
        const std::vector<std::size_t> order = schedule_.begin_step(r);
        accept(r, order, record);
        record += order.size() * options_.record_words();
      }
    }
    steps = *std::max_element(taken_.begin(), taken_.end());
  }
  stats_.steps += steps;
  for (const auto& of_rank : records) tokens_hash_ = hash_of(of_rank, tokens_hash_);
  for (auto& of_rank : finished_) {  // by rank, so that all do it in one order
    for (auto& [row, completion] : std::exchange(of_rank, {})) done(row, std::move(completion));
  }
  return go;
}

Finish Generator::finish_with(const Place& place, std::int32_t token) const {
  const Row& row = place.row;
  if (std::find(row.stop_tokens.begin(), row.stop_tokens.end(), token) != row.stop_tokens.end()) return Finish::stop;
  if (!row.stop.empty()) {
    const std::string bytes = place.completion.bytes + std::string(tokenizer_->bytes(token));
    for (const std::string& stop : row.stop) {
      const std::size_t from = place.completion.bytes.size() < stop.size() ? 0 : place.completion.bytes.size() - stop.size() + 1;
      if (bytes.find(stop, from) != std::string::npos) return Finish::stop;
    }
  }
  const std::int64_t count = std::ssize(place.completion.tokens) + 1;
  if (count >= row.max_new_tokens) return Finish::length;
  return std::ssize(*row.prompt) + count >= gpt_.config().seqlen ? Finish::context : Finish::none;
}

// The ranks exchange beats and, where each has only its own, records; all must agree. Returns whether all want to go on.
bool Generator::meet(std::span<std::vector<std::int32_t>> records, bool go) {
  static_assert(sizeof(Beat) % sizeof(std::int32_t) == 0 && std::is_trivially_copyable_v<Beat>);
  const ProfilerRange range(gpt_.device(), "collectives");
  constexpr std::size_t beat_words = sizeof(Beat) / sizeof(std::int32_t);
  const auto me = static_cast<std::size_t>(ranks_.rank());
  const bool with_records = options_.sync == Sync::tokens;
  std::vector<std::int64_t> counts;  // [ranks]: a beat and room for all records that the rank's places can have drawn, as nobody knows yet how many they are
  for (std::size_t r = 0; r < records.size(); ++r) {
    const std::size_t most = schedule_.places_of(static_cast<int>(r)).size() * static_cast<std::size_t>(schedule_.steps_a_round()) * options_.record_words();
    counts.push_back(static_cast<std::int64_t>(beat_words + (with_records ? most : 0)));
  }
  const Beat said = beat(records, go);
  const Tensor mine = host_tensor(DType::i32, {counts[me]});
  std::int32_t* const to = mine.data<std::int32_t>();
  std::memcpy(to, &said, sizeof said);
  if (with_records) std::fill(std::copy(records[me].begin(), records[me].end(), to + beat_words), to + counts[me], 0);
  Tensor heard = mine;
  if (ranks_.size() > 1) {
    heard = host_tensor(DType::i32, {std::accumulate(counts.begin(), counts.end(), std::int64_t{0})});
    ranks_.all_gather_ragged(mine, counts, heard);
  }
  lap(&TimeSplit::collectives);
  std::vector<Beat> beats(records.size());
  const std::int32_t* from = heard.data<std::int32_t>();
  for (std::size_t r = 0; r < beats.size(); ++r) {
    std::memcpy(static_cast<void*>(&beats[r]), from, sizeof(Beat));
    go = go && beats[r].go;
    taken_[r] = beats[r].steps;
    if (with_records && r != me) records[r].assign(from + beat_words, from + beat_words + beats[r].words);
    from += counts[r];
  }
  listen(beats);
  return go;
}

Generator::Beat Generator::beat(std::span<const std::vector<std::int32_t>> records, bool go) {
  std::uint64_t weights = 0, tokens = tokens_hash_;
  if (options_.sentinel > 0 && stats_.steps >= next_look_) {
    weights = weights_.next();
    next_look_ = stats_.steps + options_.sentinel;
  }
  if (options_.sync == Sync::logits) {  // drawn everywhere: to be compared before anybody uses them
    for (const auto& of_rank : records) tokens = hash_of(of_rank, tokens);
  }
  const auto me = static_cast<std::size_t>(ranks_.rank());
  const auto steps = static_cast<std::int32_t>(taken_[me]), words = static_cast<std::int32_t>(records[me].size());
  lap(&TimeSplit::host);
  const TimeSplit t = std::exchange(since_beat_, {});
  const auto seconds = [](double s) { return static_cast<float>(s); };
  return {go, seconds(t.prefill), seconds(t.decode), seconds(t.sampling), seconds(t.collectives), seconds(t.rows), seconds(t.host), steps, words,
          static_cast<std::int32_t>(std::exchange(dropped_, 0)), schedule_.hash(), tokens, weights};
}

void Generator::listen(std::span<const Beat> beats) {
  float shortest = beats[0].waiting;  // the rank that came last waited for nobody
  for (const Beat& b : beats) shortest = std::min(shortest, b.waiting);
  for (std::size_t r = 0; r < beats.size(); ++r) {
    const Beat& b = beats[r];
    TimeSplit& t = stats_.ranks[r];
    t.prefill += b.prefill, t.decode += b.decode, t.sampling += b.sampling, t.rows += b.rows, t.host += b.host;
    t.collectives += shortest, t.idle += b.waiting - shortest;
    stats_.dropped_draws += b.dropped;
  }
  std::vector<std::uint64_t> hashes(beats.size());
  for (const auto& [hash, what] : {std::pair(&Beat::entries, "the rows in flight"), std::pair(&Beat::tokens, "the drawn tokens"), std::pair(&Beat::weights, "the weights in memory")}) {
    std::transform(beats.begin(), beats.end(), hashes.begin(), [member = hash](const Beat& b) { return b.*member; });
    check_equal(hashes, what);
  }
}

// The end of a step of `rank`: what it drew, in the order of its pass.
void Generator::accept(int rank, std::span<const std::size_t> order, const std::int32_t* records) {
  for (const Place& p : schedule_.places_of(rank)) stats_.prompt_tokens += p.fork_of < 0 ? p.fed : p.fed > 0;
  schedule_.end_step(rank);
  for (const std::size_t p : order) {
    accept(rank, schedule_.places()[p], records);
    records += options_.record_words();
  }
}

void Generator::accept(int rank, Place& place, const std::int32_t* record) {
  Completion& c = place.completion;
  const std::int32_t token = record[0];
  const bool first = c.tokens.empty();
  c.tokens.push_back(token);
  c.finish = static_cast<Finish>(record[1]);
  if (options_.logprobs >= 0) {
    const std::int32_t best = options_.logprobs;
    c.logprobs.push_back(std::bit_cast<float>(record[2]));
    c.top_ids.insert(c.top_ids.end(), record + 3, record + 3 + best);
    for (std::int32_t j = 0; j < best; ++j) c.top_logprobs.push_back(std::bit_cast<float>(record[3 + best + j]));
  }
  const std::vector<std::int32_t>& stop_tokens = place.row.stop_tokens;
  if (tokenizer_ && std::find(stop_tokens.begin(), stop_tokens.end(), token) == stop_tokens.end()) {
    c.bytes += tokenizer_->bytes(token);
    std::size_t cut = std::string::npos;
    if (c.finish == Finish::stop) {
      for (const std::string& stop : place.row.stop) cut = std::min(cut, c.bytes.find(stop));
    }
    if (cut != std::string::npos) c.bytes.resize(cut);
  }
  ++stats_.new_tokens;
  stats_.decode_tokens += !first;
  if (first) stats_.first_token_seconds += std::chrono::duration<double>(Clock::now() - place.entered).count();
  if (c.finish == Finish::none) return;
  ++stats_.rows;
  place.active = false;
  finished_[static_cast<std::size_t>(rank)].emplace_back(std::move(place.row), std::move(c));
}

void Generator::lap(double TimeSplit::* part) {
  const Clock::time_point from = std::exchange(lap_, Clock::now());
  since_beat_.*part += std::chrono::duration<double>(lap_ - from).count();
  if (sink_) sink_(part, from, lap_);
}

}  // namespace kvmesh
