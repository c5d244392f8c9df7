"""Makes tests/fixtures/nanochat: tiny models and a tokenizer that nanochat's own code (karpathy/nanochat) builds and saves.

    python tests/reference/nanochat_fixture.py CHECKOUT       # a git checkout with its history; kvmesh is not needed, launch/convert is

base_checkpoints/first    of the first release (3a5e0bc, October 2025), two steps: bfloat16 embedding, float32 otherwise
base_checkpoints/padded   of January 2026 (48abd7d), compiled names and a vocabulary that is padded to a multiple of 64
base_checkpoints/newer    of July 2026 (92d63d4): value embeddings and more, which are refused
tokenizer/tokenizer.pkl   a pickled tiktoken Encoding, trained on docs/
expected.json             logits and greedy tokens of transformers' NanoChat on what launch/convert makes of them, and SHA-256 of every tensor's bytes; texts and a
                          conversation with the ids that nanochat's tokenizer gives them
nanochat's own model must give the same logits (float32 throughout: its angles are rounded to bfloat16, which is taken out of its source), transformers' tokenizer and
chat template the same ids; the differences are printed.
Needs: pip install torch transformers tokenizers tiktoken rustbpe filelock ml_dtypes
"""

import dataclasses
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "fixtures" / "nanochat"
COMMITS = {"first": "3a5e0bc", "padded": "48abd7d", "newer": "92d63d4"}
SHAPE = dict(sequence_len=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=16)
LENGTHS, NEW_TOKENS = [7, 1, 30], 12
TEXTS = ["Hello, world! It's 2026, and 12345 tokens weren't enough.", "  two\n\nlines\t\r\n end ", "naïve Straße 東京 🙂 e\u0301 I'LL we'Ve", "", "x" * 40, "<|bos|> is text here"]
CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?\n"}]


