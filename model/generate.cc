// The loop that all ranks run in step.
#include "model/generate.h"

#include "comm/agreement.h"
#include "comm/sharding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

// One record a place and step: what its owner drew, as int32 words.
//   token, finish [, log-probability's bits, N best ids, N best log-probabilities' bits]
std::int64_t record_words(const GenerateOptions& options) { return options.logprobs < 0 ? 2 : 3 + 2 * std::int64_t{options.logprobs}; }

// FNV-1a over the words, for comparing what ranks drew.
std::uint64_t hash_words(std::span<const std::int32_t> words) {
  std::uint64_t h = 14695981039346656037u;
  for (const std::int32_t w : words) h = (h ^ static_cast<std::uint32_t>(w)) * 1099511628211u;
  return h;
}

}  // namespace

Generator::Generator(const Gpt& gpt, const Tokenizer* tokenizer, Communicator& ranks, GenerateOptions options, Communicator* device_ranks)
    : gpt_(gpt),
      tokenizer_(tokenizer),
      ranks_(ranks),
      logits_ranks_(device_ranks ? *device_ranks : ranks),
      options_(options),
      cache_(gpt.device(), gpt.config(), gpt.dtype(), kvmesh::split(options.batch_size, ranks.size(), ranks.rank()).size(), gpt.config().seqlen),
      workspace_(gpt, Gpt::chunk_tokens),
      logits_(gpt.device().empty(DType::f32, {cache_.places(), gpt.config().vocab_size})),
      places_(static_cast<std::size_t>(options.batch_size)),
      end_(gpt.config().seqlen),
      jax_key_(noise_key(options.seed)) {
  for (int r = 0; r < ranks.size(); ++r) first_place_.push_back(kvmesh::split(options.batch_size, ranks.size(), r).begin);
  first_place_.push_back(options.batch_size);
  if (options.static_batches || options.rng == Rng::jax) options_.prefill_chunk = std::numeric_limits<std::int64_t>::max();
}

int Generator::rank_of(std::size_t place) const {
  return static_cast<int>(std::upper_bound(first_place_.begin(), first_place_.end(), static_cast<std::int64_t>(place)) - first_place_.begin()) - 1;
}

// Which waiting row takes which free place: one row after another goes to the rank with the fewest rows (the lowest such rank) until
// places or rows run out; then rank 0 gets the first of these rows, rank 1 the next, and so on, each in its lowest free
// places. Into an empty mesh this is the batch axis' contiguous split.
void Generator::admit(const std::function<std::optional<Row>()>& next) {
  std::vector<std::int64_t> active(static_cast<std::size_t>(ranks_.size())), taking(active.size());
  std::int64_t free = 0;
  for (std::size_t p = 0; p < places_.size(); ++p) {
    active[static_cast<std::size_t>(rank_of(p))] += places_[p].active;
    free += !places_[p].active;
  }
  const bool idle = free == std::ssize(places_);
  const std::int64_t cursor = end_;
  end_ += idle ? 0 : 1;
  if (options_.static_batches && !idle) return;
  while (std::ssize(waiting_) < free && !exhausted_) {
    if (std::optional<Row> row = next()) waiting_.push_back(std::move(*row));
    else exhausted_ = true;
  }
  if (waiting_.empty()) return;
  if (idle) {  // a new batch: its prompts are left-padded to one length
    std::size_t longest = 0;
    for (const Row& row : waiting_) longest = std::max(longest, row.prompt->size());
    end_ = cursor + padded_length(static_cast<std::int64_t>(longest), options_.pad);
  }
  const std::int64_t entering = std::min<std::int64_t>(free, std::ssize(waiting_));
  for (std::int64_t i = 0; i < entering; ++i) {
    std::size_t best = active.size();
    for (std::size_t r = 0; r < active.size(); ++r) {
      const bool room = active[r] + taking[r] < first_place_[r + 1] - first_place_[r];
      if (room && (best == active.size() || active[r] + taking[r] < active[best] + taking[best])) best = r;
    }
    ++taking[best];
  }
  std::size_t row = 0;
  for (std::size_t p = 0; p < places_.size(); ++p) {
    std::int64_t& left = taking[static_cast<std::size_t>(rank_of(p))];
    if (places_[p].active || left == 0) continue;
    --left;
    enter(p, std::move(waiting_[row++]));
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + entering);
}

// A rank prefills its prompts one after another, prefill_chunk tokens a step. The row starts where its last prompt token will be at the cursor.
void Generator::enter(std::size_t place, Row row) {
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
  p.entered = Clock::now();
  stats_.prompt_tokens += p.fork_of < 0 ? length : 1;
}

