// The tokenizer against tiktoken, whose answers to difficult texts are in tests/fixtures/tokenizer.json (made by
// tests/reference/tokenizer.py, which says what is in it), and what it does with files that are none.
#include "model/tokenizer/tokenizer.h"

#include "model/tokenizer/tiktoken_file.h"
#include "model/utf8.h"
#include "tests/model/scratch.h"
#include "tests/source_dir.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <sys/stat.h>

#include <cstdlib>
#include <optional>
#include <ostream>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::error_of;
using test::Scratch;
using testing::IsSubstring;

const fs::path fixtures = source_dir() / "tests/fixtures";

const json& fixture() {
  static const json all = json::parse(std::ifstream(fixtures / "tokenizer.json"));
  return all;
}

/// As the fixture's script has it.
class Hash {
 public:
  void add(std::uint64_t value) { hash_ = (hash_ ^ value) * 0x100000001b3; }
  std::string text() const { return fmt::format("{:016x}", hash_); }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325;
};

std::string hash_of(std::span<const std::int32_t> ids) {
  Hash hash;
  for (const std::int32_t id : ids) hash.add(static_cast<std::uint64_t>(id));
  return hash.text();
}

std::string base64(std::string_view bytes) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t bits = 0;
    for (std::size_t j = 0; j < 3; ++j) bits = bits << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (int j = 0; j < 4; ++j) text += i + static_cast<std::size_t>(j) <= bytes.size() ? digits[bits >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

std::string line(std::string_view token, std::int64_t rank) { return base64(token) + " " + std::to_string(rank) + "\n"; }

/// The 256 single bytes with their values as ranks, 256 lines.
std::string single_bytes() {
  std::string text;
  for (int b = 0; b < 256; ++b) text += line(std::string(1, static_cast<char>(b)), b);
  return text;
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

/// A file of GPT-2's ranks, if this machine has one.
std::optional<fs::path> gpt2_file() {
  const char* const given = std::getenv("KVMESH_GPT2_TIKTOKEN");
  const fs::path file = given != nullptr && *given != '\0' ? fs::path(given) : source_dir() / ".deps/gpt2.tiktoken";
  return fs::exists(file) ? std::optional(file) : std::nullopt;
}

/// The small vocabulary with rank r moved to 3 · (999 - r).
std::string reversed_small() {
  const TiktokenFile small = read_tiktoken_file(fixtures / "small.tiktoken");
  std::string text;
  for (std::size_t r = 0; r < small.tokens.size(); ++r) text += line(small.tokens[r], 3 * (999 - static_cast<std::int64_t>(r)));
  return text;
}

const Tokenizer& small() {
  static const Tokenizer tokenizer(fixtures / "small.tiktoken");
  return tokenizer;
}

/// Null: GPT-2's ranks are not here.
const Tokenizer* vocabulary(const std::string& name) {
  if (name == "small") return &small();
  if (name == "reversed") {
    static const Tokenizer tokenizer = [] {
      const Scratch scratch;
      return Tokenizer(scratch.write("reversed.tiktoken", reversed_small()));
    }();
    return &tokenizer;
  }
  static const std::optional<Tokenizer> gpt2 = gpt2_file() ? std::optional<Tokenizer>(Tokenizer(*gpt2_file())) : std::nullopt;
  return gpt2 ? &*gpt2 : nullptr;
}

class AgainstTiktoken : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    tokenizer_ = vocabulary(GetParam());
    if (tokenizer_ == nullptr) GTEST_SKIP() << "GPT-2's ranks are not in .deps/gpt2.tiktoken (launch/fetch-gpt2-ranks) nor where KVMESH_GPT2_TIKTOKEN says";
  }
  void expect_hash(const std::string& text, const json& expected, const std::string& what) const {
    EXPECT_EQ(hash_of(tokenizer_->encode(text)), expected[GetParam()]) << what;
  }

  const Tokenizer* tokenizer_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(, AgainstTiktoken, testing::Values("small", "reversed", "gpt2"), [](const auto& name) { return std::string(name.param); });

TEST_P(AgainstTiktoken, Texts) {
  for (const json& c : fixture()["texts"]) {
    const std::string text = c["text"];
    const auto ids = tokenizer_->encode(text);
    EXPECT_EQ(ids, c[GetParam()].get<std::vector<std::int32_t>>()) << c["text"];
    EXPECT_EQ(tokenizer_->decode(ids), text);
  }
}

TEST_P(AgainstTiktoken, RandomTexts) {
  EXPECT_EQ(fixture()["random"].size(), 400u);
  for (const json& c : fixture()["random"]) expect_hash(c["text"], c, c["text"].dump());
}

TEST_P(AgainstTiktoken, Megabytes) {
  if (GetParam() == std::string("reversed")) return;  // takes seconds under sanitizers and shows nothing more
  for (const json& c : fixture()["repeated"]) {
    std::string text;
    for (int i = 0; i < c["count"]; ++i) text += c["unit"].get_ref<const std::string&>();
    expect_hash(text + c["end"].get<std::string>(), c, c["unit"].dump());
  }
  for (const json& c : fixture()["lcg"]) {
    const std::string alphabet = c["alphabet"];
    std::string text;
    std::uint64_t x = 1;
    for (int i = 0; i < c["count"]; ++i) {
      x = x * 6364136223846793005 + 1442695040888963407;
      text += alphabet[(x >> 33) % alphabet.size()];
    }
    expect_hash(text, c, alphabet);
  }
}

TEST_P(AgainstTiktoken, InvalidUtf8IsReplacedAsPythonDoes) {
  for (const json& c : fixture()["invalid"]) {
    const std::string bytes = from_hex(c["bytes"]);
    EXPECT_EQ(to_valid_utf8(bytes), c["text"]) << c["bytes"];
    EXPECT_EQ(valid_utf8_prefix(bytes) == bytes.size(), c["text"] == bytes) << c["bytes"];
    expect_hash(bytes, c, c["bytes"]);
  }
}

TEST_P(AgainstTiktoken, DecodesWhatBeginsAndEndsWithinCharacters) {
  int cut = 0;
  for (const json& c : fixture()["decode"][GetParam()]) {
    const std::string text = c["text"];
    EXPECT_EQ(tokenizer_->decode(c["ids"].get<std::vector<std::int32_t>>()), text) << c["ids"];
    cut += text.find(replacement_character) != std::string::npos;
  }
  EXPECT_GT(cut, 20);
}

TEST_P(AgainstTiktoken, BytesOfEveryToken) {
  Hash hash;
  std::size_t count = 0;
  for (std::int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::string_view bytes = tokenizer_->bytes(id);
    if (GetParam() == std::string("reversed") && id < 3 * 999 && id % 3 != 0) {
      EXPECT_EQ(bytes, replacement_character) << id;
      continue;
    }
    ++count;
    hash.add(bytes.size());
    for (const char b : bytes) hash.add(static_cast<unsigned char>(b));
  }
  const json& expected = fixture()["token_bytes"][GetParam()];
  EXPECT_EQ(count, expected["count"]);
  EXPECT_EQ(hash.text(), expected["hash"]);
}

TEST_P(AgainstTiktoken, BatchOnThreadsEqualsOneByOne) {
  std::vector<std::string> texts;
  std::vector<std::vector<std::int32_t>> expected;
  for (const char* list : {"texts", "random"}) {
    for (const json& c : fixture()[list]) expected.push_back(tokenizer_->encode(texts.emplace_back(c["text"])));
  }
  for (const int threads : {1, 2, 5, 1000}) EXPECT_EQ(tokenizer_->encode_batch(texts, threads), expected) << threads << " threads";
  EXPECT_TRUE(tokenizer_->encode_batch({}, 3).empty());
  EXPECT_NE(error_of([&] { tokenizer_->encode_batch(texts, 0); }), "");
}

// With these ranks the ids of "aX1aX!" show which class X has: only a letter joins the a, a number the 1, another character the !.
TEST(Tokenizer, ClassOfEveryCodePoint) {
  std::string ranks = single_bytes();
  int next = 256;
  for (int b = 0; b < 256; ++b) ranks += line(std::string{'a', static_cast<char>(b)}, next++);
  for (int b = 0; b < 256; ++b) {
    if (b != 'a') ranks += line(std::string{static_cast<char>(b), '1'}, next++);
  }
  for (int b = 0; b < 256; ++b) {
    if (b != 'a') ranks += line(std::string{static_cast<char>(b), '!'}, next++);
  }
  const Scratch scratch;
  const Tokenizer tokenizer(scratch.write("probe.tiktoken", ranks));
  const json& expected = fixture()["code_points"];
  ASSERT_EQ(expected.size(), 0x110u);
  for (std::uint32_t block = 0; block < 0x110; ++block) {
    std::string text;
    for (std::uint32_t c = block * 0x1000; c < (block + 1) * 0x1000; ++c) {
      if (c >= 0xd800 && c < 0xe000) continue;
      std::string utf8;
      const auto continuation = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3f)); };
      if (c < 0x80) utf8 = {static_cast<char>(c)};
      else if (c < 0x800) utf8 = {static_cast<char>(0xc0 | c >> 6), continuation(0)};
      else if (c < 0x10000) utf8 = {static_cast<char>(0xe0 | c >> 12), continuation(6), continuation(0)};
      else utf8 = {static_cast<char>(0xf0 | c >> 18), continuation(12), continuation(6), continuation(0)};
      text += "a" + utf8 + "1a" + utf8 + "!\n";
    }
    EXPECT_EQ(hash_of(tokenizer.encode(text)), expected[block]) << fmt::format("U+{:04X} and on", block * 0x1000);
  }
}

