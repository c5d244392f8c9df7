"""Makes tests/fixtures/families: tiny random models of the families that kvmesh reads from Hugging Face folders, and what transformers computes with them.

    python tests/reference/families.py [NAME …]        # all of them, or these

A folder holds config.json, model.safetensors (or shards), generation_config.json and expected.json: ragged prompts, the float32 logits of the saved weights
(eager attention, a row at a time, no padding) and what generate() continues greedily, with the distance of the two best logits at every step. transformers reads
back the very folder that is committed, so it is transformers that says what a config in the Hub's older form means.
Needs: pip install torch transformers safetensors
"""

import json
import shutil
import sys
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

OUT = Path(__file__).parent.parent / "fixtures" / "families"
VOCAB = 96
LENGTHS = [9, 1, 40, 24, 2, 17]
WHOLE = 5  # the prompt whose logits are kept at every position
NEW_TOKENS = 12

LLAMA = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
GPT2 = dict(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=95, eos_token_id=95)
GPT2_ON_HUB = dict(n_ctx=64, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}})


def llama3_scaling(theta):
    return dict(rope_type="llama3", rope_theta=theta, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)


# name: config class, its settings; then: dtype of the file, keys to add where config.json is to look as on the Hub (older than rope_parameters), the rest
FAMILIES = {
    "gpt2": (transformers.GPT2Config, GPT2, dict(hub=GPT2_ON_HUB, bare_names=True)),
    "gpt2-gelu": (transformers.GPT2Config, GPT2 | dict(n_inner=72, n_layer=3, activation_function="gelu", layer_norm_epsilon=1e-3), dict(dtype=torch.bfloat16)),
    "llama2": (transformers.LlamaConfig, LLAMA | dict(rms_norm_eps=1e-5), dict(dtype=torch.float16, hub=dict(_name_or_path="somewhere/llama", pretraining_tp=1))),
    "llama31": (transformers.LlamaConfig, LLAMA | dict(num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=llama3_scaling(500000.0), eos_token_id=[2, 3, 4]), dict(dtype=torch.bfloat16, hub={})),
    "llama-linear": (transformers.LlamaConfig, LLAMA | dict(num_key_value_heads=1, head_dim=12, attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
                     dict(dtype=torch.bfloat16)),
    "smollm": (transformers.LlamaConfig, LLAMA | dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=3, tie_word_embeddings=True, rms_norm_eps=1e-5,
                                                      rope_parameters=dict(rope_type="default", rope_theta=100000.0)),
               dict(dtype=torch.bfloat16, hub=dict(is_llama_config=True, rope_interleaved=False))),
    "smollm3": (transformers.SmolLM3Config, LLAMA | dict(num_key_value_heads=1, num_hidden_layers=4, no_rope_layers=[1, 1, 0, 1], pad_token_id=4, rope_parameters=dict(rope_type="default", rope_theta=5e6)),
                dict(dtype=torch.bfloat16, hub=dict(max_window_layers=28, pretraining_tp=2))),
    "mistral": (transformers.MistralConfig, LLAMA | dict(num_key_value_heads=2, sliding_window=8), dict(dtype=torch.bfloat16, hub={})),
    "qwen2": (transformers.Qwen2Config, LLAMA | dict(num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)), dict(dtype=torch.bfloat16, shard="20KB", hub=dict(sliding_window=64))),
    "qwen2-window": (transformers.Qwen2Config, LLAMA | dict(num_key_value_heads=4, num_hidden_layers=3, use_sliding_window=True, sliding_window=7, max_window_layers=1), dict(dtype=torch.bfloat16)),
    "qwen3": (transformers.Qwen3Config, LLAMA | dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)), dict(dtype=torch.bfloat16)),
    "nanochat": (transformers.NanoChatConfig, LLAMA | dict(num_key_value_heads=2, intermediate_size=128, num_hidden_layers=3), dict(dtype=torch.bfloat16)),
    "qwen3-yarn": (transformers.Qwen3Config, LLAMA | dict(num_key_value_heads=2, head_dim=16, rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)),
                   dict(dtype=torch.bfloat16, hub={})),
    "llama-yarn": (transformers.LlamaConfig, LLAMA | dict(rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=8, beta_fast=1.0, beta_slow=0.1,
                                                                               mscale=1.5, mscale_all_dim=0.7, truncate=False)), dict(dtype=torch.bfloat16)),
}


