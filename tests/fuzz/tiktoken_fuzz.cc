// A file of ranks, as it is and with the 256 single bytes put behind it, so that small inputs are whole vocabularies too. What
// such a vocabulary makes of the input's own bytes is what merging by the definition makes of them.
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/tiktoken_file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

#include <map>

namespace {

using namespace kvmesh;

std::vector<std::int32_t> merged_by_definition(const std::map<std::string_view, std::int32_t>& ranks, std::string_view piece) {
  if (const auto whole = ranks.find(piece); whole != ranks.end()) return {whole->second};
  std::vector<std::string_view> parts;
  for (std::size_t i = 0; i < piece.size(); ++i) parts.push_back(piece.substr(i, 1));
  while (true) {
    std::size_t best = 0;
    std::int32_t lowest = INT32_MAX;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = ranks.find({parts[i].data(), parts[i].size() + parts[i + 1].size()});
      if (found != ranks.end() && found->second < lowest) best = i, lowest = found->second;
    }
    if (lowest == INT32_MAX) break;
    parts[best] = {parts[best].data(), parts[best].size() + parts[best + 1].size()};
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<std::int32_t> ids;
  for (const std::string_view part : parts) ids.push_back(ranks.at(part));
  return ids;
}

void use(const TiktokenFile& file, std::string_view piece) {
  std::map<std::string_view, std::int32_t> ranks;
  for (std::size_t r = 0; r < file.tokens.size(); ++r) {
    if (!file.tokens[r].empty()) fuzz::require(ranks.emplace(file.tokens[r], static_cast<std::int32_t>(r)).second);
  }
  fuzz::require(ranks.size() == file.count && file.count >= 256);
  if (piece.empty()) return;
  const BytePairEncoder encoder(file.tokens);
  for (const std::size_t length : {piece.size(), std::size_t{63}, std::size_t{64}, std::size_t{5}}) {
    std::vector<std::int32_t> ids;
    encoder.encode(piece.substr(0, length), ids);
    fuzz::require(ids == merged_by_definition(ranks, piece.substr(0, length)));
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::Scratch scratch;
  static const std::string singles = [] {
    static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text = "\n";
    for (int b = 0; b < 256; ++b) text += std::string{digits[b >> 2], digits[(b & 3) << 4]} + "== " + std::to_string(70'000 + b) + "\n";
    return text;
  }();
  const std::string_view input = fuzz::text_of(data, size);
  for (const bool whole : {true, false}) {
    const auto file = scratch.write("input.tiktoken", whole ? std::string(input) : std::string(input) + singles);
    fuzz::accepted([&] { use(read_tiktoken_file(file), input.substr(0, 200)); });
  }
  return 0;
}