TEST(Tokenizer, DefaultSpecialTokensAreTheNextFreeIds) {
  EXPECT_EQ(small().end_of_text(), 1000);
  EXPECT_EQ(small().pad(), 1001);
  EXPECT_EQ(small().vocab_size(), 1002);
  EXPECT_EQ(small().bytes(1001), "<|pad|>");
  EXPECT_EQ(small().decode(std::vector<std::int32_t>{1000, 97, 1001}), "<|endoftext|>a<|pad|>");
  if (const Tokenizer* gpt2 = vocabulary("gpt2")) {
    EXPECT_EQ(gpt2->end_of_text(), 50256);
    EXPECT_EQ(gpt2->pad(), 50257);
  }
}

TEST(Tokenizer, IdsWithoutATokenAreReplacementCharacters) {
  for (const std::int32_t id : {1002, 50257, 1 << 20, INT32_MAX, -1, INT32_MIN}) {
    EXPECT_EQ(small().bytes(id), replacement_character) << id;
    EXPECT_EQ(small().decode(std::vector<std::int32_t>{97, id, 98}), "a\xef\xbf\xbd" "b") << id;
  }
  const Tokenizer& gaps = *vocabulary("reversed");
  EXPECT_EQ(gaps.bytes(1), replacement_character);
  EXPECT_EQ(gaps.bytes(3 * (999 - 'a')), "a");
}

