// config.json: what is read, what is refused and in which words, and how layers attend.
#include "model/config.h"

#include "tests/model/scratch.h"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using test::error_of;
using test::Scratch;
using testing::IsSubstring;

const std::string required = R"("seqlen": 64, "vocab_size": 100, "d_emb": 24, "num_layers": 3, "q_heads": 4, "kv_heads": 2)";

ModelConfig read(const std::string& text) {
  const Scratch scratch;
  return read_config(scratch.write("config.json", text));
}

TEST(Config, DefaultsAreTheContracts) {
  const ModelConfig c = read("{" + required + "}");
  EXPECT_EQ(c.seqlen, 64);
  EXPECT_EQ(c.vocab_size, 100);
  EXPECT_EQ(c.d_emb, 24);
  EXPECT_EQ(c.num_layers, 3);
  EXPECT_EQ(c.q_heads, 4);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim(), 6);
  EXPECT_EQ(c.dtype, DType::bf16);
  EXPECT_EQ(c.rope_theta, 10000.0);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.logit_soft_cap, 15.0);
  EXPECT_EQ(c.window_pattern, "L");
  EXPECT_EQ(c.local_window_size, 16);
  EXPECT_TRUE(c.nope_global_attn);
  EXPECT_FALSE(c.has_special_tokens);
}

TEST(Config, EveryKeyIsRead) {
  const ModelConfig c = read("{" + required + R"(, "dtype": "float32", "rope_theta": 5000, "norm_eps": 1e-6, "logit_soft_cap": null,
    "window_pattern": "sSl", "local_window_size": 7, "nope_global_attn": false, "special_tokens": {"<|endoftext|>": 99, "<|pad|>": 100},
    "attn_type": "gqa", "_comment": ["anything"]})");
  EXPECT_EQ(c.dtype, DType::f32);
  EXPECT_EQ(c.rope_theta, 5000.0);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.logit_soft_cap, 0.0);
  EXPECT_EQ(c.window_pattern, "SSL");
  EXPECT_EQ(c.local_window_size, 7);
  EXPECT_FALSE(c.nope_global_attn);
  EXPECT_TRUE(c.has_special_tokens);
  EXPECT_EQ(c.special_tokens, (std::map<std::string, std::int32_t>{{"<|endoftext|>", 99}, {"<|pad|>", 100}}));
  EXPECT_EQ(read("{" + required + R"(, "logit_soft_cap": 0})").logit_soft_cap, 0.0);
  EXPECT_EQ(read("{" + required + R"(, "local_window_size": null})").local_window_size, 16);
}

TEST(Config, WritingAndReadingGivesTheSame) {
  for (const std::string more :
       {"", R"(, "dtype": "float32", "rope_theta": 12345.678901234567, "norm_eps": 3.3e-7, "logit_soft_cap": 0.1, "window_pattern": "SSL",
                "local_window_size": 0, "nope_global_attn": false, "special_tokens": {"<|a|>": 3}})",
        R"(, "special_tokens": {})"}) {
    const ModelConfig a = read("{" + required + more + (more.ends_with("}}") || more.ends_with("})") ? "" : "}"));
    const ModelConfig b = read(to_json(a));
    EXPECT_EQ(a.seqlen, b.seqlen);
    EXPECT_EQ(a.vocab_size, b.vocab_size);
    EXPECT_EQ(a.d_emb, b.d_emb);
    EXPECT_EQ(a.num_layers, b.num_layers);
    EXPECT_EQ(a.q_heads, b.q_heads);
    EXPECT_EQ(a.kv_heads, b.kv_heads);
    EXPECT_EQ(a.dtype, b.dtype);
    EXPECT_EQ(a.rope_theta, b.rope_theta);
    EXPECT_EQ(a.norm_eps, b.norm_eps);
    EXPECT_EQ(a.logit_soft_cap, b.logit_soft_cap);
    EXPECT_EQ(a.window_pattern, b.window_pattern);
    EXPECT_EQ(a.local_window_size, b.local_window_size);
    EXPECT_EQ(a.nope_global_attn, b.nope_global_attn);
    EXPECT_EQ(a.has_special_tokens, b.has_special_tokens);
    EXPECT_EQ(a.special_tokens, b.special_tokens);
  }
}

