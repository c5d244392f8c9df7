"""Writes tests/fixtures/chat/templates.json and conversations.json: what transformers and jinja2 make of templates.

    python tests/reference/chat.py tests/fixtures/chat

Needs: pip install transformers jinja2 tokenizers. Made with transformers 5.24.0 and jinja2 3.1.6. templates.json has small templates, one for each thing that a template
can say, with its variables (chat_units.py); conversations.json has the templates of chat_templates/ with conversations, applied by a tokenizer of transformers'. A text is what
comes out, null an error. The clock stands at 26 July 2026, 0:00.
"""

import datetime
import json
import pathlib
import sys

import tokenizers
from chat_conversations import CONVERSATIONS
from chat_units import DATA, TEMPLATES, UNSUPPORTED
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 7, 26)


def compiled(template):
    return chat_template_utils._compile_jinja_template(template)


def outcome(render):
    """The text, or None for an error of any kind."""
    try:
        text = render()
        text.encode("utf-8")
        return text
    except Exception:
        return None


def main(folder):
    chat_template_utils.datetime = Clock
    folder.mkdir(parents=True, exist_ok=True)
    units = [{"template": t, "text": outcome(lambda t=t: compiled(t).render(**DATA))} for t in TEMPLATES]
    (folder / "templates.json").write_text(json.dumps({"variables": DATA, "templates": units, "unsupported": UNSUPPORTED}, ensure_ascii=False, indent=0) + "\n")

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)
    templates = {f.stem: f.read_text() for f in sorted((pathlib.Path(__file__).parent / "chat_templates").glob("*.jinja"))}
    rows = []
    for name, template in templates.items():
        for i, conversation in enumerate(CONVERSATIONS):
            more = conversation.get("chat_template_kwargs", {})
            text = outcome(lambda: tokenizer.apply_chat_template(conversation["messages"], tools=conversation.get("tools"), chat_template=template, add_generation_prompt=True,
                                                                 tokenize=False, **more))
            rows.append({"template": name, "conversation": i, "text": text})
    conversations = {"special": SPECIAL, "templates": templates, "conversations": CONVERSATIONS, "rows": rows}
    (folder / "conversations.json").write_text(json.dumps(conversations, ensure_ascii=False, indent=0) + "\n")
    for what, all_of in (("templates", units), ("conversations", rows)):
        print(f"{what}: {len(all_of)}, of them errors {sum(r['text'] is None for r in all_of)}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
