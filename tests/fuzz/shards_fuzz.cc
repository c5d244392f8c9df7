// A shard of training data. An input that begins with T is a row's length, its kind and tokens, a byte each, to which a header is added; any other is a file.
#include "model/train/data.h"

#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  static const test::Scratch scratch;
  DataOptions o{.files = {scratch.path() / "input.bin"}, .seqlen = 5, .vocab_size = 250, .end_of_text = 'e'};
  if (size > 3 && data[0] == 'T') {
    o.seqlen = data[1] % 32 + 1;
    o.rows = data[2] % 2 == 0 ? RowKind::filled : RowKind::whole;
    o.documents_apart = data[2] % 4 < 2;
    write_shard(o.files[0], std::vector<std::uint16_t>(data + 3, data + size));
  } else {
    scratch.write("input.bin", fuzz::text_of(data, size));
  }
  fuzz::accepted([&] {
    const AllRows all(o, 3);
    for (std::int64_t i = 0; i < all.batches(); ++i) {
      const TrainBatch batch = all.batch(i);
      std::int64_t covered = 0;
      for (const Segment& s : batch.segments) {
        fuzz::require(s.offset == covered && s.count > 0 && s.start == s.begin && s.begin + s.count <= o.seqlen && s.place < batch.rows);
        covered += s.count;
        for (std::int64_t t = s.offset; t + 1 < covered; ++t) fuzz::require(batch.targets[static_cast<std::size_t>(t)] == batch.ids[static_cast<std::size_t>(t + 1)]);
        fuzz::require(s.begin > 0 || batch.ids[static_cast<std::size_t>(s.offset)] == o.end_of_text);
      }
      fuzz::require(covered == std::ssize(batch.ids) && covered == std::ssize(batch.targets) && (o.rows == RowKind::whole || covered == batch.rows * o.seqlen));
    }
  });
  return 0;
}