std::span<Generator::Place> Generator::places_of(int rank) {
  const auto r = static_cast<std::size_t>(rank);
  return std::span(places_).subspan(static_cast<std::size_t>(first_place_[r]), static_cast<std::size_t>(first_place_[r + 1] - first_place_[r]));
}

// A place of the same rank that has the same prompt in the cache or will have it, or -1.
std::int32_t Generator::sibling_of(std::size_t place) const {
  const auto rank = static_cast<std::size_t>(rank_of(place));
  for (auto p = static_cast<std::size_t>(first_place_[rank]); p < static_cast<std::size_t>(first_place_[rank + 1]); ++p) {
    const Place& other = places_[p];
    if (p != place && other.active && (other.fork_of < 0 || other.decodes()) && other.row.index == places_[place].row.index) return static_cast<std::int32_t>(p);
  }
  return -1;
}

// What goes through the model of `rank` in this step: of its prompts, the next prefill_chunk tokens; forks whose prompt is whole by then.
void Generator::feed(int rank) {
  std::vector<Place*> prompts;
  for (Place& p : places_of(rank)) {
    if (p.active && !p.decodes() && p.fork_of < 0) prompts.push_back(&p);
  }
  std::sort(prompts.begin(), prompts.end(), [](const Place* a, const Place* b) { return a->entry < b->entry; });
  std::int64_t left = options_.prefill_chunk;
  for (Place* p : prompts) left -= p->fed = std::min(left, p->prompt() - p->cached);
  for (Place& p : places_of(rank)) {
    if (p.active && !p.decodes() && p.fork_of >= 0 && places_[static_cast<std::size_t>(p.fork_of)].draws()) p.fed = p.prompt();
  }
}

// The order of a rank's rows in its logits: prompts, then forks of prompts, then decoding rows, each by place.
std::vector<std::size_t> Generator::pass_order(int rank) const {
  std::vector<std::size_t> order;
  for (const int kind : {0, 1, 2}) {
    for (auto p = static_cast<std::size_t>(first_place_[static_cast<std::size_t>(rank)]); p < static_cast<std::size_t>(first_place_[static_cast<std::size_t>(rank) + 1]); ++p) {
      const Place& place = places_[p];
      if (place.draws() && kind == (place.decodes() ? 2 : place.fork_of < 0 ? 0 : 1)) order.push_back(p);
    }
  }
  return order;
}

