// Chat templates against jinja2 and transformers (tests/fixtures/chat, made by tests/reference/chat.py), where they are found, and what ends a hostile one.
#include "model/chat/chat_template.h"
#include "tests/model/scratch.h"
#include "tests/source_dir.h"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using test::error_of;
using test::Scratch;
using testing::IsSubstring;

Json fixture(const char* name) { return Json::parse(std::ifstream(source_dir() / "tests/fixtures/chat" / name)); }

// The fixtures' clock.
std::tm summer() {
  std::tm now{};
  now.tm_year = 126, now.tm_mon = 6, now.tm_mday = 26, now.tm_wday = 0, now.tm_yday = 206;
  return now;
}

std::string render(std::string_view text, const Json& variables = Json::object()) { return Template(text, "test.jinja").render(variables, summer()); }

TEST(Template, RendersWhatJinjaRenders) {
  const Json all = fixture("templates.json");
  ASSERT_GT(all["templates"].size(), 1000u);
  for (const Json& t : all["templates"]) {
    const std::string text = t["template"];
    Json result;
    const std::string error = error_of([&] { result = render(text, all["variables"]); });
    EXPECT_EQ(result, t["text"]) << text << "\n" << error;
  }
}

TEST(Template, RefusesWhatItDoesNotKnow) {
  const Json all = fixture("templates.json");
  for (const Json& t : all["unsupported"]) {
    const std::string text = t;
    EXPECT_NE(error_of([&] { render(text, all["variables"]); }), "") << text;
  }
}

TEST(Template, NamesFileAndLine) {
  EXPECT_EQ(error_of([] { Template("a\n{{ b", "folder/x.jinja"); }), "folder/x.jinja, line 2: the template ends within a tag");
  EXPECT_EQ(error_of([] { Template("a\xff", "x.jinja"); }), "x.jinja: is not UTF-8 text");
  EXPECT_EQ(error_of([] { Template("\n\n{% for x in y %}", "x.jinja"); }), "x.jinja, line 3: the template ends before endfor");
  EXPECT_EQ(error_of([] { Template("x\n\n{{ a.b['c'].d }}", "folder/x.jinja").render({{"a", {{"b", Json::object()}}}}, summer()); }), "x.jinja, line 3: 'a.b['c']' is undefined");
  EXPECT_EQ(error_of([] { render("\n{{ raise_exception('no ' ~ 1) }}"); }), "test.jinja, line 2: no 1");
  EXPECT_EQ(error_of([] { render("{{ 1\n | nope }}"); }), "test.jinja, line 2: the filter 'nope' is not supported");
  EXPECT_EQ(error_of([] { render("{{ a }}", {{"a", 1e19}}); }), "test.jinja, line 1: the number 1e+19 is too large");
}

