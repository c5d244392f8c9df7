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
std::int64_t record_words(const GenerateOptions& options) { return options.logprobs < 0 ? 2 : 3 + 2 * std::int64_t{options.logprobs}; }

}  // namespace

// What every rank says of itself in each step, in front of its records.
struct Generator::Beat {
  std::int32_t go;                                       // whether it wants another step
  float prefill, decode, sampling, waiting, rows, host;  // its seconds since its last beat
  std::int32_t unused;
  std::uint64_t entries, tokens, weights;                // hashes, which must be everyone's
};

// What a rank knows after the ranks have met.
struct Generator::Exchange {
  std::vector<std::int32_t> records;  // one rank's order after another's
  bool go;
};

Generator::Generator(const Gpt& gpt, const Tokenizer* tokenizer, Communicator& ranks, GenerateOptions options)
    : gpt_(gpt),
      tokenizer_(tokenizer),
      ranks_(ranks),
      options_(options),
      cache_(gpt.device(), gpt.config(), gpt.dtype(), kvmesh::split(options.batch_size, ranks.size(), ranks.rank()).size(), gpt.config().seqlen),
      workspace_(gpt, Gpt::chunk_tokens),
      logits_(gpt.device().empty(DType::f32, {cache_.places(), gpt.config().vocab_size})),
      schedule_(options, ranks.size(), gpt.config().seqlen),
      weights_(gpt),
      jax_key_(noise_key(options.seed)) {
  check(options.shards == Shards::shared || options.batch_size >= ranks.size(), "--shards static: a --batch-size of {} leaves some of the {} ranks without a place", options.batch_size, ranks.size());
  stats_.ranks.resize(static_cast<std::size_t>(ranks.size()));
}

GenerateStats Generator::run(const Schedule::Next& next, const std::function<void(const Row&, Completion&&)>& done,
                             const std::function<bool(const GenerateStats&)>& proceed) {
  const auto timed_next = [&] {
    lap(since_beat_.host);
    std::optional<Row> row = next();
    lap(since_beat_.rows);
    return row;
  };
  const auto timed_done = [&](const Row& row, Completion&& completion) {
    lap(since_beat_.host);
    done(row, std::move(completion));
    lap(since_beat_.rows);
  };
  try {
    for (bool go = true; go && (stats_.in_flight = schedule_.begin_step(timed_next)) > 0; ++stats_.steps) {
      lap(since_beat_.host);
      const bool mine = proceed(stats_);
      lap(since_beat_.rows);
      go = step(timed_done, mine);
    }
    stats_.stopped = stats_.in_flight > 0 && !schedule_.finished();
  } catch (const Error& e) {
    if (e.fault() != Fault::rank) throw;
    fail(Fault::rank, "step {}: {}", stats_.steps, e.what());  // of this rank: where it waited for another, or found out that one differs
  }
  lap(since_beat_.host);
  TimeSplit& own = stats_.ranks[static_cast<std::size_t>(ranks_.rank())];
  own.collectives += since_beat_.collectives, own.rows += since_beat_.rows, own.host += since_beat_.host;  // the others' last steps are theirs to tell
  return stats_;
}

bool Generator::step(const std::function<void(const Row&, Completion&&)>& done, bool go) {
  std::vector<std::vector<std::size_t>> orders;  // [ranks]
  for (int r = 0; r < ranks_.size(); ++r) orders.push_back(schedule_.pass_order(r));
  if (options_.rng == Rng::jax && stats_.steps > 0) {
    const SplitKey keys = split(jax_key_);
    jax_key_ = keys.first, jax_step_key_ = keys.second;
  }
  const Tensor logits = logits_.slice(0, std::ssize(orders[static_cast<std::size_t>(ranks_.rank())]));
  lap(since_beat_.host);
  forward(logits);
  const Exchange all = exchange(logits, orders, go);
  for (const Place& p : schedule_.places()) stats_.prompt_tokens += p.fork_of < 0 ? p.fed : p.fed > 0;
  schedule_.end_step();
  const std::int32_t* record = all.records.data();
  for (const auto& order : orders) {
    for (const std::size_t p : order) {
      accept(schedule_.places()[p], record, done);
      record += record_words(options_);
    }
  }
  return all.go;
}

