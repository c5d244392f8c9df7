// Safetensors: hostile files of every kind, conversions, shards, and what the safetensors package wrote.
#include "model/safetensors.h"

#include "tests/model/scratch.h"
#include "tests/source_dir.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <numeric>

namespace kvmesh {
namespace {

using test::error_of;
using test::Scratch;
using testing::IsSubstring;

std::string file_of(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + header + std::string(data_bytes, '\0');
}

void expect_refused(const std::string& bytes, const std::string& words) {
  const Scratch scratch;
  const auto file = scratch.write("hostile.safetensors", bytes);
  const std::string error = error_of([&] { SafetensorsFile{file}; });
  EXPECT_PRED_FORMAT2(IsSubstring, file.string(), error) << words;
  EXPECT_PRED_FORMAT2(IsSubstring, words, error);
  EXPECT_LT(error.size(), 1000u);
}

TEST(Safetensors, HeaderLength) {
  expect_refused("", "0 bytes");
  expect_refused(std::string(7, '\0'), "7 bytes");
  expect_refused(std::string(8, '\0'), "does not begin with a JSON object");
  expect_refused(std::string(8, '\xff'), "over the limit");
  const auto claimed = [](std::uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), 8) + "{}"; };
  expect_refused(claimed(3), "goes beyond the file");
  expect_refused(claimed(99'999'999), "goes beyond the file");
  expect_refused(claimed(100'000'001), "over the limit");
  expect_refused(claimed(~std::uint64_t{0} - 7), "over the limit");
  expect_refused(claimed(1), "not valid JSON");
}

TEST(Safetensors, HeaderText) {
  expect_refused(file_of("[]", 0), "does not begin with a JSON object");
  expect_refused(file_of(" {}", 0), "does not begin with a JSON object");
  expect_refused(file_of("{}x", 0), "not valid JSON");
  expect_refused(file_of(std::string("{}\0", 3), 0), "zero byte");
  expect_refused(file_of("{\"a\xff\": 1}", 0), "not valid JSON");
  expect_refused(file_of(R"({"a":)" + std::string(1'000'000, '['), 0), "nested deeper");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_refused(file_of(objects, 0), "nested deeper");
  expect_refused(file_of(R"({"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}})", 4), "too large");
  expect_refused(file_of("{\"" + std::string(1'000'000, 'x') + "\": 1}", 0), "xxx…\" has no \"dtype\"");
  expect_refused(file_of(R"({"a": 1, "a": 2})", 0), "\"a\" stands twice");
  expect_refused(file_of(R"({"a": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}})", 4), "\"dtype\" stands twice");
  expect_refused(file_of(R"({"__metadata__": {"a": 1}})", 0), "__metadata__");
  expect_refused(file_of(R"({"__metadata__": "a"})", 0), "__metadata__");
}