// Own rows through the model: what is fed of prompts and every decoding row's newest token in, next-token logits into `logits` in pass_order.
void Generator::forward(const Tensor& logits) {
  const std::span<Place> own = places_of(ranks_.rank());
  std::vector<std::int32_t> tokens, wanted;
  std::vector<Segment> segments;
  std::int64_t written = 0;
  const auto pass = [&](double& seconds) {
    if (segments.empty()) return;
    const auto from = Clock::now();
    gpt_.forward(tokens, segments, wanted, cache_, workspace_, logits.slice(written, written + std::ssize(wanted)));
    seconds += seconds_since(from);
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
  pass(stats_.prefill_seconds);
  // A fork has its prompt but the last token copied from its sibling, and computes that one itself: the same bits, without keeping logits.
  for (const Place& p : own) {
    if (p.fed == 0 || p.fork_of < 0) continue;
    const Place& sibling = places_[static_cast<std::size_t>(p.fork_of)];
    cache_.copy_row(gpt_.device(), static_cast<std::int32_t>(&sibling - own.data()), sibling.start, static_cast<std::int32_t>(&p - own.data()), p.start,
                    p.prompt() - 1);
    run(p, p.prompt() - 1, std::span(*p.row.prompt).last(1));
  }
  pass(stats_.prefill_seconds);
  for (const Place& p : own) {
    if (p.active && p.decodes()) run(p, p.prompt() + std::ssize(p.completion.tokens) - 1, std::span(p.completion.tokens).last(1));
  }
  pass(stats_.decode_seconds);
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

// Draws the next token of each of `places` from its row of `logits`. Returns records i32 [places, record_words].
Tensor Generator::draw(std::span<const std::size_t> places, const Tensor& logits) {
  const auto n = static_cast<std::int64_t>(places.size()), best = std::max<std::int64_t>(options_.logprobs, 0), words = record_words(options_);
  const std::int64_t vocab = gpt_.config().vocab_size;
  Tensor records = host_tensor(DType::i32, {n, words});
  if (n == 0) return records;
  std::vector<SampleRow> rows;
  for (const std::size_t p : places) {
    const Place& place = places_[p];
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
  std::int32_t* record = records.data<std::int32_t>();
  for (std::int64_t i = 0; i < n; ++i, record += words) {
    record[0] = tokens.data<std::int32_t>()[i];
    record[1] = static_cast<std::int32_t>(finish_with(places_[places[static_cast<std::size_t>(i)]], record[0]));
    if (options_.logprobs < 0) continue;
    const float* lp = log_probs.data<float>() + i * (1 + best);
    record[2] = std::bit_cast<std::int32_t>(lp[0]);
    for (std::int64_t j = 0; j < best; ++j) {
      record[3 + j] = top_ids.data<std::int32_t>()[i * best + j];
      record[3 + best + j] = std::bit_cast<std::int32_t>(lp[1 + j]);
    }
  }
  return records;
}

// The step's records of all ranks' places, one rank's order after another's, the same on every rank.
Tensor Generator::synchronize(const Tensor& logits, std::span<const std::vector<std::size_t>> orders) {
  std::vector<std::int64_t> counts;
  std::vector<std::size_t> all;
  for (const auto& order : orders) {
    counts.push_back(std::ssize(order));
    all.insert(all.end(), order.begin(), order.end());
  }
  const auto total = static_cast<std::int64_t>(all.size());
  const auto timed_gather = [&](Communicator& among, const Tensor& in, const Tensor& out) {
    const auto from = Clock::now();
    among.all_gather_ragged(in, counts, out);
    stats_.sync_seconds += seconds_since(from);
  };
  const auto timed_draw = [&](std::span<const std::size_t> places, const Tensor& from_logits) {
    const auto from = Clock::now();
    Tensor records = draw(places, from_logits);
    stats_.sample_seconds += seconds_since(from);
    return records;
  };
  if (options_.sync == Sync::tokens) {
    const Tensor mine = timed_draw(orders[static_cast<std::size_t>(ranks_.rank())], logits);
    if (ranks_.size() == 1) return mine;
    Tensor records = host_tensor(DType::i32, {total, record_words(options_)});
    timed_gather(ranks_, mine, records);
    return records;
  }
  Tensor gathered = logits;
  if (ranks_.size() > 1) {
    gathered = gpt_.device().empty(DType::f32, {total, gpt_.config().vocab_size});
    timed_gather(logits_ranks_, logits, gathered);
  }
  const Tensor records = timed_draw(all, gathered);
  check_agreement(ranks_, hash_words(records.span<std::int32_t>()), "the drawn tokens");
  return records;
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
  if (first) stats_.first_token_seconds += seconds_since(place.entered);
  if (c.finish == Finish::none) return;
  ++stats_.rows;
  place.active = false;
  done(place.row, std::move(c));
}

GenerateStats Generator::run(const std::function<std::optional<Row>()>& next, const std::function<void(const Row&, Completion&&)>& done,
                             const std::function<bool()>& proceed) {
  try {
    while (proceed() && step(next, done)) ++stats_.steps;
  } catch (const Error& e) {
    if (e.fault() != Fault::rank) throw;
    fail(Fault::rank, "step {}: {}", stats_.steps, e.what());  // of this rank: where it waited for another, or found out that one differs
  }
  return stats_;
}

bool Generator::step(const std::function<std::optional<Row>()>& next, const std::function<void(const Row&, Completion&&)>& done) {
  admit(next);
  if (std::none_of(places_.begin(), places_.end(), [](const Place& p) { return p.active; })) return false;
  std::vector<std::vector<std::size_t>> orders;  // [ranks]
  for (int r = 0; r < ranks_.size(); ++r) {
    feed(r);
    orders.push_back(pass_order(r));
  }
  if (options_.rng == Rng::jax && stats_.steps > 0) {
    const SplitKey keys = split(jax_key_);
    jax_key_ = keys.first, jax_step_key_ = keys.second;
  }
  const Tensor logits = logits_.slice(0, std::ssize(orders[static_cast<std::size_t>(ranks_.rank())]));
  forward(logits);
  const Tensor records = synchronize(logits, orders);
  for (Place& p : places_) p.cached += std::exchange(p.fed, 0);
  const std::int32_t* record = records.data<std::int32_t>();
  for (const auto& order : orders) {
    for (const std::size_t p : order) {
      accept(places_[p], record, done);
      record += record_words(options_);
    }
  }
  return true;
}

}  // namespace kvmesh
