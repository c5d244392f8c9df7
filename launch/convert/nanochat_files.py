"""nanochat's checkpoints (model_<step>.pt and meta_<step>.json) to a Hugging Face folder of transformers' NanoChat. Standard library only.

The architecture is that of nanochat's first release. What came later (value embeddings, residual lambdas, smear, windows) is refused by name, and nothing
that changed the computation was released without one of these names: RoPE's base and the soft cap changed when the lambdas were there already.
"""

import os
import re
from pathlib import Path

from arrays import converted
from byte_level import tokenizer_json
from folder import Refused, brief, check, is_size, new_folder, newest, read_json, write_json, write_safetensors
from pickles import TorchFile, read_encoding

SIZES = ["sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"]
PADDED_TO = 64  # the vocabulary, since December 2025; logits are cut to vocab_size
FLOAT32_EPS = 2.0**-23  # what rms_norm takes where none is given, for bfloat16 input as well
CHAT = ("{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}"
        "{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}{{- bos_token -}}"
        "{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- '<|user_start|>' + (first if loop.first else '') + message['content'] + '<|user_end|>' -}}"
        "{%- elif message['role'] == 'assistant' -%}{{- '<|assistant_start|>' + message['content'] + '<|assistant_end|>' -}}"
        "{%- else -%}{{- raise_exception('a message is by user or assistant, and the first may be by system') -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}")


def find_files(source, step):
    """model_<step>.pt, meta_<step>.json and the step."""
    check(source.is_dir(), f"{source}: no such folder")
    models = {int(m[1]): f for f in source.iterdir() if (m := re.fullmatch(r"model_(\d{1,12})\.pt", f.name))}
    if not models:
        raise Refused(f"{source}: no model_<step>.pt in this folder; give the folder of one model, base_checkpoints/d20 say")
    step, model = newest(models, step, source)
    return model, model.with_name("meta" + model.name.removeprefix("model").removesuffix(".pt") + ".json"), step


def find_tokenizer(source, given):
    """tokenizer.pkl: the file that was given, one beside the model, or where nanochat has it; None if there is none."""
    if given:
        return Path(given)
    return next((f for f in (source / "tokenizer.pkl", source / "tokenizer" / "tokenizer.pkl", source.parent.parent / "tokenizer" / "tokenizer.pkl") if f.is_file()), None)


def model_config(meta, source):
    config = meta.get("model_config")
    check(isinstance(config, dict), f"{source}: has no \"model_config\"")
    for key in SIZES:
        check(is_size(config.get(key)) and 0 < config[key] < 1 << 24, f"{source}: model_config: \"{key}\" is no size")
    for key, value in config.items():
        known = key in SIZES or (key == "window_pattern" and isinstance(value, str) and set(value.upper()) == {"L"})
        check(known, f"{source}: model_config: \"{brief(key)}\" {brief(value)} is not understood; only the architecture of nanochat's first release is")
    d, heads, groups = config["n_embd"], config["n_head"], config["n_kv_head"]
    check(d % (2 * heads) == 0 and heads % groups == 0 and config["n_layer"] <= 1 << 12, f"{source}: model_config: {heads} heads and {groups} key heads do not fit a width of {d}")
    return config


def names_of(config):
    """nanochat's name → transformers' name, shape."""
    d, vocab, kv = config["n_embd"], config["vocab_size"], config["n_embd"] // config["n_head"] * config["n_kv_head"]
    names = {"transformer.wte.weight": ("model.embed_tokens.weight", (vocab, d)), "lm_head.weight": ("lm_head.weight", (vocab, d))}
    for i in range(config["n_layer"]):
        ours, theirs = f"transformer.h.{i}.", f"model.layers.{i}."
        for part, name, shape in (("attn.c_q", "self_attn.q_proj", (d, d)), ("attn.c_k", "self_attn.k_proj", (kv, d)), ("attn.c_v", "self_attn.v_proj", (kv, d)),
                                  ("attn.c_proj", "self_attn.o_proj", (d, d)), ("mlp.c_fc", "mlp.fc1", (4 * d, d)), ("mlp.c_proj", "mlp.fc2", (d, 4 * d))):
            names[f"{ours}{part}.weight"] = (f"{theirs}{name}.weight", shape)
    return names


