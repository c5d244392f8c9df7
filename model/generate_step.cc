// A step of one rank: its rows through the model, their draws, and what is told of them.
#include "model/generate.h"

#include <algorithm>
#include <utility>

namespace kvmesh {

/// `ids` of the row in `place`, the first of which is at `position` in it, go through cache place `row`; where the row draws, the last one's logits are wanted.
void Generator::Packed::add(const Place& place, std::int64_t position, std::int32_t row, std::span<const std::int32_t> ids) {
  segments.push_back({place.start, place.start + position, row, static_cast<std::int32_t>(ids.size()), static_cast<std::int32_t>(tokens.size())});
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  if (place.draws()) wanted.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
}

// The rows that decode come first: their pass has been enqueued in the step before where that is possible. While the host waits for this step's tokens, looks
// at them and prepares what follows, the device has the next step's to do.
void Generator::step(std::vector<std::int32_t>& records) {
  const std::vector<std::size_t> order = schedule_.begin_step(ranks_.rank());
  const bool ahead = options_.run_ahead && gpt_.device().queue() != nullptr;
  lap(&TimeSplit::host);
  Draws now = std::exchange(ahead_, {});
  if (!ahead) draw(decode(logits_, nullptr), logits_, now, 0);
  draw(prefill(logits_), logits_, now, 0);
  const std::unique_ptr<Download> tokens = now.places.empty() ? nullptr : gpt_.device().download(now.memory);
  if (ahead) draw(decode(logits_, &now), logits_, ahead_, 1);
  const std::size_t drawn = records.size();
  records.resize(drawn + order.size() * options_.record_words());
  if (tokens) tell(now, tokens->wait(), order, records.data() + drawn);
  lap(&TimeSplit::sampling);
  accept(ranks_.rank(), order, records.data() + drawn);
  drop_stopped();
}

// One step of all ranks in which every rank has all logits and draws for all.
void Generator::step_everywhere(std::span<std::vector<std::int32_t>> records) {
  std::vector<std::size_t> all;  // places, by rank
  std::vector<std::vector<std::size_t>> orders;
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks_.size(); ++r) {
    orders.push_back(schedule_.begin_step(r));
    counts.push_back(std::ssize(orders.back()));
    all.insert(all.end(), orders.back().begin(), orders.back().end());
  }
  const Tensor logits = logits_.slice(0, counts[static_cast<std::size_t>(ranks_.rank())]);
  const Shape whole = {std::ssize(all), gpt_.config().vocab_size};
  Device& device = gpt_.device();
  lap(&TimeSplit::host);
  const std::int64_t prefilled = std::ssize(prefill(logits));
  decode(logits.slice(prefilled, logits.size(0)), nullptr);
  Tensor gathered;
  if (device_ranks_) {
    gathered = device.empty(DType::f32, whole);
    device_ranks_->all_gather_ragged(logits, counts, gathered);
  } else {
    const Tensor there = host_tensor(DType::f32, whole);
    ranks_.all_gather_ragged(device.download(logits)->wait(), counts, there);
    gathered = device.resident(there);
  }
  lap(&TimeSplit::collectives);
  Draws draws;
  draw(all, gathered, draws, 0);
  const std::unique_ptr<Download> tokens = all.empty() ? nullptr : device.download(draws.memory);
  for (std::size_t r = 0; r < orders.size(); ++r) {
    records[r].resize(orders[r].size() * options_.record_words());
    if (tokens) tell(draws, tokens->wait(), orders[r], records[r].data());
  }
  lap(&TimeSplit::sampling);
  for (std::size_t r = 0; r < orders.size(); ++r) accept(static_cast<int>(r), orders[r], records[r].data());
}

// What this step feeds of prompts, then forks of prompts. Next-token logits of the rows that draw, whose places are returned, into the first rows of `logits`.
std::vector<std::size_t> Generator::prefill(const Tensor& logits) {
  const std::span<Place> own = schedule_.places_of(ranks_.rank());
  std::vector<std::size_t> places;
  Packed packed;
  const auto pass = [&] {
    if (packed.segments.empty()) return;
    const ProfilerRange range(gpt_.device(), "prefill");
    const auto end = static_cast<std::int64_t>(places.size());
    gpt_.forward(packed.tokens, packed.segments, packed.wanted, cache_, workspace_, logits.slice(end - std::ssize(packed.wanted), end));
    packed = {};
    lap(&TimeSplit::prefill);
  };
  const auto add = [&](const Place& p, std::int64_t position, std::span<const std::int32_t> ids) {
    packed.add(p, position, static_cast<std::int32_t>(&p - own.data()), ids);
    if (p.draws()) places.push_back(static_cast<std::size_t>(&p - schedule_.places().data()));
  };
  for (const Place& p : own) {
    if (p.fed > 0 && p.fork_of < 0) add(p, p.cached, std::span(*p.row.prompt).subspan(static_cast<std::size_t>(p.cached), static_cast<std::size_t>(p.fed)));
  }
  pass();
  // A fork has its prompt but the last token copied from its sibling, and computes that one itself: the same bits, without keeping logits.
  for (const Place& p : own) {
    if (p.fed == 0 || p.fork_of < 0) continue;
    const Place& sibling = schedule_.places()[static_cast<std::size_t>(p.fork_of)];
    cache_.copy_row(gpt_.device(), static_cast<std::int32_t>(&sibling - own.data()), sibling.start, static_cast<std::int32_t>(&p - own.data()), p.start,
                    p.prompt() - 1);
    add(p, p.prompt() - 1, std::span(*p.row.prompt).last(1));
  }
  pass();
  return places;
}