TEST(Safetensors, TensorsThatAreNone) {
  const auto refused = [](const std::string& info, const std::string& words, std::size_t data_bytes = 8) {
    const Scratch scratch;
    const auto file = scratch.write("hostile.safetensors", file_of("{\"the.tensor\": " + info + "}", data_bytes));
    const std::string error = error_of([&] { SafetensorsFile{file}; });
    EXPECT_PRED_FORMAT2(IsSubstring, file.string(), error) << info;
    EXPECT_PRED_FORMAT2(IsSubstring, "\"the.tensor\"", error) << info;
    EXPECT_PRED_FORMAT2(IsSubstring, words, error) << info;
  };
  refused("1", "has no \"dtype\"");
  refused("{}", "has no \"dtype\"");
  refused(R"({"dtype": "F32", "data_offsets": [0, 8]})", "has no \"shape\"");
  refused(R"({"dtype": "F32", "shape": [2]})", "has no \"data_offsets\"");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "strides": [1]})", "unknown field \"strides\"");
  refused(R"({"dtype": 32, "shape": [2], "data_offsets": [0, 8]})", "dtype is not a word");
  refused(R"({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]})", "\"F8_E4M3\"");
  refused(R"({"dtype": "f32", "shape": [2], "data_offsets": [0, 8]})", "\"f32\"");
  refused(R"({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]})", "its shape");
  refused(R"({"dtype": "F32", "shape": [2, 1, 1, 1, 1], "data_offsets": [0, 8]})", "its shape");
  refused(R"({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]})", "-2");
  refused(R"({"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]})", "-2");
  refused(R"({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]})", "2.0");
  refused(R"({"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]})", "not a size");
  refused(R"({"dtype": "F32", "shape": [null], "data_offsets": [0, 8]})", "null");
  refused(R"({"dtype": "F32", "shape": [18446744073709551615], "data_offsets": [0, 8]})", "18446744073709551615");
  refused(R"({"dtype": "F32", "shape": [18446744073709551618], "data_offsets": [0, 8]})", "not a size");
  refused(R"({"dtype": "F32", "shape": [4611686018427387906, 4], "data_offsets": [0, 8]})", "more elements than can be counted");
  refused(R"({"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]})", "more elements than can be counted");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": 8})", "data_offsets");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [0]})", "data_offsets");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]})", "data_offsets");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]})", "data_offsets");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [0, 8.0]})", "data_offsets");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]})", "outside");
  refused(R"({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]})", "outside the file's 8 bytes");
  refused(R"({"dtype": "F32", "shape": [2], "data_offsets": [18446744073709551608, 18446744073709551615]})", "outside");
  refused(R"({"dtype": "F32", "shape": [1], "data_offsets": [0, 8]})", "float32 [1] is 4 bytes, but its data_offsets hold 8");
  refused(R"({"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 8]})", "is 0 bytes");
  refused(R"({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]})", "begin after a gap");
}

TEST(Safetensors, DataAreCoveredOnce) {
  const std::string a = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": )";
  expect_refused(file_of(a + "[4, 12]}}", 12), "\"b\": its data overlap");
  expect_refused(file_of(a + "[0, 8]}}", 8), "its data overlap");
  expect_refused(file_of(a + "[12, 20]}}", 20), "\"b\": its data begin after a gap");
  expect_refused(file_of(a + "[8, 16]}}", 17), "1 bytes after the last tensor's data");
  expect_refused(file_of("{}", 1), "1 bytes after");
  const Scratch scratch;
  EXPECT_EQ(SafetensorsFile(scratch.write("good", file_of(a + "[8, 16]}}", 16))).tensors().size(), 2u);
  EXPECT_EQ(SafetensorsFile(scratch.write("none", file_of("{}  ", 0))).tensors().size(), 0u);
}

TEST(Safetensors, ThingsThatAreNoFile) {
  const Scratch scratch;
  EXPECT_PRED_FORMAT2(IsSubstring, "absent: No such file", error_of([&] { SafetensorsFile{scratch.path() / "absent"}; }));
  EXPECT_PRED_FORMAT2(IsSubstring, "not a regular file", error_of([&] { SafetensorsFile{scratch.path()}; }));
  ASSERT_EQ(mkfifo((scratch.path() / "pipe").c_str(), 0600), 0);
  EXPECT_PRED_FORMAT2(IsSubstring, "not a regular file", error_of([&] { SafetensorsFile{scratch.path() / "pipe"}; }));
}

/// One tensor "t" of `count` elements whose data begin at an odd address.
SafetensorsFile file_with(const Scratch& scratch, const std::string& dtype, const void* data, std::size_t count, std::size_t size) {
  std::string header = fmt::format(R"({{"t": {{"dtype": "{}", "shape": [{}], "data_offsets": [0, {}]}}}})", dtype, count, count * size);
  if (header.size() % 2 == 0) header += ' ';
  std::string bytes = file_of(header, count * size);
  std::memcpy(bytes.data() + 8 + header.size(), data, count * size);
  return SafetensorsFile(scratch.write("t.safetensors", bytes));
}

