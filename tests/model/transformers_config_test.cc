// config.json as transformers writes it: what is read from it, and what is refused by name. That it means the same is families_mpi_test's to show.
#include "model/transformers_config.h"

#include "tests/model/scratch.h"
#include "tests/source_dir.h"

#include <gtest/gtest.h>

#include <fstream>

namespace kvmesh {
namespace {

using nlohmann::json;
using test::error_of;
using testing::IsSubstring;
namespace fs = std::filesystem;

const fs::path families = source_dir() / "tests/fixtures/families";

json config_of(const char* family) { return json::parse(std::ifstream(families / family / "config.json")); }

/// The config of a fixture with `changes` merged in (null removes a key), beside a generation_config.json if one is given.
ModelConfig changed(const char* family, const std::string& changes, const char* generation = nullptr) {
  const test::Scratch scratch;
  json config = config_of(family);
  config.merge_patch(json::parse(changes));
  if (generation) scratch.write("generation_config.json", generation);
  return read_config(scratch.write("config.json", config.dump()));
}

TEST(TransformersConfig, what_it_does_not_understand_is_named) {
  struct Case {
    const char *family, *changes, *words;
  };
  const Case cases[] = {
      {"llama2", R"({"model_type": "gemma3"})", "\"model_type\" is \"gemma3\""},
      {"llama2", R"({"hidden_act": "gelu"})", "\"hidden_act\" is \"gelu\""},
      {"llama2", R"({"quantization_config": {"bits": 4}})", "\"quantization_config\" is not known"},
      {"llama2", R"({"partial_rotary_factor": 0.5})", "\"partial_rotary_factor\" is not known"},
      {"llama31", R"({"rope_scaling": {"rope_type": "dynamic"}})", "\"rope_scaling\": the type is \"dynamic\""},
      {"qwen3-yarn", R"({"rope_scaling": {"factor": null}})", "\"factor\" is missing"},
      {"qwen3-yarn", R"({"rope_scaling": {"beta_slow": 33}})", "\"beta_fast\" 32 is below \"beta_slow\" 33"},
      {"qwen3-yarn", R"({"rope_scaling": {"truncate": 1}})", "\"truncate\" must be true or false"},
      {"qwen3-yarn", R"({"rope_scaling": {"attention_factor": -1}})", "\"attention_factor\" must be a number above 0"},
      {"qwen3-yarn", R"({"rope_scaling": {"original_max_position_embeddings": 0}})", "\"original_max_position_embeddings\" must be a whole number from 1"},
      {"llama31", R"({"rope_scaling": {"beta_fast": 32}})", "\"beta_fast\" is not known"},
      {"llama31", R"({"rope_scaling": {"factor": null}})", "\"factor\" is missing"},
      {"llama31", R"({"rope_scaling": {"factor": 0}})", "\"factor\" must be a number above 0"},
      {"llama31", R"({"rope_scaling": {"low_freq_factor": 4}})", "not above \"low_freq_factor\""},
      {"llama31", R"({"rope_parameters": {"rope_type": "default"}})", "both \"rope_scaling\" and \"rope_parameters\""},
      {"gpt2", R"({"scale_attn_by_inverse_layer_idx": true})", "\"scale_attn_by_inverse_layer_idx\" is \"true\""},
      {"gpt2", R"({"scale_attn_weights": false})", "\"scale_attn_weights\""},
      {"gpt2", R"({"activation_function": "relu"})", "\"activation_function\" is \"relu\""},
      {"gpt2", R"({"n_head": 5})", "no multiple of 5 heads"},
      {"qwen2-window", R"({"layer_types": ["full_attention", "sliding_attention", "linear_attention"]})", "linear_attention"},
      {"qwen2-window", R"({"layer_types": ["full_attention"]})", "\"layer_types\" must be a list with an entry for each of 3 layers"},
      {"qwen2-window", R"({"use_sliding_window": false})", "no \"sliding_window\" is in use"},
      {"qwen3", R"({"head_dim": 7})", "even head size"},
      {"qwen3", R"({"num_key_value_heads": 3})", "query heads are no multiple of 3 key heads"},
      {"smollm3", R"({"no_rope_layers": [1, 1, 2, 1]})", "an entry of \"no_rope_layers\" must be a whole number from 0 to 1"},
      {"mistral", R"({"sliding_window": 0})", "\"sliding_window\" must be a whole number from 1"},
      {"nanochat", R"({"hidden_act": "silu"})", "\"hidden_act\" is \"silu\""},
      {"llama2", R"({"is_encoder_decoder": true})", "\"is_encoder_decoder\""},
      {"qwen2", R"({"use_mrope": true})", "\"use_mrope\" is \"true\""},
      {"llama2", R"({"torch_dtype": null, "dtype": "float8_e4m3fn"})", "float8_e4m3fn"},
      {"llama2", R"({"vocab_size": 1073741824})", "\"vocab_size\" must be a whole number"},
      {"llama2", R"({"eos_token_id": "</s>"})", "\"eos_token_id\" must be a whole number"},
  };
  for (const Case& c : cases) EXPECT_PRED_FORMAT2(IsSubstring, c.words, error_of([&] { changed(c.family, c.changes); })) << c.family << c.changes;
}

TEST(TransformersConfig, yarn_makes_the_context_longer) {
  EXPECT_EQ(changed("qwen3-yarn", R"({"max_position_embeddings": 16})").seqlen, 64);  // 4 · 16
  EXPECT_EQ(changed("qwen3-yarn", R"({"max_position_embeddings": 80})").seqlen, 80);
  EXPECT_EQ(changed("qwen3-yarn", R"({"max_position_embeddings": 16, "rope_scaling": {"original_max_position_embeddings": null}})").seqlen, 64);
}

TEST(TransformersConfig, all_that_is_not_understood_is_told_at_once) {
  const std::string e = error_of([] { changed("llama2", R"({"hidden_act": "gelu", "alibi": true, "moe": 1, "_note": "a comment"})"); });
  for (const char* words : {"\"hidden_act\"", "\"alibi\"", "\"moe\""}) EXPECT_PRED_FORMAT2(IsSubstring, words, e);
  EXPECT_PRED_FORMAT2(testing::IsNotSubstring, "_note", e);
}

// Of gpt2-medium and gpt2-xl, of Llama 1, of Qwen2.5, and of copies by unsloth.
TEST(TransformersConfig, keys_on_the_hub_that_say_nothing_of_the_model) {
  const auto passed_over = [](const char* family, const char* more) { EXPECT_EQ(to_json(changed(family, more)), to_json(changed(family, "{}"))) << more; };
  passed_over("gpt2", R"({"n_special": 0, "predict_special_tokens": true, "output_past": true})");
  passed_over("llama2", R"({"max_sequence_length": 2048})");
  passed_over("qwen2", R"({"use_mrope": false})");
  passed_over("qwen3", R"({"unsloth_fixed": true, "unsloth_version": "2025.3.1"})");
}

TEST(TransformersConfig, older_and_newer_files_say_the_same) {
  const ModelConfig older = changed("llama31", "{}");
  const ModelConfig newer = changed("llama31", R"({"rope_scaling": null, "rope_theta": null, "torch_dtype": null, "dtype": "bfloat16", "rope_parameters": {"rope_type": "llama3",
    "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}})");
  EXPECT_EQ(to_json(older), to_json(newer));
  EXPECT_EQ(older.rope_theta, newer.rope_theta);
  EXPECT_EQ(newer.rope_scaling.original_positions, 16);
}

// As transformers' configuration classes of 5.24 have it.
TEST(TransformersConfig, absent_keys_have_the_classes_defaults_and_null_means_none) {
  const auto windows = [](const ModelConfig& c) {
    std::vector<std::int64_t> all;
    for (const auto& layer : c.layers()) all.push_back(layer.window);
    return all;
  };
  using Windows = std::vector<std::int64_t>;
  const auto without = [](const char* family, const char* key) {  // a null in a patch removes the key
    const test::Scratch scratch;
    json config = config_of(family);
    config.erase(key);
    return read_config(scratch.write("config.json", config.dump()));
  };
  const auto with_null = [](const char* family, const char* key) {
    const test::Scratch scratch;
    json config = config_of(family);
    config[key] = nullptr;
    return read_config(scratch.write("config.json", config.dump()));
  };
  EXPECT_EQ(without("nanochat", "final_logit_softcapping").logit_soft_cap, 15);
  EXPECT_EQ(with_null("nanochat", "final_logit_softcapping").logit_soft_cap, 0);
  EXPECT_EQ(windows(without("mistral", "sliding_window"))[0], 4095);
  EXPECT_EQ(windows(with_null("mistral", "sliding_window"))[0], -1);
  EXPECT_EQ(windows(without("qwen2-window", "sliding_window")), (Windows{-1, 4095, 4095}));
  EXPECT_PRED_FORMAT2(IsSubstring, "no \"sliding_window\" is in use", error_of([&] { with_null("qwen2-window", "sliding_window"); }));
  const ModelConfig many = changed("qwen2-window", R"({"num_hidden_layers": 30, "layer_types": null, "max_window_layers": null})");
  EXPECT_EQ(windows(many)[27], -1);
  EXPECT_EQ(windows(many)[28], 6);
  EXPECT_EQ(with_null("mistral", "num_key_value_heads").kv_heads, 4);
  EXPECT_EQ(without("llama31", "num_key_value_heads").kv_heads, 4);
  EXPECT_EQ(without("smollm3", "num_key_value_heads").kv_heads, 4);
  EXPECT_PRED_FORMAT2(IsSubstring, "8 key heads", error_of([&] { without("mistral", "num_key_value_heads"); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "32 key heads", error_of([&] { without("qwen2", "num_key_value_heads"); }));
  EXPECT_TRUE(without("smollm3", "tie_word_embeddings").tied_embeddings);
  EXPECT_TRUE(without("gpt2", "tie_word_embeddings").tied_embeddings);
  EXPECT_FALSE(without("qwen3", "tie_word_embeddings").tied_embeddings);
  EXPECT_EQ(without("llama31", "rms_norm_eps").norm_eps, 1e-6);
  EXPECT_EQ(without("smollm3", "rope_theta").rope_theta, 2e6);
  EXPECT_EQ(without("llama31", "rope_theta").rope_theta, 1e4);
  EXPECT_PRED_FORMAT2(IsSubstring, "\"rms_norm_eps\"", error_of([&] { changed("llama31", R"({"rms_norm_eps": 1e-60})"); }));
}

TEST(TransformersConfig, dtypes) {
  EXPECT_EQ(changed("llama31", R"({"torch_dtype": "bfloat16"})").dtype, DType::bf16);
  EXPECT_EQ(changed("llama31", R"({"torch_dtype": "float16"})").dtype, DType::f32);
  EXPECT_EQ(changed("llama31", R"({"torch_dtype": null})").dtype, DType::f32);
}

TEST(TransformersConfig, stop_and_pad_ids) {
  using Ids = std::vector<std::int32_t>;
  EXPECT_EQ(changed("llama31", "{}").stop_ids, (Ids{2, 3, 4}));
  EXPECT_EQ(changed("llama31", R"({"eos_token_id": 7, "pad_token_id": 9})").stop_ids, Ids{7});
  EXPECT_EQ(changed("llama31", R"({"eos_token_id": 7, "pad_token_id": 9})").pad_id, 9);
  EXPECT_EQ(changed("llama31", R"({"eos_token_id": 7, "pad_token_id": 7})").pad_id, -1) << "it also ends texts";
  EXPECT_EQ(changed("llama31", R"({"bos_token_id": 9, "pad_token_id": 9})").pad_id, -1) << "it also begins texts";
  const ModelConfig c = changed("llama31", R"({"eos_token_id": 7, "pad_token_id": 9})", R"({"eos_token_id": [5, 6, 96], "pad_token_id": 8, "temperature": 0.6})");
  EXPECT_EQ(c.stop_ids, (Ids{5, 6})) << "generation_config.json's, within the vocabulary";
  EXPECT_EQ(c.pad_id, 8);
}

}  // namespace
}  // namespace kvmesh
