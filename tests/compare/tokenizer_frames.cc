// Encodes texts for the scripts beside this file: tokenizer_frames RANKS REPEAT < texts > ids
// Input: for each text its bytes' count (uint32, host order) and its bytes. Output: for each the ids' count (uint32) and the
// ids (int32), then one float64: the seconds of the fastest of REPEAT passes over all texts on this one thread.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "model/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_frames RANKS REPEAT < texts > ids\n");
    return 1;
  }
  const kvmesh::Tokenizer tokenizer(argv[1]);
  std::vector<std::string> texts;
  for (std::uint32_t size; std::fread(&size, sizeof(size), 1, stdin) == 1;) {
    std::string& text = texts.emplace_back(size, '\0');
    if (std::fread(text.data(), 1, size, stdin) != size) return 1;
  }
  double best = std::numeric_limits<double>::infinity();
  std::vector<std::vector<std::int32_t>> ids(texts.size());
  for (int repeat = std::stoi(argv[2]); repeat > 0; --repeat) {
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < texts.size(); ++i) ids[i] = tokenizer.encode(texts[i]);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  for (const auto& row : ids) {
    const auto count = static_cast<std::uint32_t>(row.size());
    std::fwrite(&count, sizeof(count), 1, stdout);
    std::fwrite(row.data(), sizeof(row[0]), row.size(), stdout);
  }
  std::fwrite(&best, sizeof(best), 1, stdout);
}