TEST(Tokenizer, OwnSpecialTokens) {
  const std::map<std::string, std::int32_t> own = {{"<a>", 1000}, {"<a>b", 1005}, {"a", 2000}, {"né", 1001}};
  const Tokenizer t(fixtures / "small.tiktoken", &own);
  EXPECT_EQ(t.vocab_size(), 2001);
  EXPECT_EQ(t.end_of_text(), -1);
  EXPECT_EQ(t.pad(), -1);
  EXPECT_EQ(t.bytes(1005), "<a>b");
  EXPECT_EQ(t.bytes(1002), replacement_character);
  using Ids = std::vector<std::int32_t>;
  EXPECT_EQ(t.encode("<a>"), Ids({1000}));
  EXPECT_EQ(t.encode("<a>b<a>"), Ids({1005, 1000}));  // the longest
  EXPECT_EQ(t.encode("<a<a>"), Ids({'<', 2000, 1000}));  // the first
  EXPECT_EQ(t.encode("né\n"), Ids({1001, '\n'}));
  Ids expected = small().encode("<|p");  // ordinary text, but for the special "a"
  const Ids rest = small().encode("d|>");
  expected.push_back(2000);
  expected.insert(expected.end(), rest.begin(), rest.end());
  EXPECT_EQ(t.encode("<|pad|>"), expected);
  EXPECT_EQ(t.decode(t.encode("a<a>bné")), "a<a>bné");

  const std::map<std::string, std::int32_t> none;
  const Tokenizer plain(fixtures / "small.tiktoken", &none);
  EXPECT_EQ(plain.vocab_size(), 1000);
  EXPECT_EQ(plain.decode(plain.encode("<|pad|>")), "<|pad|>");
  EXPECT_GT(plain.encode("<|pad|>").size(), 1u);
}