// The newest token of every row that decodes, likewise. With `before`, the draws of this step, it is the next step's pass: the tokens are taken from there, on
// the device, for all rows that can go on.
std::vector<std::size_t> Generator::decode(const Tensor& logits, const Draws* before) {
  const std::span<Place> own = schedule_.places_of(ranks_.rank()), all = schedule_.places();
  std::vector<std::size_t> places;
  Packed packed;
  const auto add = [&](const Place& p, std::int64_t completed, std::int32_t id) {
    packed.add(p, p.prompt() + completed - 1, static_cast<std::int32_t>(&p - own.data()), std::span(&id, 1));
    places.push_back(static_cast<std::size_t>(&p - all.data()));
  };
  if (before) {
    for (std::size_t row = 0; row < before->places.size(); ++row) {
      if (before->places[row] == nobody) continue;
      if (const Place& p = all[before->places[row]]; goes_on(p)) add(p, std::ssize(p.completion.tokens) + 1, static_cast<std::int32_t>(row));
    }
  } else {
    for (const Place& p : own) {
      if (p.active && p.decodes()) add(p, std::ssize(p.completion.tokens), p.completion.tokens.back());
    }
  }
  if (places.empty()) return places;
  const ProfilerRange range(gpt_.device(), "decode");
  gpt_.forward(packed.tokens, packed.segments, packed.wanted, cache_, workspace_, logits.slice(0, std::ssize(places)), before ? before->tokens() : Tensor());
  lap(&TimeSplit::decode);
  return places;
}

// Enqueues the draws of `places` from their rows of `logits`, after those that `draws` has. ahead: draws before these that are not among the completions' tokens yet.
void Generator::draw(std::span<const std::size_t> places, const Tensor& logits, Draws& draws, std::int64_t ahead) {
  if (places.empty()) return;
  Device& device = gpt_.device();
  const ProfilerRange range(device, "sampling");
  const auto n = static_cast<std::int64_t>(places.size()), best = std::max<std::int64_t>(options_.logprobs, 0), first = std::ssize(draws.places);
  if (!draws.memory.defined()) {
    draws.most = n + cache_.places();  // prompts that come in may come after it
    draws.memory = device.empty(DType::i32, {draws.most * static_cast<std::int64_t>(options_.record_words() - 1)});
  }
  std::vector<SampleRow> rows;
  for (const std::size_t p : places) {
    const Place& place = schedule_.places()[p];
    rows.push_back(how(place, std::ssize(place.completion.tokens) + ahead));
  }
  std::int32_t* const to = draws.memory.data<std::int32_t>();
  SampleOut out;  // rows first … of each part
  out.tokens = Tensor(nullptr, to + first, DType::i32, {n});
  if (options_.logprobs >= 0) out.log_probs = Tensor(nullptr, to + draws.most + first * (1 + best), DType::f32, {n, 1 + best});
  if (best > 0) out.top_ids = Tensor(nullptr, to + draws.most * (2 + best) + first * best, DType::i32, {n, best});
  device.sample(logits.slice(0, n), rows, out);
  draws.places.insert(draws.places.end(), places.begin(), places.end());
  lap(&TimeSplit::sampling);
}

// How the place's token number `count` is drawn, from 0.
SampleRow Generator::how(const Place& place, std::int64_t count) {
  SampleRow row{place.row.temperature, place.row.top_k, place.row.top_p, place.row.min_p, {}, 0, -1};
  if (options_.rng == Rng::row) {
    row.key = fold_in(place.key, static_cast<std::uint32_t>(count));
  } else if (count == 0) {
    row.temperature = 0;  // the seed's prefill takes the argmax
  } else {
    for (; std::ssize(jax_keys_) < count; jax_keys_.push_back(jax_split_.second)) jax_split_ = split(jax_split_.first);
    row.key = jax_keys_[static_cast<std::size_t>(count) - 1];
    row.first_count = static_cast<std::uint64_t>((place.row.index * options_.samples + place.row.sample) * gpt_.config().vocab_size);
  }
  return row;
}

// Of the places of `order`: records [order.size(), record_words] from `drawn`, the memory of `draws` in the host's.
void Generator::tell(const Draws& draws, const Tensor& drawn, std::span<const std::size_t> order, std::int32_t* record) {
  std::fill(row_of_.begin(), row_of_.end(), nobody);
  for (std::size_t row = 0; row < draws.places.size(); ++row) {
    if (draws.places[row] != nobody) row_of_[draws.places[row]] = row;
  }
  const std::int64_t best = std::max(options_.logprobs, 0);
  const std::int32_t *const tokens = drawn.data<std::int32_t>(), *const log_probs = tokens + draws.most, *const ids = log_probs + draws.most * (1 + best);
  for (const std::size_t place : order) {
    check(row_of_[place] != nobody, "place {} has no draw", place);
    const auto row = static_cast<std::int64_t>(row_of_[place]);
    record[0] = tokens[row];
    record[1] = static_cast<std::int32_t>(finish_with(schedule_.places()[place], record[0]));
    if (options_.logprobs >= 0) {
      const std::int32_t* const lp = log_probs + row * (1 + best);
      record[2] = lp[0];
      std::copy_n(ids + row * best, best, record + 3);
      std::copy_n(lp + 1, best, record + 3 + best);
    }
    record += options_.record_words();
  }
}

/// Whether the row draws again after this step, unless what it draws now stops it.
bool Generator::goes_on(const Place& place) const {
  const std::int64_t count = std::ssize(place.completion.tokens) + 1;
  return count < place.row.max_new_tokens && place.prompt() + count < gpt_.config().seqlen;
}

void Generator::drop_stopped() {
  for (std::size_t& place : ahead_.places) {
    if (place == nobody || schedule_.places()[place].active) continue;
    place = nobody;
    ++dropped_;
  }
}

}  // namespace kvmesh