TEST(Safetensors, EveryHalfIsExact) {
  std::vector<std::uint16_t> halves;
  std::vector<double> expected;  // by the definition of binary16
  for (int h = 0; h < 1 << 16; ++h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) continue;
    halves.push_back(static_cast<std::uint16_t>(h));
    const double x = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    expected.push_back(h >> 15 ? -x : x);
  }
  const Scratch scratch;
  const SafetensorsFile file = file_with(scratch, "F16", halves.data(), halves.size(), 2);
  ASSERT_EQ(file.tensors()[0].offset % 2, 1u);
  std::vector<float> read(halves.size());
  file.read(file.tensors()[0], 0, static_cast<std::int64_t>(read.size()), DType::f32, read.data());
  for (std::size_t i = 0; i < read.size(); ++i) {
    ASSERT_EQ(static_cast<double>(read[i]), expected[i]) << halves[i];
    ASSERT_EQ(std::signbit(read[i]), halves[i] >> 15 == 1) << halves[i];
  }
}

TEST(Safetensors, NotFiniteIsAnError) {
  const Scratch scratch;
  const auto error = [&](const std::string& dtype, auto bad, DType as) {
    const decltype(bad) values[] = {{}, bad, {}};
    const SafetensorsFile file = file_with(scratch, dtype, values, 3, sizeof bad);
    float out[3];
    EXPECT_EQ(error_of([&] { file.read(file.tensors()[0], 2, 1, as, out); }), "");  // a part without it
    return error_of([&] { file.read(file.tensors()[0], 0, 3, as, out); });
  };
  const std::string words = "tensor \"t\" holds a NaN, an infinity";
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("F32", NAN, DType::f32));
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("F32", -INFINITY, DType::bf16));
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("F32", 3.4e38f, DType::bf16));
  EXPECT_EQ(error("F32", 3.4e38f, DType::f32), "");
  EXPECT_EQ(error("F32", 3.38e38f, DType::bf16), "");
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("F16", std::uint16_t{0x7c00}, DType::f32));
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("F16", std::uint16_t{0xfc01}, DType::bf16));
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("BF16", std::uint16_t{0x7f80}, DType::f32));
  EXPECT_PRED_FORMAT2(IsSubstring, words, error("BF16", std::uint16_t{0xffff}, DType::bf16));
}

TEST(Safetensors, ReadsOnlyWithinTheTensorAndOnlyWeights) {
  const Scratch scratch;
  const std::int64_t ids[2] = {};
  float out[8];
  const SafetensorsFile integers = file_with(scratch, "I64", ids, 2, 8);
  EXPECT_PRED_FORMAT2(IsSubstring, "\"t\" is int64", error_of([&] { integers.read(integers.tensors()[0], 0, 2, DType::f32, out); }));
  const SafetensorsFile floats = file_with(scratch, "F32", ids, 2, 4);
  for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{0, 3}, {2, 1}, {-1, 1}, {0, -1}, {1, INT64_MAX}})
    EXPECT_NE(error_of([&] { floats.read(floats.tensors()[0], first, count, DType::f32, out); }), "") << first << " " << count;
  EXPECT_NE(error_of([&] { floats.read(floats.tensors()[0], 0, 2, DType::f64, out); }), "");
}

template <typename T>
std::vector<T> read_all(const SafetensorsFile& file, const char* name, DType dtype) {
  const TensorInfo* tensor = file.find(name);
  std::vector<T> out(static_cast<std::size_t>(tensor->shape.numel()));
  file.read(*tensor, 0, tensor->shape.numel(), dtype, out.data());
  return out;
}

std::vector<std::uint16_t> read_bits(const SafetensorsFile& file, const char* name) { return read_all<std::uint16_t>(file, name, DType::bf16); }
std::vector<float> read_floats(const SafetensorsFile& file, const char* name) { return read_all<float>(file, name, DType::f32); }