def nanochat_at(checkout, commit):
    """The package as of a commit: its modules gpt, tokenizer and checkpoint_manager."""
    folder = Path(tempfile.mkdtemp())
    archive = subprocess.run(["git", "-C", checkout, "archive", commit, "nanochat"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    source = folder / "nanochat" / "gpt.py"
    text = source.read_text().replace("cos, sin = cos.bfloat16(), sin.bfloat16()", "").replace("assert self.cos.dtype == torch.bfloat16", "assert True")
    source.write_text(text.replace("self.transformer.wte.to(dtype=torch.bfloat16)", "pass"))
    for name in [n for n in sys.modules if n.split(".")[0] == "nanochat"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    modules = [importlib.import_module(f"nanochat.{m}") for m in ("gpt", "tokenizer", "checkpoint_manager")]
    sys.path.remove(str(folder))
    return modules


def build(gpt, seed, **shape):
    config = gpt.GPTConfig(**shape)
    model = gpt.GPT(config)
    model.init_weights()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (1.0 if "wte" in name else 0.35)
    model.transformer.wte.weight.data = model.transformer.wte.weight.data.bfloat16().float()
    return config, model.eval()


def saved(state):
    """As nanochat stores it: the embedding in bfloat16."""
    return {k: v.bfloat16() if "wte" in k else v for k, v in state.items()}


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def imported(name):
    folder = Path(tempfile.mkdtemp()) / name
    subprocess.run([sys.executable, "-B", ROOT / "launch" / "convert" / "convert.py", "import", "--from", "nanochat", OUT / "base_checkpoints" / name, "--pickle", "--output", folder], check=True)
    return folder


def expected(name, model):
    folder = imported(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    rows, largest = [], 0.0
    for length in LENGTHS:
        prompt = torch.randint(0, model.config.vocab_size, (1, length), generator=generator)
        with torch.no_grad():
            logits, own = theirs(prompt).logits[0], model(prompt)[0, :, : model.config.vocab_size].float()
            out = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=[], return_dict_in_generate=True, output_logits=True)
        largest = max(largest, (logits - own).abs().max().item())
        gaps = [float(f"{(a - b).item():.3g}") for a, b in (step[0].topk(2).values for step in out.logits)]
        rows.append({"tokens": prompt[0].tolist(), "last": [float(f"{x:.6g}") for x in logits[-1].tolist()], "greedy": out.sequences[0, length:].tolist(), "gaps": gaps})
    print(f"{name}: nanochat's own logits differ by {largest:.2g} at most, smallest gap {min(g for r in rows for g in r['gaps']):.2g}")
    assert largest < 2e-5
    tensors = {k: [list(v.shape), digest(v)] for k, v in theirs_as_stored(folder).items()}
    return {"rows": rows, "tensors": tensors}


def theirs_as_stored(folder):
    """What must be in the imported file: the state dict under transformers' names, by the names that its class has."""
    from safetensors.torch import load_file
    return load_file(folder / "model.safetensors")


def check_tokenizer(name, tokenizer):
    """transformers' reading of tokenizer.json and of the template must agree with nanochat's own."""
    folder = imported(name)
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.encode(t) for t in TEXTS]
    assert [fast.encode(t, add_special_tokens=False, split_special_tokens=True) for t in TEXTS] == ids
    own = tokenizer.render_conversation({"messages": CONVERSATION + [{"role": "assistant", "content": "Yes"}]})[0]
    assert fast.apply_chat_template(CONVERSATION + [{"role": "assistant", "content": "Yes"}], tokenize=True, return_dict=False) == own
    prompt = tokenizer.render_for_completion({"messages": CONVERSATION + [{"role": "assistant", "content": "Yes"}]})
    assert fast.apply_chat_template(CONVERSATION, add_generation_prompt=True, tokenize=True, return_dict=False) == prompt
    return {"texts": TEXTS, "ids": ids, "conversation": CONVERSATION, "prompt_ids": prompt}


def main(checkout):
    shutil.rmtree(OUT, ignore_errors=True)
    gpt, tokenizers, checkpoints = nanochat_at(checkout, COMMITS["first"])
    docs = [f.read_text() for f in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = tokenizers.RustBPETokenizer.train_from_iterator(iter(docs), 300)
    tokenizer.save(str(OUT / "tokenizer"))
    found, stored = {}, {}
    for seed, (name, commit) in enumerate(COMMITS.items()):
        gpt, _, checkpoints = nanochat_at(checkout, commit)
        shape = SHAPE | {"vocab_size": tokenizer.get_vocab_size()} if name != "newer" else dict(sequence_len=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=24, vocab_size=64, window_pattern="L")
        config, model = build(gpt, seed, **shape)
        prefix = "_orig_mod." if name == "padded" else ""
        state = {prefix + k: v for k, v in saved(model.state_dict()).items()}
        for step in (100, 200) if name == "first" else (200,):
            weights = {k: v / 2 for k, v in state.items()} if step == 100 else state
            checkpoints.save_checkpoint(str(OUT / "base_checkpoints" / name), step, weights, None, {"step": step, "val_bpb": 1.5, "model_config": dataclasses.asdict(config), "user_config": {}})
        if name != "newer":
            found[name] = expected(name, model)
            # by shape and bytes, whatever the names: the same tensors, but for the padding
            cut = sorted(digest(v[: config.vocab_size] if "wte" in k or "lm_head" in k else v) for k, v in state.items())
            assert cut == sorted(t[1] for t in found[name]["tensors"].values())
    found["tokenizer"] = check_tokenizer("first", tokenizer)
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    text = json.dumps({"made_by": "tests/reference/nanochat_fixture.py", "nanochat": COMMITS, "versions": versions} | found)
    (OUT / "expected.json").write_text(text.replace('{"tokens"', '\n{"tokens"').replace('"model.layers', '\n"model.layers') + "\n")
    print(f"{sum(f.stat().st_size for f in OUT.rglob('*') if f.is_file()) / 1024:.0f} KB")


main(sys.argv[1])