TEST(Tokenizer, SpecialTokensThatCannotBe) {
  const auto refused = [](const std::map<std::string, std::int32_t>& specials, const char* words) {
    EXPECT_PRED_FORMAT2(IsSubstring, words, error_of([&] { Tokenizer(fixtures / "small.tiktoken", &specials); }));
  };
  refused({{"", 1000}}, "special token \"\"");
  refused({{"\xff", 1000}}, "special token \"\xef\xbf\xbd\"");
  refused({{"<|a|>", -1}}, "<|a|>");
  refused({{"<|a|>", rank_limit}}, "<|a|>");
  refused({{"<|a|>", 999}}, "another token");
  refused({{"<|a|>", 1000}, {"<|b|>", 1000}}, "<|b|>");
}

/// What reading `text` as a file of ranks says, without the folder.
std::string refusal(const std::string& text) {
  const Scratch scratch;
  const fs::path file = scratch.write("t", text);
  std::string error = error_of([&] { read_tiktoken_file(file); });
  if (const std::size_t at = error.find(file.string()); at == 0) error.erase(0, file.string().size() - 1);
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  return error;
}

TEST(TiktokenFile, LinesInAnyOrderWithEitherEnd) {
  const Scratch scratch;
  std::string text = "\n" + line("ab", 300) + "\r\n" + single_bytes();
  for (std::size_t at = 1000; (at = text.find('\n', at)) != std::string::npos; at += 2) text.replace(at, 1, "\r\n");
  text += "YWJj 299";  // "abc", and no end of line
  const TiktokenFile file = read_tiktoken_file(scratch.write("t", text));
  EXPECT_EQ(file.count, 258u);
  ASSERT_EQ(file.tokens.size(), 301u);
  EXPECT_EQ(file.tokens[300], "ab");
  EXPECT_EQ(file.tokens[299], "abc");
  EXPECT_EQ(file.tokens[256], "");
  EXPECT_EQ(file.tokens[0], std::string_view("\0", 1));
}

