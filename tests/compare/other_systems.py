"""One system for others.py, which starts this: python other_systems.py SYSTEM WORK THREADS CHECKOUT. A question a line on standard input, JSON: dtype, batch,
prompt (of every row), new_tokens; and an answer a line: seconds of prefill and of a decode step, or with "tokens" the greedy tokens of one row."""

import json
import os
import sys
import time
from pathlib import Path

import others

SHAPE = others.SHAPE
D, LAYERS, H, K, V = (SHAPE[k] for k in ("d_emb", "num_layers", "q_heads", "kv_heads", "vocab_size"))
HEAD = D // H


def tensors():
    """The checkpoint's tensors, float32 that bfloat16 can hold, so that both dtypes have the same weights."""
    import numpy as np
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (V, D), "lm_head.weight": (D, V)}
    for i in range(LAYERS):
        shapes |= {f"blocks.{i}.attn.wq": (D, H, HEAD), f"blocks.{i}.attn.wk": (D, K, HEAD), f"blocks.{i}.attn.wv": (D, K, HEAD), f"blocks.{i}.attn.wo": (H, HEAD, D),
                   f"blocks.{i}.mlp.fc1.weight": (D, 4 * D), f"blocks.{i}.mlp.fc2.weight": (4 * D, D)}
    for name, shape in shapes.items():
        fan_in = 1 if name == "embed.weight" else 4 * D if name.endswith("fc2.weight") else D
        values = (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32((12 / fan_in) ** 0.5)
        yield name, (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def write_weights(work):
    import numpy as np
    all_tensors = dict(tensors())
    for dtype, name, size in (("float32", "F32", 4), ("bfloat16", "BF16", 2)):
        (work / dtype).mkdir()
        (work / dtype / "config.json").write_text(json.dumps(SHAPE | {"dtype": dtype}))
        header, offset = {}, 0
        for key, values in all_tensors.items():
            header[key] = {"dtype": name, "shape": values.shape, "data_offsets": [offset, offset + values.size * size]}
            offset += values.size * size
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        with open(work / dtype / "model.safetensors", "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for values in all_tensors.values():
                f.write(values.tobytes() if size == 4 else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


class Original:
    """The JAX program, its prefill, decode and generate jitted as they are; the cache is as long as the context, and prefill computes all logits."""

    def __init__(self, work, threads, checkout):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # JAX has no other way to say it
        sys.path.insert(0, str(others.ROOT / "tests/reference"))
        import jax
        import original
        self.jax, self.module, self.original, self.runs = jax, original, original.Original(checkout), {}
        self.weights = dict(tensors())

    def run(self, dtype):
        if dtype not in self.runs:
            self.runs[dtype] = self.module.Run(self.original, SHAPE, self.weights, getattr(self.jax.numpy, dtype), V - 1)
        return self.runs[dtype]

    def tokens(self, dtype, prompt, new_tokens):
        return self.run(dtype).generate([prompt], new_tokens)[0].tolist()

    def time(self, dtype, batch, prompt, new_tokens):
        run, jnp = self.run(dtype), self.jax.numpy
        ids, segment_ids = self.original.pad([prompt] * batch, V - 1)
        cache = self.original.kvcache.KVCache.init(self.jax.random.PRNGKey(1), run.config.mesh, run.config.rules, batch, run.config)
        self.jax.block_until_ready((ids, cache))
        begin = time.perf_counter()
        _, next_tokens, cache = self.original.inference.prefill(run.params, ids, segment_ids, cache, run.head_dim, pad_id=V - 1)
        self.jax.block_until_ready((next_tokens, cache))
        middle = time.perf_counter()
        out = jnp.zeros((batch, new_tokens), jnp.int32).at[:, 0].set(next_tokens)
        self.jax.block_until_ready(self.original.inference.generate(run.params, cache, next_tokens[:, None], out, run.head_dim, self.jax.random.PRNGKey(0), temperature=0.0, top_k=0,
                                                                    max_new_tokens=new_tokens))
        return middle - begin, (time.perf_counter() - middle) / (new_tokens - 1)


class Torch:
    """The same model in PyTorch, eager, with a static cache that is just long enough; the bfloat16 is rounded after every operation."""

    def __init__(self, work, threads, checkout):
        import torch
        self.torch, self.weights = torch, {}
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def load(self, dtype):
        torch = self.torch
        if dtype not in self.weights:
            w = {k: torch.from_numpy(v.copy()).to(getattr(torch, dtype)) for k, v in tensors()}
            layers = []
            for i in range(LAYERS):
                b = f"blocks.{i}."
                qkv = torch.cat([w[b + "attn." + n].reshape(D, -1) for n in ("wq", "wk", "wv")], 1)
                layers.append([m.T.contiguous() for m in (qkv, w[b + "attn.wo"].reshape(D, D), w[b + "mlp.fc1.weight"], w[b + "mlp.fc2.weight"])])
            self.weights = {dtype: (w["embed.weight"], layers, w["lm_head.weight"].T.contiguous())}
        return self.weights[dtype]

    def attend(self, q, k, v, keys, values, at):
        """`at`: the first token's position."""
        length = q.shape[2]
        keys[:, :, at:at + length] = k
        values[:, :, at:at + length] = v
        return self.torch.nn.functional.scaled_dot_product_attention(q, keys[:, :, :at + length], values[:, :, :at + length], is_causal=length > 1, enable_gqa=True)

    def forward(self, weights, ids, at, cache, rope):
        """`rope`: cosines and sines of the ids' positions."""
        F = self.torch.nn.functional
        embed, layers, head = weights
        batch, length = ids.shape

        def norm(x):
            return F.rms_norm(x.float(), (x.shape[-1],), eps=1e-5).to(x.dtype)

        def turn(x):
            a, b = norm(x).float().chunk(2, -1)
            cos, sin = (r[:, None] for r in rope)
            return self.torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

        x = embed[ids]
        for (qkv, wo, fc1, fc2), (keys, values) in zip(layers, cache):
            q, k, v = F.linear(norm(x), qkv).split([H * HEAD, K * HEAD, K * HEAD], -1)
            q, k = turn(q.view(batch, length, H, HEAD)), turn(k.view(batch, length, K, HEAD))
            attended = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.view(batch, length, K, HEAD).transpose(1, 2), keys, values, at)
            x = x + F.linear(attended.transpose(1, 2).reshape(batch, length, D), wo)
            x = x + F.linear(F.relu(F.linear(norm(x), fc1)).square(), fc2)
        return (15 * self.torch.tanh(F.linear(norm(x[:, -1]), head).float() / 15)).argmax(-1)

    prefill = decode = forward

    def place(self, at):
        return at

    def generate(self, dtype, batch, prompt, new_tokens):
        torch = self.torch
        weights = self.load(dtype)
        most = len(prompt) + new_tokens
        cache = [[torch.zeros(batch, K, most, HEAD, dtype=getattr(torch, dtype)) for _ in range(2)] for _ in range(LAYERS)]
        angles = torch.arange(most).double()[:, None] / 10000.0 ** (torch.arange(0, HEAD, 2).double() / HEAD)
        rope = (angles.cos().float(), angles.sin().float())
        ids = torch.tensor([prompt] * batch)
        begin = time.perf_counter()
        out = [self.prefill(weights, ids, 0, cache, [r[:len(prompt)] for r in rope])]
        middle = time.perf_counter()
        for at in range(len(prompt), most - 1):
            out.append(self.decode(weights, out[-1][:, None], self.place(at), cache, [r[at:at + 1] for r in rope]))
        return middle - begin, (time.perf_counter() - middle) / (new_tokens - 1), [int(o[0]) for o in out]

    def tokens(self, dtype, prompt, new_tokens):
        return self.generate(dtype, 1, prompt, new_tokens)[2]

    def time(self, dtype, batch, prompt, new_tokens):
        return self.generate(dtype, batch, prompt, new_tokens)[:2]


class Compiled(Torch):
    """The same, compiled by torch.compile: a step attends to the whole cache, masked, so that one program does for all of them."""

    def __init__(self, work, threads, checkout):
        super().__init__(work, threads, checkout)
        self.prefill, self.decode = (self.torch.compile(self.forward, dynamic=False) for _ in range(2))

    def place(self, at):
        return self.torch.tensor([at])

    def attend(self, q, k, v, keys, values, at):
        if not self.torch.is_tensor(at):
            return super().attend(q, k, v, keys, values, at)
        keys.index_copy_(2, at, k)
        values.index_copy_(2, at, v)
        seen = self.torch.arange(keys.shape[2])[None] <= at[:, None]
        return self.torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)


class Transformers:
    """transformers' generate with a Llama of as many parameters (SwiGLU 2048 wide, two norms with weights a layer, no soft cap), random weights."""

    def __init__(self, work, threads, checkout):
        import torch
        import transformers
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.transformers, self.models = torch, transformers, {}

    def time(self, dtype, batch, prompt, new_tokens):
        torch = self.torch
        if dtype not in self.models:
            config = self.transformers.LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=8 * D // 3, num_hidden_layers=LAYERS, num_attention_heads=H, num_key_value_heads=K,
                                                   max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
            self.models = {dtype: self.transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()}
        model, ids = self.models[dtype], torch.tensor([prompt] * batch)

        def seconds(n):
            begin = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n, min_new_tokens=n, pad_token_id=0)
            return time.perf_counter() - begin

        prefill = seconds(1)
        return prefill, (seconds(new_tokens) - prefill) / (new_tokens - 1)


class Llama:
    """llama.cpp, compiled for this CPU, with a Llama of as many parameters, as transformers has it; its cache is float16."""

    def __init__(self, work, threads, checkout):
        import llama_cpp
        self.lib, self.work, self.threads, self.loaded = llama_cpp, work, threads, None
        llama_cpp.llama_backend_init()
        print(llama_cpp.llama_print_system_info().decode(), file=sys.stderr)

    def file(self, dtype):
        import gguf
        import numpy as np
        path = self.work / f"llama-{dtype}.gguf"
        if path.exists():
            return path
        w = gguf.GGUFWriter(path, "llama")
        for add, value in ((w.add_context_length, 2048), (w.add_embedding_length, D), (w.add_block_count, LAYERS), (w.add_feed_forward_length, 8 * D // 3), (w.add_head_count, H),
                           (w.add_head_count_kv, K), (w.add_layer_norm_rms_eps, 1e-5), (w.add_rope_dimension_count, HEAD), (w.add_vocab_size, V), (w.add_tokenizer_model, "no_vocab")):
            add(value)
        rng = np.random.default_rng(0)

        def add(name, *shape):
            values = (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32((12 / shape[-1]) ** 0.5) if len(shape) > 1 else np.ones(shape, np.float32)
            if dtype == "bfloat16" and len(shape) > 1:
                halves = (values.view(np.uint32) >> 16).astype(np.uint16)
                w.add_tensor(name, halves.view(np.uint8), raw_shape=halves.view(np.uint8).shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                w.add_tensor(name, values)

        add("token_embd.weight", V, D), add("output.weight", V, D), add("output_norm.weight", D)
        for i in range(LAYERS):
            for name, *shape in (("attn_norm", D), ("attn_q", D, D), ("attn_k", K * HEAD, D), ("attn_v", K * HEAD, D), ("attn_output", D, D), ("ffn_norm", D),
                                 ("ffn_gate", 8 * D // 3, D), ("ffn_up", 8 * D // 3, D), ("ffn_down", D, 8 * D // 3)):
                add(f"blk.{i}.{name}.weight", *shape)
        w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
        return path

    def context(self, dtype, batch, tokens):
        lib = self.lib
        if self.loaded and self.loaded[0] == (dtype, batch, tokens):
            return self.loaded[1]
        if self.loaded:
            lib.llama_free(self.loaded[1])
            lib.llama_model_free(self.loaded[2])
        model = lib.llama_model_load_from_file(str(self.file(dtype)).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = batch * tokens, 4096, 512, batch
        params.n_threads = params.n_threads_batch = self.threads
        context = lib.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError("llama.cpp made no context")
        self.loaded = ((dtype, batch, tokens), context, model)
        return context

    def time(self, dtype, batch, prompt, new_tokens):
        import ctypes

        import numpy as np
        lib = self.lib
        context = self.context(dtype, batch, (len(prompt) + new_tokens + 31) // 32 * 32)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        tokens = lib.llama_batch_init(max(batch * len(prompt), batch), 0, 1)

        def decode(rows, at):
            """rows: of each sequence, its tokens from position `at` on; the next token of each."""
            n, last = 0, []
            for s, row in enumerate(rows):
                for i, token in enumerate(row):
                    tokens.token[n], tokens.pos[n], tokens.n_seq_id[n], tokens.logits[n] = token, at + i, 1, i == len(row) - 1
                    tokens.seq_id[n][0] = s
                    n += 1
                last.append(n - 1)
            tokens.n_tokens = n
            if lib.llama_decode(context, tokens) != 0:
                raise RuntimeError("llama_decode failed")
            return [int(np.argmax(np.ctypeslib.as_array(ctypes.cast(lib.llama_get_logits_ith(context, i), ctypes.POINTER(ctypes.c_float)), (V,)))) for i in last]

        begin = time.perf_counter()
        out = decode([prompt] * batch, 0)
        middle = time.perf_counter()
        for t in range(1, new_tokens):
            out = decode([[token] for token in out], len(prompt) + t - 1)
        end = time.perf_counter()
        lib.llama_batch_free(tokens)
        return middle - begin, (end - middle) / (new_tokens - 1)


def main():
    system, work, threads, checkout = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if system == "weights":
        write_weights(work)
        return
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    runner = {"original": Original, "torch": Torch, "torch.compile": Compiled, "transformers": Transformers, "llama.cpp": Llama}[system](work, threads, checkout)
    for line in sys.stdin:
        question = json.loads(line)
        if question.get("tokens"):
            answer = {"tokens": runner.tokens(question["dtype"], question["prompt"], question["new_tokens"])}
        else:
            answer = dict(zip(("prefill", "decode"), runner.time(question["dtype"], question["batch"], question["prompt"], question["new_tokens"])))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