// Each would take for ever, or all memory or stack, and ends with an Error instead.
TEST(Template, BoundsWorkMemoryAndDepth) {
  const auto repeated = [](std::string_view part, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += part;
    return out;
  };
  const std::pair<std::string, const char*> hostile[] = {
      {R"({% set x = "a" * 1000000 %}{{ x.replace("a", "b" * 1000)|length }})", "bytes of memory"},
      {R"({% set x = "a" * 1000000 %}{{ x|replace("a", "b" * 1000)|length }})", "bytes of memory"},
      {R"({% set x = "a" * 2000000 %}{{ x.rfind("b" + "a" * 1000000) }})", "steps"},
      {R"({% set x = "a" * 2000000 %}{% set y = "a" * 1000000 + "b" %}{% for i in range(100000) %}{{ y in x }}{{ x.find(y) }}{{ x.count(y) }}{% endfor %})", "steps"},
      {"{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "steps"},
      {"{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "steps"},
      {"{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "steps"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "steps"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}", "s"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}", "steps"},
      {"{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}", "steps"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(50000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}", "nested too deeply"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(50000) %}{% set ns.s = ns.s|map('string') %}{% endfor %}{{ ns.s|list }}", "nested too deeply"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"},
      {"{% macro f(a) %}{{ f(a)|upper ~ f(a) }}{% endmacro %}{{ f(1) }}", "nested too deeply"},
      {"{{ 'x' * 10000000000 }}", "too long"},
      {"{{ [1, 2] * 10000000000 }}", "too long"},
      {"{{ 'x' * 16000000 }}{{ 'x' * 16000000 }}{{ 'x' * 16000000 }}", "bytes"},
      {"{{ 2 ** 9000000000000000000 }}", "too large"},
      {"{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}", "bytes"},
      {"{% set s = 'ab' * 500000 %}{% for i in range(100000) %}{{ s[i] }}{% endfor %}", "steps"},
      {"{% set s = 'ab' * 500000 %}{% for i in range(100000) %}{% if 'ba' * 9 ~ 'c' in s %}{% endif %}{% endfor %}", "steps"},
      {"{% set s = 'ab' * 500000 %}{% for i in range(100000) %}{% set a = s|length %}{% endfor %}", "steps"},
      {"{% set s = 'ab' * 500000 %}{% for i in range(100000) %}{% set a = s[5:6] %}{% endfor %}", "steps"},
      {"{% set s = 'ab' * 500000 %}{% for i in range(100000) %}{% set a = s.split('b')|length %}{% endfor %}", "steps"},
      {"{% set s = 'ab ' * 300000 %}{% for i in range(100000) %}{% set a = s|title|tojson|indent(3) %}{% endfor %}", "steps"},
      {"{% set r = range(100000) %}{{ r|sort|sort(reverse=true)|unique|list }}", "steps"},
      {"{% for i in range(100000) %}{{ range(100000)|sum }}{% endfor %}", "steps"},
      {"{{ x" + repeated("[", 100000) + repeated("]", 100000) + " }}", "nested deeper"},
      {"{{ " + repeated("(", 100000) + repeated(")", 100000) + " }}", "nested deeper"},
      {"{{ " + repeated("not ", 100000) + "1 }}", "nested deeper"},
      {"{{ " + repeated("-", 100000) + "1 }}", "nested deeper"},
      {"{{ 1" + repeated(" + 1", 100000) + " }}", "too deep"},
      {"{{ x" + repeated(".x", 100000) + " }}", "too deep"},
      {"{{ x" + repeated("|d", 100000) + " }}", "too deep"},
      {"{{ 1" + repeated(" if 1 else 1", 10000) + " }}", "nested deeper"},
      {repeated("{% if 1 %}", 100000), "nested deeper"},
      {repeated("{% for x in y %}", 10000), "nested deeper"},
      {repeated("{% if 1 %}", 100) + [] {
         std::string names;
         for (int i = 0; i < 100000; ++i) names += fmt::format("{{{{n{}}}}}", i);
         return names;
       }() + repeated("{% endif %}", 100), "too many names"},
      {std::string((1 << 20) + 1, 'x'), "longer than"},
  };
  for (const auto& [text, reason] : hostile) {
    const std::string error = error_of([&, &source = text] { render(source); });
    EXPECT_PRED_FORMAT2(IsSubstring, reason, error) << text.substr(0, 200);
  }
}

TEST(Template, WorksOnLongConversations) {
  Json messages = Json::array();
  for (int i = 0; i < 1000; ++i) messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(10000, 'x')}});
  const Json all = fixture("conversations.json");
  for (const auto& [name, text] : all["templates"].items()) {
    Json variables = all["special"];
    variables["messages"] = messages;
    variables["add_generation_prompt"] = true;
    EXPECT_GT(render(text.get<std::string>(), variables).size(), 10'000'000u) << name;
  }
}

TEST(ChatTemplate, RendersWhatTransformersRenders) {
  const Json all = fixture("conversations.json");
  const Scratch scratch;
  scratch.write("tokenizer_config.json", all["special"].dump());
  for (const auto& [name, text] : all["templates"].items()) {
    const ChatTemplate chat(scratch.path(), scratch.write(name + ".jinja", text.get<std::string>()));
    for (const Json& row : all["rows"]) {
      if (row["template"] != name) continue;
      const Json& conversation = all["conversations"][row["conversation"].get<std::size_t>()];
      const Json none;
      Json result;
      const std::string error = error_of([&] {
        result = chat.render(conversation["messages"], conversation.contains("tools") ? conversation["tools"] : none,
                             conversation.contains("chat_template_kwargs") ? conversation["chat_template_kwargs"] : none, summer());
      });
      EXPECT_EQ(result, row["text"]) << name << ", conversation " << row["conversation"] << ": " << error;
    }
  }
}