TEST(TiktokenFile, EveryLengthOfTokenIsRead) {
  const Scratch scratch;
  std::string text = single_bytes();
  std::vector<std::string> tokens;
  for (std::size_t n = 2; n < 200; ++n) {
    std::string token;
    for (std::size_t i = 0; i < n; ++i) token += static_cast<char>(i * 37 + n * 101);
    tokens.push_back(token);
    text += line(token, 254 + static_cast<std::int64_t>(n));
  }
  const TiktokenFile file = read_tiktoken_file(scratch.write("t", text));
  for (std::size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(file.tokens[256 + i], tokens[i]);
}

TEST(TiktokenFile, ErrorsNameFileAndLine) {
  const std::string good = single_bytes();
  const auto refused = [&](const std::string& bad, const char* words) { EXPECT_PRED_FORMAT2(IsSubstring, words, refusal(good + bad)) << bad; };
  EXPECT_EQ(refusal(good), "");
  EXPECT_EQ(refusal(good + "YWI= 1048575\n"), "");  // the largest rank
  refused("YWI=\n", "t:257: no space between token and rank: \"YWI=\"");
  refused("\n\nYWI=\n", "t:259: no space");
  refused("YWI=\t256\n", "t:257: no space");
  for (const char* token : {"", "=", "====", "YWI", "YW=", "Y===", "YWJj=", "YWI=YWI=", "YW=I", "Y!Jj", "YWJ\x80", "YWJ=", "YX==", "YW-_"}) {
    refused(std::string(token) + " 256\n", "t:257: the token is not base64");
  }
  for (const char* rank : {"", "x", "+256", " 256", "256 ", "256x", "0x100", "256.0", "1e3", "--1", "99999999999999999999x"}) {
    refused(std::string("YWI= ") + rank + "\n", "t:257: the rank is not a number");
  }
  for (const char* rank : {"-1", "1048576", "2147483647", "2147483648", "4294967552", "18446744073709551616", "-99999999999999999999"}) {
    refused(std::string("YWI= ") + rank + "\n", "t:257: the rank is not within 0 to 1048575");
  }
  refused("YWI= 97\n", "t:257: rank 97 is also that of line 98");
  refused("YQ== 256\n", "t:257: the token is also that of line 98");
  refused("YWI= 256\n" "YWM= 257\n" "YWI= 258\n", "t:259: the token is also that of line 257");
  refused("YWI= 256\rYWM= 257\n", "t:257: the rank is not a number");
  refused(std::string("\0 256\n", 6), "t:257: the token is not base64: \"? 256\"");
  refused(std::string(5000, 'A') + "\n", "AAA…\"");
  refused(std::string(1368, 'A') + " 256\n", "t:257: the token is longer than 1024 bytes");  // 1026
}

TEST(TiktokenFile, WithoutEverySingleByte) {
  std::string text = single_bytes();
  text.erase(text.find("YQ== 97\n"), 8);
  EXPECT_PRED_FORMAT2(IsSubstring, "t: no line is the single byte 0x61", refusal(text));
  EXPECT_PRED_FORMAT2(IsSubstring, "t: no line is the single byte 0x00", refusal("YWI= 0\n"));
}

TEST(TiktokenFile, FilesThatAreNone) {
  EXPECT_PRED_FORMAT2(IsSubstring, "t: there are no tokens in it", refusal(""));
  EXPECT_PRED_FORMAT2(IsSubstring, "t: there are no tokens in it", refusal("\r\n\n\r\n"));
  std::string garbage;
  for (int i = 0; i < 5000; ++i) garbage += static_cast<char>(i * i * 31 >> 3);
  EXPECT_PRED_FORMAT2(IsSubstring, "t:1: ", refusal(garbage));
  EXPECT_PRED_FORMAT2(IsSubstring, "t:1: no space between token and rank: \"?PNG?\"", refusal("\x89PNG\r\r\n\x1a\n"));
  const Scratch scratch;
  EXPECT_PRED_FORMAT2(IsSubstring, scratch.path().string() + ": not a regular file", error_of([&] { read_tiktoken_file(scratch.path()); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "none.tiktoken: No such file", error_of([&] { read_tiktoken_file(scratch.path() / "none.tiktoken"); }));
  ASSERT_EQ(mkfifo((scratch.path() / "pipe.tiktoken").c_str(), 0600), 0);  // nobody writes into it
  EXPECT_PRED_FORMAT2(IsSubstring, "pipe.tiktoken: not a regular file", error_of([&] { Tokenizer(scratch.path() / "pipe.tiktoken"); }));
}

}  // namespace
}  // namespace kvmesh