TEST(Config, ErrorsNameFileAndKey) {
  const auto refused = [](const std::string& text, const std::string& words) {
    const Scratch scratch;
    const auto file = scratch.write("config.json", text);
    const std::string error = error_of([&] { read_config(file); });
    EXPECT_PRED_FORMAT2(IsSubstring, file.string(), error) << text;
    EXPECT_PRED_FORMAT2(IsSubstring, words, error) << text;
  };
  refused("", "line 1");
  refused("{\n" + required + ",\n}", "line 3");
  refused("[]", "JSON object");
  refused("{}", "\"seqlen\" is missing");
  refused(R"({"seqlen": 64, "vocab_size": 100, "d_emb": 24, "num_layers": 3, "q_heads": 4})", "\"kv_heads\" is missing");
  refused("{" + required + R"(, "seqlen": 64})", "\"seqlen\" stands twice");
  refused("{" + required + R"(, "widow_pattern": "S"})", "\"widow_pattern\" is not known");
  refused("{" + required + std::string(", \"a\0\": 1}", 10), "zero byte");

  const auto refused_sizes = [&](const char* seqlen, const char* vocab, const char* d, const char* layers, const char* q, const char* kv, const char* words) {
    refused(fmt::format(R"({{"seqlen": {}, "vocab_size": {}, "d_emb": {}, "num_layers": {}, "q_heads": {}, "kv_heads": {}}})", seqlen, vocab, d, layers,
                        q, kv), words);
  };
  refused_sizes("1", "100", "24", "3", "4", "2", "\"seqlen\"");
  refused_sizes("64.0", "100", "24", "3", "4", "2", "\"seqlen\"");
  refused_sizes("\"64\"", "100", "24", "3", "4", "2", "\"seqlen\"");
  refused_sizes("null", "100", "24", "3", "4", "2", "\"seqlen\"");
  refused_sizes("64", "-100", "24", "3", "4", "2", "\"vocab_size\"");
  refused_sizes("64", "4294967396", "24", "3", "4", "2", "\"vocab_size\"");
  refused_sizes("64", "18446744073709551615", "24", "3", "4", "2", "\"vocab_size\"");
  refused_sizes("64", "1e999", "24", "3", "4", "2", "too large");
  refused_sizes("64", "100", "9223372036854775806", "3", "4", "2", "\"d_emb\"");
  refused_sizes("64", "100", "24", "0", "4", "2", "\"num_layers\"");
  refused_sizes("64", "100", "24", "3", "0", "2", "\"q_heads\"");
  refused_sizes("64", "100", "24", "3", "5", "1", "\"d_emb\" 24 is no multiple of \"q_heads\" 5");
  refused_sizes("64", "100", "24", "3", "8", "2", "even head size");
  refused_sizes("64", "100", "24", "3", "4", "3", "\"q_heads\" 4 is no multiple of \"kv_heads\" 3");

  for (const auto& [key, value] : std::initializer_list<std::pair<std::string, std::string>>{
           {"dtype", "\"float16\""}, {"dtype", "32"}, {"rope_theta", "0"}, {"rope_theta", "\"1\""}, {"norm_eps", "0"}, {"norm_eps", "-1e-5"},
           {"norm_eps", "null"}, {"logit_soft_cap", "-1"}, {"logit_soft_cap", "true"}, {"window_pattern", "\"\""}, {"window_pattern", "\"SXL\""},
           {"window_pattern", "null"}, {"local_window_size", "-1"}, {"local_window_size", "1.5"}, {"nope_global_attn", "1"},
           {"special_tokens", "[]"}, {"special_tokens", "null"}, {"special_tokens", R"({"<|endoftext|>": 100})"}, {"special_tokens", R"({"<|pad|>": 101})"},
           {"special_tokens", R"({"a": -1})"}, {"special_tokens", R"({"a": "1"})"}, {"special_tokens", R"({"": 1})"},
           {"special_tokens", R"({"a": 1, "a": 2})"}}) {
    refused("{" + required + ", \"" + key + "\": " + value + "}", value.find("\"a\": 2") == value.npos ? key : "\"a\" stands twice");
  }
  refused("{" + required + ", \"_deep\": " + std::string(100'000, '[') + "}", "nested deeper");
}

TEST(Config, FilesThatAreNone) {
  const Scratch scratch;
  EXPECT_PRED_FORMAT2(IsSubstring, "config.json: No such file", error_of([&] { read_config(scratch.path() / "config.json"); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "not a regular file", error_of([&] { read_config(scratch.path()); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "longer than", error_of([&] { read_config(scratch.write("config.json", std::string((1 << 20) + 1, ' '))); }));
}

/// "window/rope" of each layer: "-1+" is full attention with RoPE.
std::string layers(const std::string& pattern, int n, bool nope) {
  ModelConfig c;
  c.num_layers = n;
  c.window_pattern = pattern;
  c.local_window_size = 5;
  c.nope_global_attn = nope;
  std::string s;
  for (const auto& layer : c.layers()) s += std::to_string(layer.window) + (layer.rope ? "+ " : "- ");
  return s;
}

// The expected lists are what the original's compute_layer_configs returns for the same arguments.
TEST(Config, LayersFollowThePattern) {
  EXPECT_EQ(layers("L", 3, true), "-1+ -1+ -1+ ");
  EXPECT_EQ(layers("LL", 3, true), "-1+ -1+ -1+ ");
  EXPECT_EQ(layers("S", 3, true), "5+ 5+ 5+ ");
  EXPECT_EQ(layers("SS", 3, true), "5+ 5+ -1- ");
  EXPECT_EQ(layers("SSSL", 6, true), "5+ 5+ 5+ -1- 5+ -1- ");
  EXPECT_EQ(layers("SSSL", 6, false), "5+ 5+ 5+ -1+ 5+ -1+ ");
  EXPECT_EQ(layers("LS", 4, true), "-1- 5+ -1- -1- ");
  EXPECT_EQ(layers("LSSSSS", 1, true), "-1- ");
  EXPECT_EQ(layers("SL", 1, false), "-1+ ");
}

}  // namespace
}  // namespace kvmesh