def check_tensors(tensors, names, source):
    for name in tensors:
        check(name in names, f"{source}: the tensor {brief(name)} is not understood; only the architecture of nanochat's first release is")
    for name, (_, shape) in names.items():
        check(name in tensors, f"{source}: the tensor {name} is missing")
        found, wanted = tensors[name].shape, [shape]
        if name in ("transformer.wte.weight", "lm_head.weight"):
            wanted.append((-(-shape[0] // PADDED_TO) * PADDED_TO, shape[1]))
        check(found in wanted, f"{source}: the tensor {name} is {list(found)} instead of {list(shape)}")


def write_tokenizer(out, file, config):
    """tokenizer.json and its config; gives what the model's config says of special tokens."""
    pattern, ranks, special = read_encoding(file)
    size = len(ranks) + len(special)
    check(size == config["vocab_size"] and max(special.values(), default=0) < size, f"{file}: {size} tokens, but the model's vocabulary has {config['vocab_size']}")
    check("<|bos|>" in special, f"{file}: has no <|bos|>")
    write_json(out / "tokenizer.json", tokenizer_json(pattern, ranks, special))
    ends = [t for t in ("<|assistant_end|>", "<|bos|>") if t in special]  # at which nanochat's engine stops
    write_json(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": ends[0], "pad_token": ends[0], "clean_up_tokenization_spaces": False,
                                               "model_max_length": config["sequence_len"]} | ({"chat_template": CHAT} if "<|assistant_end|>" in special else {}))
    ids = {"bos_token_id": special["<|bos|>"], "eos_token_id": [special[t] for t in ends], "pad_token_id": special[ends[0]]}
    write_json(out / "generation_config.json", ids)
    return ids


def import_nanochat(args):
    check(args.pickle, "nanochat's files are pickles, and a pickle can hold a program: --pickle reads them all the same, and allows tensors and plain containers only")
    source = Path(os.path.abspath(args.source))
    model_file, meta_file, step = find_files(source, args.step)
    config = model_config(read_json(meta_file), meta_file)
    model = TorchFile(model_file)
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in model.tensors.items()}  # of a compiled model
    names = names_of(config)
    check_tensors(tensors, names, model_file)
    kept = {name: tensors[name].dtype if args.dtype == "keep" else {"float32": "F32", "bfloat16": "BF16"}[args.dtype] for name in names}
    back = {theirs: ours for ours, (theirs, _) in names.items()}

    def bytes_of(theirs):
        name = back[theirs]
        shape = names[name][1]
        return converted(model.bytes_of(tensors[name], rows=shape[0]), tensors[name].dtype, kept[name], name)

    tokenizer = find_tokenizer(source, args.tokenizer)
    with new_folder(args.output) as out:
        ids = write_tokenizer(out, tokenizer, config) if tokenizer else {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        write_json(out / "config.json", {
            "architectures": ["NanoChatForCausalLM"], "model_type": "nanochat", "vocab_size": config["vocab_size"], "hidden_size": config["n_embd"],
            "intermediate_size": 4 * config["n_embd"], "num_hidden_layers": config["n_layer"], "num_attention_heads": config["n_head"], "num_key_value_heads": config["n_kv_head"],
            "max_position_embeddings": config["sequence_len"], "hidden_act": "relu2", "rms_norm_eps": FLOAT32_EPS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "final_logit_softcapping": 15.0, "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "use_cache": True,
            "dtype": "bfloat16" if set(kept.values()) == {"BF16"} else "float32"} | ids)
        write_safetensors(out / "model.safetensors", [(theirs, kept[ours], shape) for ours, (theirs, shape) in names.items()], bytes_of)
    return f"{args.output}: {len(names)} tensors of {model_file}, step {step}" + ("" if tokenizer else "; no tokenizer.pkl was found, so texts cannot be encoded")