def randomize(model, generator):
    """Weights with which every part of the model shows in the logits: no norm weight is one, no bias zero, and attention has favourites."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or ".ln_" in name:
            parameter.data = noise * 0.3 + (0.0 if name.endswith("bias") else 1.0)
        elif name.endswith("bias"):
            parameter.data = noise * 0.3
        elif "embed_tokens" in name or "wte" in name or "wpe" in name or "lm_head" in name:
            parameter.data = noise * 0.4
        else:
            parameter.data = noise * 1.3 / model.config.hidden_size**0.5
    model.tie_weights()


def as_on_hub(folder, extra):
    """config.json as most of the Hub has it: rope_theta and rope_scaling instead of rope_parameters, torch_dtype instead of dtype."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] in ("qwen2", "mistral"):  # their files are older than this key
        config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(dict(sorted((config | extra).items())), indent=2) + "\n")


def as_gpt2_on_hub(folder, positions):
    """The names of the Hub's gpt2: without "transformer.", and with the causal mask of each layer among the weights."""
    file = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    for name in [n for n in tensors if n.endswith("attn.c_attn.weight")]:
        tensors[name.replace("c_attn.weight", "bias")] = torch.tril(torch.ones(1, 1, positions, positions, dtype=torch.uint8))
    save_file(tensors, file, metadata={"format": "pt"})


def rounded(logits):
    return [float(f"{x:.6g}") for x in logits.tolist()]


def expected(folder):
    """What transformers computes with the folder's weights in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(7)
    rows = []
    for index, length in enumerate(LENGTHS):
        prompt = torch.randint(0, VOCAB, (1, length), generator=generator)
        if model.config.pad_token_id not in (None, model.config.eos_token_id):  # what only pads is no part of a text
            prompt[prompt == model.config.pad_token_id] = 0
        with torch.no_grad():
            logits = model(prompt).logits[0]
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=[], pad_token_id=0,
                                 return_dict_in_generate=True, output_logits=True)
        best = [step[0].topk(2).values for step in out.logits]
        tokens = out.sequences[0, length:].tolist()
        assert len(tokens) == NEW_TOKENS and torch.allclose(out.logits[0][0], logits[-1], atol=1e-4)
        rows.append({"tokens": prompt[0].tolist(), "last": rounded(logits[-1]), "greedy": tokens, "gaps": [float(f"{(a - b).item():.3g}") for a, b in best]})
        if index == WHOLE:
            rows[-1]["logits"] = [rounded(x) for x in logits]
    versions = {m.__name__: m.__version__ for m in (torch, transformers, safetensors)}
    return {"made_by": "tests/reference/families.py", "versions": versions, "rows": rows}


def make(name):
    config_class, settings, how = FAMILIES[name]
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**settings), dtype=torch.float32)
    randomize(model, torch.Generator().manual_seed(1 + list(FAMILIES).index(name)))
    model.to(how.get("dtype", torch.float32)).save_pretrained(folder, max_shard_size=how.get("shard", "5GB"))
    if "hub" in how:
        as_on_hub(folder, how["hub"])
    if how.get("bare_names"):
        as_gpt2_on_hub(folder, settings["n_positions"])
    found = expected(folder)
    lines = json.dumps(found).replace('"rows": [', '"rows": [\n').replace('}, {"tokens"', '},\n{"tokens"')
    (folder / "expected.json").write_text(lines + "\n")
    spread = torch.tensor(found["rows"][WHOLE]["logits"]).std().item()
    print(f"{name}: logits' spread {spread:.2f}, smallest gap {min(g for r in found['rows'] for g in r['gaps']):.2g}, {sum(f.stat().st_size for f in folder.iterdir()) // 1024} KB")


for chosen in sys.argv[1:] or FAMILIES:
    make(chosen)
