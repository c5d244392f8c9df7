// A journal that a job goes on from, and a manifest. Input lines that begin with @ get their right checksum in its place, and the right
// first line is put in front unless the input has one. What of a journal is accepted stays accepted, and ends as a whole output.
#include "launch/job/output.h"

#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

#include <boost/crc.hpp>

#include <algorithm>
#include <iterator>
#include <sstream>

namespace {

using namespace kvmesh;

std::string with_checksums(std::string_view input, const Json& identity) {
  std::string journal = input.starts_with('{') ? "" : identity.dump() + "\n";
  while (!input.empty()) {
    std::string_view line = input.substr(0, input.find('\n'));
    const std::string_view feed = line.size() < input.size() ? "\n" : "";
    input.remove_prefix(line.size() + feed.size());
    if (line.starts_with('@')) {
      line.remove_prefix(1);
      boost::crc_32_type crc;
      crc.process_bytes(line.data(), line.size());
      journal += fmt::format("{:08x} ", crc.checksum());
    }
    journal.append(line).append(feed);
  }
  return journal;
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::Scratch scratch;
  static const Json identity = {{"samples", 2}, {"prompts", "a"}};
  const std::filesystem::path file = scratch.path() / "out";
  const std::string_view input = fuzz::text_of(data, size);

  scratch.write("out", "");
  scratch.write("out.manifest.json", input);
  fuzz::accepted([&] { is_complete(file, identity); });
  std::filesystem::remove(file);

  scratch.write("out.journal", with_checksums(input, identity));
  fuzz::accepted([&] {
    OrdinalSet done;
    {
      const auto output = make_file_output(file, identity, Json::object(), false);
      done = output->done();
      fuzz::require(output->errors_before() <= done.count() && done.count() <= done.end());
      output->add(done.end(), 1, false, "{}");
    }
    const auto output = make_file_output(file, identity, Json::object(), false);
    fuzz::require(done.add(done.end(), 1));
    fuzz::require(output->done() == done && OrdinalSet::unpack(done.pack()) == done);
    while (!output->finish()) {
    }
    fuzz::require(is_complete(file, identity));
    std::ifstream in(file, std::ios::binary);
    const std::string lines(std::istreambuf_iterator<char>(in), {});
    fuzz::require(lines.ends_with("{}\n") && std::count(lines.begin(), lines.end(), '\n') <= done.count());
  });
  return 0;
}