// Own rows through the model: what is fed of prompts and every decoding row's newest token in, next-token logits into `logits` in pass_order.
void Generator::forward(const Tensor& logits) {
  const std::span<Place> own = schedule_.places_of(ranks_.rank());
  std::vector<std::int32_t> tokens, wanted;
  std::vector<Segment> segments;
  std::int64_t written = 0;
  const auto pass = [&](double& seconds) {
    if (segments.empty()) return;
    gpt_.forward(tokens, segments, wanted, cache_, workspace_, logits.slice(written, written + std::ssize(wanted)));
    lap(seconds);
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
  pass(since_beat_.prefill);
  // A fork has its prompt but the last token copied from its sibling, and computes that one itself: the same bits, without keeping logits.
  for (const Place& p : own) {
    if (p.fed == 0 || p.fork_of < 0) continue;
    const Place& sibling = schedule_.places()[static_cast<std::size_t>(p.fork_of)];
    cache_.copy_row(gpt_.device(), static_cast<std::int32_t>(&sibling - own.data()), sibling.start, static_cast<std::int32_t>(&p - own.data()), p.start,
                    p.prompt() - 1);
    run(p, p.prompt() - 1, std::span(*p.row.prompt).last(1));
  }
  pass(since_beat_.prefill);
  for (const Place& p : own) {
    if (p.active && p.decodes()) run(p, p.prompt() + std::ssize(p.completion.tokens) - 1, std::span(p.completion.tokens).last(1));
  }
  pass(since_beat_.decode);
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
  const auto n = static_cast<std::int64_t>(places.size()), best = std::max<std::int64_t>(options_.logprobs, 0), words = record_words(options_);
  const std::int64_t vocab = gpt_.config().vocab_size;
  if (n == 0) return;
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
  for (std::int64_t i = 0; i < n; ++i, record += words) {
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

// Tokens are drawn by the rank that has the logits, or from all logits by all ranks; then all ranks have all records.
Generator::Exchange Generator::exchange(const Tensor& logits, std::span<const std::vector<std::size_t>> orders, bool go) {
  static_assert(sizeof(Beat) % sizeof(std::int32_t) == 0 && std::is_trivially_copyable_v<Beat>);
  constexpr std::int64_t beat_words = sizeof(Beat) / sizeof(std::int32_t);
  const std::int64_t words = record_words(options_);
  std::vector<std::size_t> all;
  std::vector<std::int64_t> rows, counts;  // [ranks]
  for (const auto& order : orders) {
    all.insert(all.end(), order.begin(), order.end());
    rows.push_back(std::ssize(order));
  }
  Exchange result{std::vector<std::int32_t>(all.size() * static_cast<std::size_t>(words)), true};
  const bool drawn_here = options_.sync == Sync::logits || ranks_.size() == 1;
  if (drawn_here) {
    Tensor gathered = logits;
    if (ranks_.size() > 1) {
      gathered = gpt_.device().empty(DType::f32, {std::ssize(all), gpt_.config().vocab_size});
      ranks_.all_gather_ragged(logits, rows, gathered);
      lap(since_beat_.collectives);
    }
    draw(all, gathered, result.records.data());
    tokens_hash_ = hash_of(result.records, tokens_hash_);
  }

  // [beat, records of its rows] of this rank, then of all
  const auto& own = orders[static_cast<std::size_t>(ranks_.rank())];
  for (const std::int64_t n : rows) counts.push_back(beat_words + (drawn_here ? 0 : n * words));
  const Tensor mine = host_tensor(DType::i32, {counts[static_cast<std::size_t>(ranks_.rank())]});
  if (!drawn_here) draw(own, logits, mine.data<std::int32_t>() + beat_words);
  lap(since_beat_.sampling);
  const Beat said = beat(go);
  std::memcpy(mine.raw(), &said, sizeof said);
  Tensor heard = mine;
  if (ranks_.size() > 1) {
    heard = host_tensor(DType::i32, {std::accumulate(counts.begin(), counts.end(), std::int64_t{0})});
    ranks_.all_gather_ragged(mine, counts, heard);
  }
  lap(since_beat_.collectives);

  std::vector<Beat> beats(orders.size());
  const std::int32_t* from = heard.data<std::int32_t>();
  std::int32_t* record = result.records.data();
  for (std::size_t r = 0; r < beats.size(); ++r) {
    std::memcpy(static_cast<void*>(&beats[r]), from, sizeof(Beat));
    result.go = result.go && beats[r].go;
    if (!drawn_here) record = std::copy(from + beat_words, from + counts[r], record);
    from += counts[r];
  }
  listen(beats);
  if (!drawn_here) tokens_hash_ = hash_of(result.records, tokens_hash_);
  return result;
}

Generator::Beat Generator::beat(bool go) {
  const bool look = options_.sentinel > 0 && stats_.steps % options_.sentinel == 0;
  const std::uint64_t weights = look ? weights_.next() : 0;
  lap(since_beat_.host);
  const TimeSplit t = std::exchange(since_beat_, {});
  const auto seconds = [](double s) { return static_cast<float>(s); };
  return {go, seconds(t.prefill), seconds(t.decode), seconds(t.sampling), seconds(t.collectives), seconds(t.rows), seconds(t.host), 0, schedule_.hash(), tokens_hash_, weights};
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

void Generator::accept(Place& place, const std::int32_t* record, const std::function<void(const Row&, Completion&&)>& done) {
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
  done(place.row, std::move(c));
}

void Generator::lap(double& part) {
  const Clock::time_point now = Clock::now();
  part += std::chrono::duration<double>(now - std::exchange(lap_, now)).count();
}

}  // namespace kvmesh
