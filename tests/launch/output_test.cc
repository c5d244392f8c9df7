// The set of finished ordinals, the journal, and the output that is made of it: order, what comes back after an interruption, memory.
#include "launch/job/journal.h"
#include "launch/job/output.h"

#include "tests/model/scratch.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <new>
#include <numeric>
#include <random>
#include <set>

namespace {

// Bytes that are allocated now, and the most since `most` was set. One thread.
std::size_t allocated = 0, most = 0;

}  // namespace

void* operator new(std::size_t size) {
  auto* const p = static_cast<std::max_align_t*>(std::malloc(size + sizeof(std::max_align_t)));
  if (!p) throw std::bad_alloc();
  *reinterpret_cast<std::size_t*>(p) = size;
  allocated += size;
  most = std::max(most, allocated);
  return p + 1;
}

void operator delete(void* p) noexcept {
  if (!p) return;
  std::max_align_t* const begin = static_cast<std::max_align_t*>(p) - 1;
  allocated -= *reinterpret_cast<std::size_t*>(begin);
  std::free(begin);
}

void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

namespace kvmesh {
namespace {

std::string content(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::unique_ptr<Output> open_output(const std::filesystem::path& file) { return make_file_output(file, {{"samples", 1}}, {{"paths", {}}}, false); }

void finish(Output& output) {
  while (!output.finish()) {
  }
}

TEST(OrdinalSet, IsWhatAStandardSetIs) {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    OrdinalSet set;
    std::set<std::int64_t> reference;
    for (int i = 0; i < 300; ++i) {
      const std::int64_t first = std::max<std::int64_t>(0, static_cast<std::int64_t>(reference.size()) + static_cast<std::int64_t>(random() % 200) - 100), span = 1 + (random() % 8 == 0) * (random() % 90);
      bool free = true;
      for (std::int64_t o = first; o < first + span; ++o) free &= !reference.contains(o);
      ASSERT_EQ(set.add(first, span), free);
      for (std::int64_t o = first; free && o < first + span; ++o) reference.insert(o);
      ASSERT_EQ(set.count(), std::ssize(reference));
      ASSERT_EQ(set.end(), reference.empty() ? 0 : *reference.rbegin() + 1);
    }
    const OrdinalSet copy = OrdinalSet::unpack(set.pack());
    ASSERT_EQ(copy, set);
    for (std::int64_t o = 0; o < set.end() + 100; ++o) ASSERT_EQ(copy.contains(o), reference.contains(o)) << o;
  }
  EXPECT_THROW(OrdinalSet::unpack("short"), Error);
}

// Lines of very different lengths that finish in any order, some standing for several ordinals, with interruptions in between.
TEST(FileOutput, LinesComeOutInOrder) {
  const test::Scratch scratch;
  std::mt19937 random(2);
  for (const std::size_t window : {std::size_t{1}, std::size_t{50}, std::size_t{100000}}) {
    const std::filesystem::path file = scratch.path() / fmt::format("out{}", window);
    struct Line {
      std::int64_t ordinal, span;
      std::string text;
    };
    std::vector<Line> lines;
    for (std::int64_t ordinal = 0; ordinal < 9000;) {
      const std::int64_t span = random() % 20 ? 1 : 3;
      const std::size_t length = random() % 500 ? random() % 40 : 10000 + random() % 200000;  // some longer than any block
      lines.push_back({ordinal, span, fmt::format("{} {}", ordinal, std::string(length, static_cast<char>('a' + ordinal % 26)))});
      ordinal += span;
    }
    std::string expected;
    std::int64_t errors = 0;
    for (const Line& line : lines) expected += line.text + "\n", errors += line.span == 3;
    for (std::size_t i = 0; i < lines.size(); i += window) std::shuffle(lines.begin() + static_cast<std::ptrdiff_t>(i), lines.begin() + static_cast<std::ptrdiff_t>(std::min(i + window, lines.size())), random);

    std::int64_t errors_before = 0;
    OrdinalSet done;
    for (std::size_t begin = 0; begin < lines.size();) {
      const std::size_t end = std::min(lines.size(), begin + 2500);
      const auto output = open_output(file);
      ASSERT_EQ(output->done(), done);
      ASSERT_EQ(output->errors_before(), errors_before);
      for (; begin < end; ++begin) {
        const Line& line = lines[begin];
        output->add(line.ordinal, line.span, line.span == 3, line.text);
        errors_before += line.span == 3;
        ASSERT_TRUE(done.add(line.ordinal, line.span));
      }
      if (end == lines.size()) finish(*output);
    }
    EXPECT_TRUE(content(file) == expected) << window;
    const Json manifest = read_manifest(file);
    EXPECT_EQ(manifest["lines"], lines.size());
    EXPECT_EQ(manifest["errors"], errors);
    EXPECT_EQ(manifest["complete"], true);
    EXPECT_TRUE(manifest.contains("paths"));
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(scratch.path()), {}), 2);
    std::filesystem::remove(file);
    std::filesystem::remove(beside(file, ".manifest.json"));
  }
}

