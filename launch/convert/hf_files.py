"""Checkpoints of ours to Hugging Face folders, where transformers has a class that computes the same.

Qwen3's has, for a model without a soft cap and with RoPE in every layer: norms with weights of one, and the gated MLP, down(act(gate·x) · up·x), with relu as its
act and fc1 twice, which is relu(z)·z = relu(z)². No class has the soft cap besides: NanoChat's norms the embeddings, which these models do not, and
Gemma's have norms behind each part.
"""

from pathlib import Path

from arrays import array_of, little_endian_bytes, need, numpy_dtypes
from folder import Refused, check, is_there, new_folder, write_json, write_safetensors
from native import layers_of, open_folder


def tensors_of(config, files):
    """Qwen3's name → (our name or None for ones, shape). Its linear layers are [out, in], ours are [in, out]."""
    d, heads, groups, vocab = (config[k] for k in ("d_emb", "q_heads", "kv_heads", "vocab_size"))
    h = d // heads
    out = {"model.embed_tokens.weight": ("embed.weight", (vocab, d))}
    for i in range(config["num_layers"]):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        out |= {theirs + "input_layernorm.weight": (None, (d,)), theirs + "self_attn.q_norm.weight": (None, (h,)), theirs + "self_attn.k_norm.weight": (None, (h,)),
                theirs + "self_attn.q_proj.weight": (ours + "attn.wq", (heads * h, d)), theirs + "self_attn.k_proj.weight": (ours + "attn.wk", (groups * h, d)),
                theirs + "self_attn.v_proj.weight": (ours + "attn.wv", (groups * h, d)), theirs + "self_attn.o_proj.weight": (ours + "attn.wo", (d, heads * h)),
                theirs + "post_attention_layernorm.weight": (None, (d,)), theirs + "mlp.gate_proj.weight": (ours + "mlp.fc1.weight", (4 * d, d)),
                theirs + "mlp.up_proj.weight": (ours + "mlp.fc1.weight", (4 * d, d)), theirs + "mlp.down_proj.weight": (ours + "mlp.fc2.weight", (d, 4 * d))}
    return out | {"model.norm.weight": (None, (d,)), "lm_head.weight": ("lm_head.weight", (vocab, d))}


def export_hf(args):
    np, = need("numpy")
    source = Path(args.source)
    check(not is_there(args.output), f"--output {args.output}: is there already")
    config, files = open_folder(source)
    if config["logit_soft_cap"]:
        raise Refused(f"{source}: no class of transformers computes this model: none has its soft cap of {config['logit_soft_cap']} without a norm of the embeddings (NanoChat) or norms behind each part (Gemma)")
    layers = layers_of(config)
    without = [i for i, (_, rope) in enumerate(layers) if not rope]
    if without:
        raise Refused(f"{source}: no class of transformers computes this model: layer {without[0]} has no RoPE, and those that allow it (SmolLM3) have no norms of queries and keys")
    tensors = tensors_of(config, files)
    norm_dtype = files.tensors["embed.weight"][0]

    def bytes_of(name):
        ours, shape = tensors[name]
        if ours is None:
            return little_endian_bytes(np.ones(shape, numpy_dtypes()[norm_dtype]))
        array = array_of(files, ours)
        if ours == "embed.weight":
            return little_endian_bytes(array)
        rows = shape[1]  # what goes in: all sizes but the last for wo, the first for the others
        return little_endian_bytes(array.reshape(rows, shape[0]).T)

    window = config["local_window_size"]
    kinds = ["full_attention" if w is None else "sliding_attention" for w, _ in layers]
    slides = "sliding_attention" in kinds
    with new_folder(args.output) as out:
        write_json(out / "config.json", {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": config["vocab_size"], "hidden_size": config["d_emb"], "intermediate_size": 4 * config["d_emb"],
            "num_hidden_layers": config["num_layers"], "num_attention_heads": config["q_heads"], "num_key_value_heads": config["kv_heads"], "head_dim": config["d_emb"] // config["q_heads"],
            "max_position_embeddings": config["seqlen"], "hidden_act": "relu", "rms_norm_eps": config["norm_eps"], "rope_parameters": {"rope_type": "default", "rope_theta": float(config["rope_theta"])},
            "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "use_cache": True, "layer_types": kinds, "use_sliding_window": slides,
            "sliding_window": window + 1 if slides else None,  # theirs counts the query itself
            "max_window_layers": 0 if slides else config["num_layers"], "bos_token_id": None, "eos_token_id": None, "dtype": config["dtype"]})
        write_safetensors(out / "model.safetensors", [(name, files.tensors[ours][0] if ours else norm_dtype, shape) for name, (ours, shape) in tensors.items()], bytes_of)
    return f"{args.output}: Qwen3ForCausalLM, {len(tensors)} tensors" + (", without the tokenizer" if (source / "tokenizer.tiktoken").exists() or (source / "tokenizer.json").exists() else "")
