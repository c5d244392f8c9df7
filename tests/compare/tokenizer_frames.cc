// Encodes or decodes for the scripts beside this file: tokenizer_frames FILE encode|plain REPEAT < texts > lists of ids
//                                                      tokenizer_frames FILE decode < lists of ids > texts
// A text is its bytes' count (uint32, host order) and its bytes, a list of ids their count (uint32) and the ids (int32). Encoding
// writes one float64 more: the seconds of the fastest of REPEAT passes over all texts on this one thread. plain: without what
// add_special_tokens puts around a text.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace {

template <typename List>
bool read_list(List& list) {
  std::uint32_t size;
  if (std::fread(&size, sizeof(size), 1, stdin) != 1) return false;
  list.resize(size);
  return std::fread(list.data(), sizeof(list[0]), size, stdin) == size;
}

template <typename List>
void write_list(const List& list) {
  const auto size = static_cast<std::uint32_t>(list.size());
  std::fwrite(&size, sizeof(size), 1, stdout);
  std::fwrite(list.data(), sizeof(list[0]), size, stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc > 2 ? argv[2] : "";
  if (!(mode == "decode" && argc == 3) && !((mode == "encode" || mode == "plain") && argc == 4)) {
    std::fprintf(stderr, "usage: tokenizer_frames FILE encode|plain REPEAT < texts > ids; tokenizer_frames FILE decode < ids > texts\n");
    return 1;
  }
  const kvmesh::Tokenizer tokenizer(argv[1]);
  if (mode == "decode") {
    for (std::vector<std::int32_t> ids; read_list(ids);) write_list(tokenizer.decode(ids));
    return 0;
  }
  std::vector<std::string> texts;
  for (std::string text; read_list(text);) texts.push_back(text);
  double best = std::numeric_limits<double>::infinity();
  std::vector<std::vector<std::int32_t>> ids(texts.size());
  for (int repeat = std::stoi(argv[3]); repeat > 0; --repeat) {
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < texts.size(); ++i) ids[i] = tokenizer.encode(texts[i], mode == "encode");
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  for (const auto& row : ids) write_list(row);
  std::fwrite(&best, sizeof(best), 1, stdout);
}