// The file and the numbers in it come from tests/reference/safetensors_file.py.
TEST(Safetensors, ReadsWhatThePackageWroteAndRoundsAsItDoes) {
  const SafetensorsFile file(source_dir() / "tests/reference/safetensors/mixed.safetensors");
  ASSERT_EQ(file.tensors().size(), 9u);
  EXPECT_EQ(file.find("absent"), nullptr);
  ASSERT_NE(file.find("single"), nullptr);
  EXPECT_EQ(file.find("single")->shape, (Shape{6, 7}));
  EXPECT_EQ(file.find("scalar")->shape, Shape{});
  EXPECT_EQ(file.find("empty")->shape, (Shape{0, 4}));
  EXPECT_EQ(file.find("ids")->dtype, DType::i64);
  EXPECT_EQ(read_floats(file, "scalar"), std::vector<float>{2.5f});
  EXPECT_EQ(read_bits(file, "single"), read_bits(file, "bfloat"));
  EXPECT_EQ(read_bits(file, "single")[0], 0x3f80);
  EXPECT_EQ(read_bits(file, "single")[1], 0x3f82);
  EXPECT_EQ(read_bits(file, "single")[2], 0x3f81);
  EXPECT_EQ(read_floats(file, "half"), read_floats(file, "half_as_single"));
  EXPECT_EQ(read_bits(file, "half"), read_bits(file, "half_as_bfloat"));
  const std::vector<float> before = read_floats(file, "single");
  file.release(*file.find("single"));
  EXPECT_EQ(read_floats(file, "single"), before);
}

std::vector<NamedTensor> some_tensors() {
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < 5; ++i) {
    const Tensor t = host_tensor(DType::f32, {2, 8});
    std::iota(t.data<float>(), t.data<float>() + 16, static_cast<float>(100 * i));
    tensors.push_back({fmt::format("t{}", i), t});
  }
  return tensors;
}

TEST(SafetensorsWrite, ReadBackEqualAndAligned) {
  const Scratch scratch;
  auto tensors = some_tensors();
  const Tensor bytes = host_tensor(DType::u8, {3});
  std::memset(bytes.raw(), 1, 3);
  tensors.push_back({"a \"name\" \n", bytes});
  write_safetensors(scratch.path() / "model.safetensors", tensors);
  const SafetensorsFolder folder(scratch.path());
  ASSERT_EQ(folder.tensors().size(), tensors.size());
  const SafetensorsFile& file = *folder.tensors().begin()->second.file;
  EXPECT_EQ(file.tensors()[0].offset % 64, 0u);
  for (int i = 0; i < 5; ++i) {
    const std::vector<float> read = read_floats(file, fmt::format("t{}", i).c_str());
    for (std::size_t j = 0; j < 16; ++j) EXPECT_EQ(read[j], static_cast<float>(100 * i) + static_cast<float>(j));
  }
  EXPECT_EQ(file.find("a \"name\" \n")->dtype, DType::u8);
  for (const auto& entry : std::filesystem::directory_iterator(scratch.path())) EXPECT_EQ(entry.path().filename(), "model.safetensors");
}

