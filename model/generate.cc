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

// One record a place and step: what its owner drew, as int32 words.
//   token, finish [, log-probability's bits, N best ids, N best log-probabilities' bits]
std::size_t record_words(const GenerateOptions& options) { return options.logprobs < 0 ? 2 : 3 + 2 * static_cast<std::size_t>(options.logprobs); }

// After so long a rank meets the others before its next step, so that slow steps do not add up to what --comm-timeout takes for a dead rank.
constexpr std::chrono::seconds longest_round{1};

}  // namespace

// What every rank says of itself when they meet, in front of its records.
struct Generator::Beat {
  std::int32_t go;                                       // whether it wants another step
  float prefill, decode, sampling, waiting, rows, host;  // its seconds since its last beat
  std::int32_t steps, words, unused;                     // steps that it took since they last met; words of the records that follow
  std::uint64_t entries, tokens, weights;                // hashes, which must be everyone's
};

Generator::Generator(const Gpt& gpt, const Tokenizer* tokenizer, Communicator& ranks, GenerateOptions options, Communicator* device_ranks, TimeSink sink)
    : sink_(std::move(sink)),
      gpt_(gpt),
      tokenizer_(tokenizer),
      ranks_(ranks),
      logits_ranks_(device_ranks ? *device_ranks : ranks),
      options_(options),
      cache_(gpt.device(), gpt.config(), gpt.dtype(), kvmesh::split(options.batch_size, ranks.size(), ranks.rank()).size(), gpt.config().seqlen),
      workspace_(gpt, Gpt::chunk_tokens),
      logits_(gpt.device().empty(DType::f32, {cache_.places(), gpt.config().vocab_size})),
      schedule_(options, ranks.size(), gpt.config().seqlen),
      weights_(gpt),
      jax_key_(noise_key(options.seed)) {
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
  if (options_.rng == Rng::jax && stats_.steps > 0) {
    const SplitKey keys = split(jax_key_);
    jax_key_ = keys.first, jax_step_key_ = keys.second;
  }
  if (options_.sync == Sync::logits && ranks_.size() > 1) {
    step_everywhere(records);
    go = meet(records, go);
  } else {
    std::vector<std::int32_t>& own = records[static_cast<std::size_t>(me)];
    const Clock::time_point late = Clock::now() + longest_round;
    for (steps = 0; steps < most && schedule_.busy(me) && (steps == 0 || lap_ < late); ++steps) {
      const std::vector<std::size_t> order = schedule_.begin_step(me);
      const Tensor logits = logits_.slice(0, std::ssize(order));
      lap(&TimeSplit::host);
      forward(logits);
      const std::size_t drawn = own.size();
      own.resize(drawn + order.size() * record_words(options_));
      draw(order, logits, own.data() + drawn);
      lap(&TimeSplit::sampling);
      accept(me, order, own.data() + drawn);
    }
    taken_[static_cast<std::size_t>(me)] = steps;
    go = meet(records, go);
    for (int r = 0; r < ranks_.size(); ++r) {
      if (r == me) continue;
      const std::int32_t* record = records[static_cast<std::size_t>(r)].data();
      for (std::int64_t step = 0; step < taken_[static_cast<std::size_t>(r)]; ++step) {
        const std::vector<std::size_t> order = schedule_.begin_step(r);
        accept(r, order, record);
        record += order.size() * record_words(options_);
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

// Own rows through the model: what is fed of prompts and every decoding row's newest token in, next-token logits into `logits` in pass_order.
void Generator::forward(const Tensor& logits) {
  const std::span<Place> own = schedule_.places_of(ranks_.rank());
  std::vector<std::int32_t> tokens, wanted;
  std::vector<Segment> segments;
  std::int64_t written = 0;
  const auto pass = [&](double TimeSplit::* part) {
    if (segments.empty()) return;
    const ProfilerRange range(gpt_.device(), part == &TimeSplit::prefill ? "prefill" : "decode");
    gpt_.forward(tokens, segments, wanted, cache_, workspace_, logits.slice(written, written + std::ssize(wanted)));
    lap(part);
    written += std::ssize(wanted);
    tokens.clear(), segments.clear(), wanted.clear();
  };
  const auto run = [&](const Place& place, std::int64_t position, std::span<const std::int32_t> ids) {  // position: in the row, of the first
    segments.push_back({place.start, place.start + position, static_cast<std::int32_t>(&place - own.data()), static_cast<std::int32_t>(ids.size()),
                        static_cast<std::int32_t>(tokens.size())});
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    if (place.draws()) wanted.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
  };
  for (const Place& p : own) {
    if (p.fed > 0 && p.fork_of < 0) run(p, p.cached, std::span(*p.row.prompt).subspan(static_cast<std::size_t>(p.cached), static_cast<std::size_t>(p.fed)));
  }
  pass(&TimeSplit::prefill);
  // A fork has its prompt but the last token copied from its sibling, and computes that one itself: the same bits, without keeping logits.
  for (const Place& p : own) {
    if (p.fed == 0 || p.fork_of < 0) continue;
    const Place& sibling = schedule_.places()[static_cast<std::size_t>(p.fork_of)];
    cache_.copy_row(gpt_.device(), static_cast<std::int32_t>(&sibling - own.data()), sibling.start, static_cast<std::int32_t>(&p - own.data()), p.start,
                    p.prompt() - 1);
    run(p, p.prompt() - 1, std::span(*p.row.prompt).last(1));
  }
  pass(&TimeSplit::prefill);
  for (const Place& p : own) {
    if (p.active && p.decodes()) run(p, p.prompt() + std::ssize(p.completion.tokens) - 1, std::span(p.completion.tokens).last(1));
  }
  pass(&TimeSplit::decode);
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

// Draws the next token of each of `places` from its row of `logits`, into records [places, record_words].
void Generator::draw(std::span<const std::size_t> places, const Tensor& logits, std::int32_t* record) {
  const auto n = static_cast<std::int64_t>(places.size()), best = std::max<std::int64_t>(options_.logprobs, 0);
  const std::int64_t vocab = gpt_.config().vocab_size;
  if (n == 0) return;
  const ProfilerRange range(gpt_.device(), "sampling");
  std::vector<SampleRow> rows;
  for (const std::size_t p : places) {
    const Place& place = schedule_.places()[p];
    SampleRow row{place.row.temperature, place.row.top_k, place.row.top_p, place.row.min_p, {}, 0, -1};
    if (options_.rng == Rng::jax) {
      if (place.completion.tokens.empty()) row.temperature = 0;  // the seed's prefill takes the argmax
      row.key = jax_step_key_;
      row.first_count = static_cast<std::uint64_t>((place.row.index * options_.samples + place.row.sample) * vocab);
    } else {
      row.key = fold_in(place.key, static_cast<std::uint32_t>(place.completion.tokens.size()));
    }
    rows.push_back(row);
  }
  Device& device = gpt_.device();
  SampleOut out;
  out.tokens = device.empty(DType::i32, {n});
  if (options_.logprobs >= 0) out.log_probs = device.empty(DType::f32, {n, 1 + best});
  if (best > 0) out.top_ids = device.empty(DType::i32, {n, best});
  device.sample(logits, rows, out);
  const auto to_host = [&](const Tensor& t) {
    Tensor host = host_tensor(t.dtype(), t.shape());
    device.copy(t, host);
    return host;
  };
  const Tensor tokens = to_host(out.tokens), log_probs = out.log_probs.defined() ? to_host(out.log_probs) : Tensor(),
               top_ids = out.top_ids.defined() ? to_host(out.top_ids) : Tensor();
  for (std::int64_t i = 0; i < n; ++i, record += record_words(options_)) {
    record[0] = tokens.data<std::int32_t>()[i];
    record[1] = static_cast<std::int32_t>(finish_with(schedule_.places()[places[static_cast<std::size_t>(i)]], record[0]));
    if (options_.logprobs < 0) continue;
    const float* lp = log_probs.data<float>() + i * (1 + best);
    record[2] = std::bit_cast<std::int32_t>(lp[0]);
    for (std::int64_t j = 0; j < best; ++j) {
      record[3 + j] = top_ids.data<std::int32_t>()[i * best + j];
      record[3 + best + j] = std::bit_cast<std::int32_t>(lp[1 + j]);
    }
  }
}

// One step of all ranks in which every rank has all logits and draws for all.
void Generator::step_everywhere(std::span<std::vector<std::int32_t>> records) {
  std::vector<std::vector<std::size_t>> orders;
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks_.size(); ++r) {
    orders.push_back(schedule_.begin_step(r));
    counts.push_back(std::ssize(orders.back()));
  }
  const Tensor logits = logits_.slice(0, counts[static_cast<std::size_t>(ranks_.rank())]);
  const Tensor gathered = gpt_.device().empty(DType::f32, {std::accumulate(counts.begin(), counts.end(), std::int64_t{0}), gpt_.config().vocab_size});
  lap(&TimeSplit::host);
  forward(logits);
  logits_ranks_.all_gather_ragged(logits, counts, gathered);
  lap(&TimeSplit::collectives);
  std::int64_t from = 0;
  for (std::size_t r = 0; r < orders.size(); ++r) {
    records[r].resize(orders[r].size() * record_words(options_));
    draw(orders[r], gathered.slice(from, from + counts[r]), records[r].data());
    from += counts[r];
  }
  lap(&TimeSplit::sampling);
  for (std::size_t r = 0; r < orders.size(); ++r) accept(static_cast<int>(r), orders[r], records[r].data());
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
    const std::size_t most = schedule_.places_of(static_cast<int>(r)).size() * static_cast<std::size_t>(schedule_.steps_a_round()) * record_words(options_);
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
  return {go, seconds(t.prefill), seconds(t.decode), seconds(t.sampling), seconds(t.collectives), seconds(t.rows), seconds(t.host), steps, words, 0, schedule_.hash(), tokens, weights};
}

void Generator::listen(std::span<const Beat> beats) {
  float shortest = beats[0].waiting;  // the rank that came last waited for nobody
  for (const Beat& b : beats) shortest = std::min(shortest, b.waiting);
  for (std::size_t r = 0; r < beats.size(); ++r) {
    const Beat& b = beats[r];
    TimeSplit& t = stats_.ranks[r];
    t.prefill += b.prefill, t.decode += b.decode, t.sampling += b.sampling, t.rows += b.rows, t.host += b.host;
    t.collectives += shortest, t.idle += b.waiting - shortest;
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
    records += record_words(options_);
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
