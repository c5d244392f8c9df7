// Jinja's statements.
#include "model/chat/parser.h"

namespace kvmesh::jinja {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  NodePtr run() { return statements({}); }

 private:
  // Statements, up to a tag that is one of `ends` (which is then the current token) or, without, to the template's end.
  NodePtr statements(std::initializer_list<std::string_view> ends) {
    const Nested nested(*this);
    NodePtr body = make(Op::body, now().line);
    for (;; ) {
      const Token& t = now();
      if (t.kind == TokenKind::end) {
        if (ends.size() > 0) reject("the template ends before {}", *(ends.end() - 1));
        return body;
      }
      ++at_;
      if (t.kind == TokenKind::data) {
        add(*body, make(Op::data, t.line, t.text));
      } else if (t.kind == TokenKind::print_begin) {
        add(*body, make(Op::print, t.line, "", tuple_or_one()));
        expect(TokenKind::print_end, "}}");
      } else {
        if (at(TokenKind::name) && std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
        add(*body, statement());
        expect(TokenKind::block_end, "%}");
      }
    }
  }

  // The body of a statement whose tag ends here, up to its end tag, which is skipped.
  NodePtr block(std::string_view end) {
    NodePtr body = opened_block({end});
    ++at_;
    return body;
  }
  NodePtr opened_block(std::initializer_list<std::string_view> ends) {
    skip_op(":");
    expect(TokenKind::block_end, "%}");
    return statements(ends);
  }
  // A body that is a function of its own: loops around it cannot be left from it.
  NodePtr function_block(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    NodePtr body = block(end);
    loops_ = loops;
    return body;
  }

  NodePtr statement() {
    const int line = now().line;
    const std::string tag = name();
    if (tag == "for") return loop(line);
    if (tag == "if") return branch(line);
    if (tag == "set") return set(line);
    if (tag == "macro") {
      std::string macro_name = name();
      NodePtr node = signature(line, std::move(macro_name));
      return macro_body(std::move(node), "endmacro");
    }
    if (tag == "call") {
      NodePtr macro = at_op("(") ? signature(line, "caller") : make(Op::macro, line, "caller", NodePtr());
      NodePtr call = expression();
      if (call->op != Op::call) reject("expected a call");
      return make(Op::call_block, line, "", std::move(call), macro_body(std::move(macro), "endcall"));
    }
    if (tag == "filter") {
      NodePtr filter = filters(nullptr, true);
      return make(Op::filter_block, line, "", std::move(filter), block("endfilter"));
    }
    if (tag == "generation") return make(Op::generation, line, "", function_block("endgeneration"));
    if (tag == "with") {
      NodePtr node = make(Op::with, line);
      while (!at(TokenKind::block_end)) {
        if (!node->parts.empty()) expect_op(",");
        add(*node, target(false, {}));
        expect_op("=");
        add(*node, expression());
      }
      add(*node, block("endwith"));
      return node;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) reject("'{}' outside of a loop", tag);
      return make(tag == "break" ? Op::stop : Op::next, line);
    }
    reject("the tag '{}' is not supported here", tag);
  }

  NodePtr loop(int line) {
    NodePtr to = target(false, "in");
    if (!skip_name("in")) unexpected("in");
    NodePtr elements = tuple_or_one(false, "recursive");
    NodePtr test = skip_name("if") ? expression() : nullptr;
    if (at_name("recursive")) reject("recursive loops are not supported");
    ++loops_;
    NodePtr body = opened_block({"else", "endfor"});
    --loops_;
    NodePtr otherwise = now().text == "else" ? (++at_, block("endfor")) : (++at_, nullptr);
    return make(Op::loop, line, "", std::move(to), std::move(elements), std::move(test), std::move(body), std::move(otherwise));
  }

  NodePtr branch(int line) {
    NodePtr node = make(Op::branch, line);
    for (;;) {
      add(*node, tuple_or_one(false));
      add(*node, opened_block({"elif", "else", "endif"}));
      const std::string end = name();
      if (end == "endif") return node;
      if (end == "elif") continue;
      add(*node, block("endif"));
      return node;
    }
  }

  NodePtr set(int line) {
    NodePtr to = target(true, {});
    if (skip_op("=")) return make(Op::set, line, "", std::move(to), tuple_or_one());
    NodePtr filter = filters(nullptr, false);
    NodePtr body = block("endset");
    return make(Op::set_block, line, "", std::move(to), std::move(body), std::move(filter));
  }

  NodePtr signature(int line, std::string macro_name) {
    NodePtr node = make(Op::macro, line, std::move(macro_name), NodePtr());
    expect_op("(");
    while (!at_op(")")) {
      if (!node->names.empty()) expect_op(",");
      node->names.push_back(name());
      if (skip_op("=")) add(*node, expression());
      else if (node->parts.size() > 1) reject("non-default argument follows default argument");
    }
    expect_op(")");
    return node;
  }
  NodePtr macro_body(NodePtr macro, std::string_view end) {
    Node* const around = std::exchange(macro_, macro.get());
    NodePtr body = function_block(end);
    macro_ = around;
    macro->depth = std::max(macro->depth, body->depth + 1);
    macro->parts[0] = std::move(body);
    return macro;
  }

  // What is assigned to: a name, with `spaces` also NAME.ATTRIBUTE, or several with commas, up to the name `end`.
  NodePtr target(bool spaces, std::string_view end) {
    const int line = now().line;
    NodePtr all = make(Op::tuple, line);
    bool several = false;
    do {
      if (!all->parts.empty() && (at_op("=") || at_op(")") || at(TokenKind::block_end) || (!end.empty() && at_name(end)))) break;
      if (skip_op("(")) {
        add(*all, target(spaces, {}));
        expect_op(")");
        continue;
      }
      const Nested nested(*this);
      std::string n = name();
      static constexpr std::string_view reserved[] = {"true", "false", "none", "True", "False", "None", "loop"};
      if (std::find(std::begin(reserved), std::end(reserved), n) != std::end(reserved)) reject("'{}' cannot be assigned to", n);
      NodePtr one = make(Op::name, line, std::move(n));
      if (spaces && skip_op(".")) one->names.push_back(name());
      add(*all, std::move(one));
    } while (skip_op(",") && (several = true));
    return several ? std::move(all) : std::move(all->parts[0]);
  }

  int loops_ = 0;  // around the statement that is read
};

}  // namespace

NodePtr parse(std::string_view source, int& line) {
  if (source.size() > most_template_bytes) reject("longer than {} bytes", most_template_bytes);
  NodePtr root = Parser(tokens_of(source, line), line).run();
  hide_early_names(*root);
  return root;
}

}  // namespace kvmesh::jinja