TEST(SafetensorsWrite, RefusesBadNamesAndPlaces) {
  const Scratch scratch;
  auto tensors = some_tensors();
  tensors[1].name = "t0";
  EXPECT_PRED_FORMAT2(IsSubstring, "\"t0\"", error_of([&] { write_safetensors(scratch.path() / "f", tensors); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "\"t0\"", error_of([&] { write_safetensors_folder(scratch.path(), tensors, 64); }));
  tensors[1].name = "\xff";
  EXPECT_PRED_FORMAT2(IsSubstring, "UTF-8", error_of([&] { write_safetensors(scratch.path() / "f", tensors); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "cannot be written", error_of([&] { write_safetensors(scratch.path() / "no" / "f", some_tensors()); }));
  EXPECT_FALSE(std::filesystem::exists(scratch.path() / "f"));
}

TEST(SafetensorsWrite, ShardsHoldTheSame) {
  const Scratch single, sharded;
  write_safetensors_folder(single.path(), some_tensors(), 5 * 64);
  write_safetensors_folder(sharded.path(), some_tensors(), 2 * 64 + 1);
  EXPECT_TRUE(std::filesystem::exists(sharded.path() / "model-00003-of-00003.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(sharded.path() / "model.safetensors"));
  EXPECT_EQ(weight_files(single.path()).size(), 1u);
  EXPECT_EQ(weight_files(sharded.path()).size(), 4u);
  const SafetensorsFolder a(single.path()), b(sharded.path());
  ASSERT_EQ(a.tensors().size(), 5u);
  ASSERT_EQ(b.tensors().size(), 5u);
  for (const auto& [name, entry] : a.tensors())
    EXPECT_EQ(read_floats(*entry.file, name.c_str()), read_floats(*b.tensors().at(name).file, name.c_str()));
  EXPECT_PRED_FORMAT2(IsSubstring, "there already", error_of([&] { write_safetensors_folder(sharded.path(), some_tensors(), 1000); }));
  std::filesystem::copy(single.path() / "model.safetensors", sharded.path() / "model.safetensors");  // the single file wins
  EXPECT_EQ(SafetensorsFolder(sharded.path()).path().filename(), "model.safetensors");
}

TEST(SafetensorsIndex, HostileOnesAreRefused) {
  const Scratch scratch;
  const auto index = scratch.path() / "model.safetensors.index.json";
  const auto refused = [&](const std::string& text, const std::string& words) {
    scratch.write(index.filename(), text);
    const std::string error = error_of([&] { SafetensorsFolder{scratch.path()}; });
    EXPECT_PRED_FORMAT2(IsSubstring, scratch.path().string(), error) << text;
    EXPECT_PRED_FORMAT2(IsSubstring, words, error) << text;
  };
  EXPECT_PRED_FORMAT2(IsSubstring, "holds neither", error_of([&] { SafetensorsFolder{scratch.path()}; }));
  const std::vector<NamedTensor> tensors = some_tensors();
  write_safetensors(scratch.path() / "one.safetensors", std::span(tensors).first(1));
  write_safetensors(scratch.path() / "two.safetensors", std::span(tensors).subspan(1, 1));
  refused("", "not valid JSON");
  refused("{}", "weight_map");
  refused(R"({"weight_map": []})", "weight_map");
  refused(R"({"weight_map": {"t0": 1}})", "\"t0\"");
  refused(R"({"weight_map": {"t0": "one.safetensors", "t0": "two.safetensors"}})", "\"t0\" stands twice");
  const std::string outside = (scratch.path() / "one.safetensors").string();
  for (const std::string& name : {outside, std::string("../one.safetensors"), std::string("./one.safetensors"), std::string(".."), std::string("."),
                                 std::string(""), std::string("a\\\\b"), std::string("one.safetensors\\u0000")})
    refused(R"({"weight_map": {"t0": ")" + name + "\"}}", "not a plain file name");
  refused(R"({"weight_map": {"t0": "three.safetensors"}})", "\"three.safetensors\" of tensor \"t0\" is missing");
  refused(R"({"weight_map": {"t0": ")" + std::string(300, 'x') + "\"}}", "of tensor \"t0\" is missing");  // too long for a file system
  refused(R"({"weight_map": {"t0": "two.safetensors"}})", "two.safetensors: has no tensor \"t0\"");
  write_safetensors(scratch.path() / "both.safetensors", std::span(tensors).first(2));
  refused(R"({"weight_map": {"t0": "both.safetensors"}})", "does not say that tensor \"t1\" is there");
  refused(R"({"weight_map": {"t0": "both.safetensors", "t1": "two.safetensors"}})", "does not say that tensor \"t1\" is there");
  scratch.write(index.filename(), R"({"weight_map": {"t0": "one.safetensors", "t1": "two.safetensors"}})");
  EXPECT_EQ(SafetensorsFolder(scratch.path()).tensors().size(), 2u);
}

}  // namespace
}  // namespace kvmesh
