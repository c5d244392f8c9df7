"""kvmesh generate, score and verify with --chat: a conversation is served as the prompt that the template makes of it."""

import json

from command_line import CommandLineTest, config_of, random_weights, run_tests, write_checkpoint

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{{ tools|length if tools }}{{ extra }}{% if add_generation_prompt %}a:{% endif %}"
ASK = [{"role": "user", "content": "hi"}]


class Chat(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = config_of(16, 2, seqlen=64)
        cls.checkpoint = write_checkpoint(cls.folder / "random", random_weights(config), config)
        (cls.checkpoint / "chat_template.jinja").write_text(TEMPLATE)
        (cls.checkpoint / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<", "chat_template": "not this one"}))
        cls.bare = write_checkpoint(cls.folder / "bare", random_weights(config), config)

    def completions(self, *words, **more):
        return [r.get("tokens", r.get("error")) for r in self.generate(*words, "--max-new-tokens", 4, **more)]

    def rendered(self, *prompts):
        """What the prompts' texts themselves are completed to."""
        return self.completions("--prompts", self.write("plain.jsonl", "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)))

    def test_conversations_are_rendered(self):
        rows = self.rows({"messages": ASK}, {"messages": [{"role": "system", "content": "S"}] + ASK, "tools": [{}, {}]}, {"prompt": "hi"}, {"tokens": [104, 105]},
                         {"messages": ASK, "chat_template_kwargs": {"extra": "E", "bos_token": ""}}, {"messages": ASK, "max_new_tokens": 2}, {"messages": [{"role": "user", "content": "the and"}]})
        expected = self.rendered("<u:hi\na:", "<s:S\nu:hi\n2a:", "<u:hi\na:", "hi", "u:hi\nEa:", "<u:hi\na:", "<u:the and\na:")
        expected[5] = expected[5][:2]
        self.assertEqual(len({json.dumps(e) for e in expected}), 6)
        for ranks in (1, 2, 3):
            self.assertEqual(self.completions("--chat", "--prompts", rows, ranks=ranks), expected)

    def test_a_question_on_the_command_line_and_a_system_message(self):
        self.assertEqual(self.completions("--chat", "--prompt", "hi", "--system", "S"), self.rendered("<s:S\nu:hi\na:"))
        rows = self.rows({"messages": ASK}, {"messages": ASK + [{"role": "system", "content": "own"}]})
        self.assertEqual(self.completions("--chat", "--prompts", rows, "--system", "S"), self.rendered("<s:S\nu:hi\na:", "<u:hi\ns:own\na:"))
        self.assertEqual(self.completions("--chat", "--prompts", rows, "--system", ""), self.rendered("<s:\nu:hi\na:", "<u:hi\ns:own\na:"))

    def test_the_conversation_comes_out_as_it_went_in(self):
        rows = self.rows({"id": 1, "messages": ASK, "tools": [], "note": "n"}, {"prompt": "hi"})
        out = self.generate("--chat", "--prompts", rows, "--max-new-tokens", 1)
        self.assertEqual({k: v for k, v in out[0].items() if k not in ("completion", "tokens")}, {"id": 1, "index": 0, "finish_reason": "length", "messages": ASK, "tools": [], "note": "n"})
        self.assertEqual(out[1]["prompt"], "hi")

    def test_another_template_and_a_date(self):
        file = self.write("mine.jinja", "{{ strftime_now('%d.%m.') }}{{ messages[0].content }}")
        self.assertEqual(self.completions("--chat", "--chat-template", file, "--chat-date", "2026-02-03", "--prompt", "hi", checkpoint=self.bare), self.rendered("03.02.hi"))

    def test_bad_rows_harm_no_other(self):
        file = self.write("strict.jinja", "{% if messages[0].role != 'user' %}\n{{ raise_exception('no ' + messages[0].role) }}{% endif %}{{ messages[0].content }}")
        rows = self.rows({"messages": ASK}, {"messages": [{"role": "x"}]}, {"messages": [{"content": "x"}]}, {"messages": []}, {"messages": "hi"}, {"messages": ASK, "prompt": "a"}, {"messages": ASK, "tokens": [1]}, {"a": 1},
                         {"messages": [{"role": "user", "content": ""}]}, {"messages": ASK, "tools": 5}, {"messages": [{"role": "user", "content": "y" * 64}]}, {"prompt": 5}, {"messages": ASK})
        good = self.rendered("hi")[0]
        name = file.name
        self.assertEqual(self.completions("--chat", "--chat-template", file, "--prompts", rows, exit_code=2), [
            good, f"{name}, line 2: no x", f"{name}, line 2: 'messages[0].role' is undefined", "\"messages\" is empty", "\"messages\" is not a list", "both \"messages\" and a prompt",
            "both \"messages\" and a prompt", "neither \"messages\" nor \"prompt\" nor \"tokens\"", "the prompt is empty", "\"tools\" is not a list", "the prompt's 64 tokens leave no room for a new one in a context of 64",
            "\"prompt\" is not a text", good])

    def test_without_the_option_a_conversation_is_an_unknown_field(self):
        out = self.generate("--prompts", self.rows({"prompt": "hi", "messages": ASK}, {"messages": ASK}), "--max-new-tokens", 1, exit_code=2)
        self.assertEqual((out[0]["messages"], out[1]["error"]), (ASK, "neither \"prompt\" nor \"tokens\""))

    def test_what_cannot_be_is_an_error_that_names_it(self):
        def error(*words, checkpoint=self.checkpoint):
            return self.run_command("generate", "--checkpoint", checkpoint, "--prompt", "hi", *words)

        self.assert_one_line_error(error("--chat", checkpoint=self.bare), 1, self.bare, "has no chat template", "--chat-template")
        self.assert_one_line_error(error("--chat", "--chat-template", self.write("bad", "a\n{% for %}")), 1, "bad, line 2", "expected")
        self.assert_one_line_error(error("--chat", "--chat-template", self.folder / "nowhere"), 1, "nowhere")
        self.assert_one_line_error(error("--system", "x"), 1, "--system: only with --chat")
        self.assert_one_line_error(error("--chat-template", "x"), 1, "--chat-template: only with --chat")
        self.assert_one_line_error(error("--chat-date", "2026-01-01"), 1, "--chat-date: only with --chat")
        for day in ("2026-02-29", "26-01-01", "2026-1-1", "2026-13-01", "today", "2026-01-01x"):
            self.assert_one_line_error(error("--chat", "--chat-date", day), 1, "--chat-date " + day)

    def test_going_on_notices_template_system_and_day(self):
        rows = self.rows({"messages": ASK})
        file = self.write("t.jinja", "{{ messages[-1].content }}{{ strftime_now('%Y') }}")
        plain = self.write("p.jinja", "{{ messages[-1].content }}")

        def run(*words):
            return self.run_command("generate", "--checkpoint", self.checkpoint, "--prompts", rows, "--max-new-tokens", 2, "--output", self.path("out.jsonl"), *words)

        dated = ("--chat", "--chat-template", file, "--chat-date", "2026-01-01")
        self.assertEqual(run(*dated).returncode, 0)
        self.assertIn(b"is complete", run(*dated).stderr)
        self.assert_one_line_error(run("--chat", "--chat-template", file, "--chat-date", "2026-01-02"), 1, "chat-date")
        self.assert_one_line_error(run("--chat", "--chat-template", plain, "--chat-date", "2026-01-01"), 1, "chat-template")
        self.assert_one_line_error(run(*dated, "--system", "x"), 1, "system")
        self.assert_one_line_error(run(), 1, "chat = true")
        verified = self.run_command("verify", "--output", self.path("out.jsonl"), ranks=2)
        self.assertEqual((verified.returncode, verified.stdout), (0, b"verified 1 of 1 rows\n"), verified.stderr)
        file.write_text("{{ messages[-1].content }}!")
        self.assert_one_line_error(self.run_command("verify", "--output", self.path("out.jsonl")), 1, "chat-template")
        self.assertEqual(run("--fresh", "--chat", "--chat-template", plain).returncode, 0)  # tells no date: any day will do
        self.assertIn(b"is complete", run("--chat", "--chat-template", plain, "--chat-date", "2026-01-02").stderr)
        self.assertEqual(run("--fresh", "--chat").returncode, 0)
        (self.checkpoint / "chat_template.jinja").write_text(TEMPLATE + " ")
        self.assert_one_line_error(run("--chat"), 1, "checkpoint")
        (self.checkpoint / "chat_template.jinja").write_text(TEMPLATE)

    def test_scores_and_doctor(self):
        rows = self.rows({"messages": ASK, "completion": "yes"}, {"prompt": "hi", "completion": "yes"}, {"messages": [], "completion": "x"})
        done = self.run_command("score", "--checkpoint", self.checkpoint, "--prompts", rows, "--chat")
        self.assertEqual(done.returncode, 2, done.stderr)
        out = [json.loads(line) for line in done.stdout.splitlines()]
        plain = self.run_command("score", "--checkpoint", self.checkpoint, "--prompts", self.write("s.jsonl", json.dumps({"prompt": "<u:hi\na:", "completion": "yes"}) + "\n"))
        expected = json.loads(plain.stdout)["log_likelihood"]
        self.assertEqual([r.get("log_likelihood", r.get("error")) for r in out], [expected, expected, "\"messages\" is empty"])
        self.assertEqual(out[0]["messages"], ASK)
        self.assertEqual(self.run_command("doctor", "--checkpoint", self.checkpoint, "--prompts", rows, "--chat", ranks=2).returncode, 0)
        self.assertEqual(self.run_command("doctor", "--checkpoint", self.bare, "--prompts", rows, "--chat", ranks=2).returncode, 1)


if __name__ == "__main__":
    run_tests()
