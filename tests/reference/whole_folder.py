"""A whole folder as transformers writes it (weights, tokenizer, chat template), and what transformers makes of texts and conversations with it.

    python tests/reference/whole_folder.py

Writes tests/fixtures/whole_folder: a tiny random Llama with a tokenizer of Llama 3's kind, and expected.json."""

import json
import shutil
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

OUT = Path(__file__).resolve().parents[1] / "fixtures/whole_folder"
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>", "<|end_turn|>"]
TEXT = ["The mesh holds the batch and every rank owns a part of it.", "We've 1234 rows, don't we? Yes: 12, 345 and 6789.", "Übergrößenträger naïve café — 数学 и слова"] * 4
TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|turn|>' + message['role'] + '\\n' + message['content'] | trim + '<|end_turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\\n' }}
{%- endif %}
"""
PROMPTS = ["The mesh holds", "We've 1234 rows", "café 数学!", "a", "<|turn|>user\nis special", "  two  spaces\n\nand lines\n"]
CONVERSATIONS = [[{"role": "user", "content": "How many rows?"}],
                 [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " Hello there"}, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "数学?"}]]
NEW_TOKENS = 16


def tokenizer():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320 - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False))
    t.add_special_tokens(SPECIAL)
    t.post_processor = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", t.token_to_id("<|begin|>"))])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    fast = tokenizer()
    end = [fast.convert_tokens_to_ids(t) for t in ("<|end|>", "<|end_turn|>")]
    config = transformers.LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      max_position_embeddings=256, bos_token_id=fast.bos_token_id, eos_token_id=end)
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape) * (0.5 if p.dim() < 2 or "embed" in name or "head" in name else 1.3 / 32**0.5) + (1.0 if "norm" in name else 0.0)
    model.to(torch.bfloat16).save_pretrained(OUT)
    fast.save_pretrained(OUT)
    model = transformers.AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager").eval()
    fast = transformers.AutoTokenizer.from_pretrained(OUT)

    def answer(ids):
        ids = torch.tensor([ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, return_dict_in_generate=True, output_logits=True)
        new = out.sequences[0, ids.shape[1] :].tolist()
        gap = min(float(-step[0].topk(2).values.diff()) for step in out.logits)
        stopped = new[-1] in end
        return {"tokens": new, "text": fast.decode(new[:-1] if stopped else new, clean_up_tokenization_spaces=False), "stopped": stopped, "gap": gap}

    texts = [{"prompt": p, "ids": fast(p)["input_ids"]} for p in PROMPTS]
    chats = [{"messages": m, "ids": fast.apply_chat_template(m, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]} for m in CONVERSATIONS]
    for row in texts + chats:
        row |= answer(row["ids"])
    versions = {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)}
    (OUT / "expected.json").write_text(json.dumps({"made_by": "tests/reference/whole_folder.py", "versions": versions, "texts": texts, "chats": chats}, indent=1, ensure_ascii=False) + "\n")
    print(sorted((f.name, f.stat().st_size) for f in OUT.iterdir()), min(r["gap"] for r in texts + chats), [r["stopped"] for r in texts + chats])


main()