// Whatever bytes of the journal are missing at its end: the records that are whole are there.
TEST(JournalReader, EveryPrefix) {
  const test::Scratch scratch;
  std::string journal = "{\"a\": 1}\n";
  std::vector<std::size_t> ends = {journal.size()};
  for (int i = 0; i < 5; ++i) {
    journal += journal_record(i, 1, i == 3, fmt::format("{{\"i\": {}}}", i));
    ends.push_back(journal.size());
  }
  for (std::size_t length = 0; length <= journal.size(); ++length) {
    const File file(scratch.write("journal", journal.substr(0, length)), O_RDONLY);
    JournalReader reader(file);
    ASSERT_EQ(reader.header().has_value(), length >= ends[0]);
    if (length < ends[0]) continue;
    std::int64_t records = 0;
    while (const auto record = reader.next()) {
      ASSERT_EQ(record->line, fmt::format("{{\"i\": {}}}", records));
      ASSERT_EQ(record->error, records == 3);
      ASSERT_EQ(record->ordinal, records++);
    }
    ASSERT_EQ(records, std::count_if(ends.begin() + 1, ends.end(), [&](std::size_t end) { return end <= length; }));
    ASSERT_EQ(reader.position(), static_cast<std::int64_t>(ends[static_cast<std::size_t>(records)]));
  }
}

// A record that is still being written is read when it is whole.
TEST(JournalReader, FollowsAWriter) {
  const test::Scratch scratch;
  const File writer(scratch.path() / "journal", O_WRONLY | O_CREAT | O_APPEND), file(scratch.path() / "journal", O_RDONLY);
  writer.write("{}\n");
  JournalReader reader(file);
  ASSERT_TRUE(reader.header());
  for (int i = 0; i < 3; ++i) {
    const std::string record = journal_record(i, 1, false, std::string(70000, 'x'));
    writer.write(std::string_view(record).substr(0, 40000));
    ASSERT_FALSE(reader.next());
    writer.write(std::string_view(record).substr(40000));
    const auto read = reader.next();
    ASSERT_TRUE(read);
    EXPECT_EQ(read->ordinal, i);
  }
}

// Nor with what a crash leaves behind the last line.
TEST(FileOutput, MemoryDoesNotGrowWithTheRows) {
  constexpr std::int64_t rows = 200000, bits = rows / 8;
  const test::Scratch scratch;
  const std::filesystem::path file = scratch.path() / "out";
  const std::string line(60, 'x');
  most = allocated;
  const std::size_t before = allocated;
  {
    const auto output = open_output(file);
    for (std::int64_t i = 0; i < rows; ++i) output->add(i ^ 1, 1, false, line);
  }
  EXPECT_LT(most - before, 300000u + bits) << "while rows are added";
  std::filesystem::resize_file(beside(file, ".journal"), std::filesystem::file_size(beside(file, ".journal")) + (4 << 20));
  most = allocated;
  const auto output = open_output(file);
  EXPECT_LT(most - before, 300000u + bits) << "when a job goes on";
  EXPECT_EQ(output->done().count(), rows);
  most = allocated;
  finish(*output);
  EXPECT_LT(most - before, 4000000u + bits) << "while the output is put in order, in blocks of a megabyte";
  EXPECT_EQ(std::filesystem::file_size(file), rows * 61);
}

}  // namespace
}  // namespace kvmesh