TEST(ChatTemplate, IsFoundWhereTransformersFindsIt) {
  const Json hello = {{{"role", "user"}, {"content", "Hi"}}};
  const Json tools = Json::array({Json::object()});
  const auto rendered = [&](const fs::path& folder, const Json& with = nullptr, const fs::path& file = {}) { return ChatTemplate(folder, file).render(hello, with, nullptr, summer()); };
  const Scratch s;
  EXPECT_PRED_FORMAT2(IsSubstring, "has no chat template", error_of([&] { ChatTemplate(s.path(), ""); }));
  s.write("tokenizer_config.json", R"({"bos_token": "<b>", "eos_token": {"content": "<e>", "lstrip": false}, "pad_token": null, "chat_template": "config {{ bos_token ~ eos_token }} {{ pad_token is defined }}"})");
  s.write("special_tokens_map.json", R"({"bos_token": "<other>", "pad_token": "<p>"})");
  EXPECT_EQ(rendered(s.path()), "config <b><e> True");
  s.write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default {{ bos_token }}"}, {"name": "rag", "template": "{% not read"}]})");
  EXPECT_EQ(rendered(s.path()), "default <other>");
  EXPECT_EQ(rendered(s.path(), tools), "tools");
  s.write("chat_template.jinja", "file {{ messages[0].content }}\n");
  EXPECT_EQ(rendered(s.path()), "file Hi");
  EXPECT_EQ(rendered(s.path(), tools), "file Hi");
  EXPECT_EQ(rendered(s.path(), nullptr, s.write("mine", "mine")), "mine");
  EXPECT_EQ(chat_files(s.path()).size(), 3u);
  EXPECT_PRED_FORMAT2(IsSubstring, (s.path() / "nowhere").string(), error_of([&] { ChatTemplate(s.path(), s.path() / "nowhere"); }));
  s.write("chat_template.jinja", "a\n{% if %}");
  EXPECT_PRED_FORMAT2(IsSubstring, (s.path() / "chat_template.jinja").string() + ", line 2", error_of([&] { rendered(s.path()); }));

  const std::pair<const char*, const char*> bad[] = {{R"({"chat_template": 5})", "has no chat template"}, {R"({"chat_template": ["x"]})", "not of objects"},
                                                      {R"({"chat_template": [{"name": "a", "template": "b"}]})", "named \"default\""}, {R"({"bos_token": 5, "chat_template": "x"})", "bos_token"},
                                                      {R"({"chat_template": "x", "chat_template": "y"})", "twice"}, {R"({"chat_template": "{{"})", "tokenizer_config.json, line 1"}};
  for (const auto& [config, reason] : bad) {
    const Scratch folder;
    folder.write("tokenizer_config.json", config);
    EXPECT_PRED_FORMAT2(IsSubstring, reason, error_of([&] { rendered(folder.path()); })) << config;
  }
}

TEST(ChatTemplate, RefusesRowsThatAreNone) {
  const Scratch s;
  const ChatTemplate chat(s.path(), s.write("t", "{{ messages }}{{ tools }}{{ x }}"));
  EXPECT_FALSE(chat.tells_date());
  EXPECT_TRUE(ChatTemplate(s.path(), s.write("d", "{{ strftime_now('%Y') }}")).tells_date());
  const Json good = {{{"role", "user"}}};
  const auto error = [&](const Json& messages, const Json& tools, const Json& more) { return error_of([&] { chat.render(messages, tools, more, summer()); }); };
  EXPECT_EQ(error(good, nullptr, nullptr), "");
  EXPECT_EQ(chat.render(good, Json::array(), {{"x", 1}}, summer()), "[{'role': 'user'}][]1");
  EXPECT_EQ(error("text", nullptr, nullptr), "\"messages\" is not a list");
  EXPECT_EQ(error(Json::array(), nullptr, nullptr), "\"messages\" is empty");
  EXPECT_EQ(error({good[0], 5}, nullptr, nullptr), "\"messages\": element 1 is not an object");
  EXPECT_EQ(error(good, {{"a", 1}}, nullptr), "\"tools\" is not a list");
  EXPECT_EQ(error(good, Json::array({"a"}), nullptr), "\"tools\": element 0 is not an object");
  EXPECT_EQ(error(good, nullptr, "x"), "\"chat_template_kwargs\" is not an object");
  EXPECT_EQ(error(good, nullptr, {{"messages", 1}}), "\"chat_template_kwargs\" cannot say \"messages\"");
}

}  // namespace
}  // namespace kvmesh
