// Jinja's expressions, by how tightly their operators bind.
#include "model/chat/parser.h"

namespace kvmesh::jinja {

void ExpressionParser::unexpected(std::string_view wanted) {
  const Token& t = now();
  const bool tag_ends = t.kind == TokenKind::block_end || t.kind == TokenKind::print_end, quoted = t.kind == TokenKind::name || t.kind == TokenKind::op;
  reject("expected {}, found {}", wanted, quoted ? "'" + t.text + "'" : tag_ends ? "the tag's end" : t.kind == TokenKind::end ? "the template's end" : "a literal or text");
}

NodePtr ExpressionParser::expression() {
  const Nested nested(*this);
  NodePtr value = either();
  while (at_name("if")) {
    const int line = now().line;
    ++at_;
    NodePtr test = either();
    NodePtr otherwise = skip_name("else") ? expression() : nullptr;
    value = make(Op::condition, line, "", std::move(test), std::move(value), std::move(otherwise));
  }
  return value;
}

NodePtr ExpressionParser::tuple_or_one(bool conditions, std::string_view end, bool may_be_empty) {
  NodePtr all = make(Op::tuple, now().line);
  bool several = false;
  do {
    if (at(TokenKind::print_end) || at(TokenKind::block_end) || at_op(")") || (!end.empty() && at_name(end))) break;
    add(*all, conditions ? expression() : either());
  } while (skip_op(",") && (several = true));
  if (several) return all;
  if (!all->parts.empty()) return std::move(all->parts[0]);
  if (!may_be_empty) unexpected("an expression");
  return all;
}

NodePtr ExpressionParser::either() {
  NodePtr left = both();
  while (skip_name("or")) left = make(Op::either, line_, "", std::move(left), both());
  return left;
}

NodePtr ExpressionParser::both() {
  NodePtr left = inverted();
  while (skip_name("and")) left = make(Op::both, line_, "", std::move(left), inverted());
  return left;
}

NodePtr ExpressionParser::inverted() {
  if (!skip_name("not")) return comparison();
  const Nested nested(*this);
  return make(Op::invert, line_, "", inverted());
}

NodePtr ExpressionParser::comparison() {
  NodePtr node = make(Op::compare, now().line, "", sum());
  for (;;) {
    static constexpr std::string_view ops[] = {"==", "!=", "<", "<=", ">", ">="};
    if (at(TokenKind::op) && std::find(std::begin(ops), std::end(ops), now().text) != std::end(ops)) {
      node->names.push_back(tokens_[at_++].text);
    } else if (skip_name("in")) {
      node->names.push_back("in");
    } else if (at_name("not") && next_is(TokenKind::name, "in")) {
      at_ += 2;
      node->names.push_back("not in");
    } else {
      return node->names.empty() ? std::move(node->parts[0]) : std::move(node);
    }
    add(*node, sum());
  }
}

template <typename Part>
NodePtr ExpressionParser::arithmetic(std::initializer_list<std::string_view> ops, const Part& part) {
  NodePtr left = part();
  while (at(TokenKind::op) && std::find(ops.begin(), ops.end(), now().text) != ops.end()) {
    const Token& op = tokens_[at_++];
    NodePtr right = part();
    left = make(Op::arithmetic, op.line, op.text, std::move(left), std::move(right));
  }
  return left;
}

NodePtr ExpressionParser::sum() {
  return arithmetic({"+", "-"}, [&] { return concat(); });
}

NodePtr ExpressionParser::concat() {
  NodePtr all = make(Op::concat, now().line, "", product());
  while (skip_op("~")) add(*all, product());
  return all->parts.size() > 1 ? std::move(all) : std::move(all->parts[0]);
}

NodePtr ExpressionParser::product() {
  return arithmetic({"*", "/", "//", "%"}, [&] { return arithmetic({"**"}, [&] { return unary(true); }); });
}

NodePtr ExpressionParser::unary(bool with_filters) {
  const Nested nested(*this);
  const int line = now().line;
  NodePtr node = skip_op("-") ? make(Op::negative, line, "", unary(false)) : skip_op("+") ? make(Op::positive, line, "", unary(false)) : primary();
  node = postfix(std::move(node));
  while (with_filters) {
    if (at_op("|")) node = filters(std::move(node), false);
    else if (at_name("is")) node = test(std::move(node));
    else if (at_op("(")) node = call(std::move(node));
    else break;
  }
  return node;
}

NodePtr ExpressionParser::primary() {
  const Token& t = now();
  if (t.kind == TokenKind::text) {
    NodePtr node = make(Op::constant, t.line);
    for (; at(TokenKind::text); ++at_) node->literal.bytes += now().text;
    node->constant.kind = Kind::text;
    node->constant.text = &node->literal;
    return node;
  }
  ++at_;
  if (t.kind == TokenKind::integer) return constant(t.line, Value(t.integer));
  if (t.kind == TokenKind::real) return constant(t.line, Value(t.real));
  if (t.kind == TokenKind::name) {
    if (t.text == "true" || t.text == "True") return constant(t.line, Value(true));
    if (t.text == "false" || t.text == "False") return constant(t.line, Value(false));
    if (t.text == "none" || t.text == "None") return constant(t.line, Value::none());
    if (macro_) macro_->takes_caller |= t.text == "caller", macro_->takes_values |= t.text == "varargs", macro_->takes_named |= t.text == "kwargs";
    return make(Op::name, t.line, t.text);
  }
  if (t.kind == TokenKind::op && t.text == "(") {
    NodePtr inner = tuple_or_one(true, {}, true);
    expect_op(")");
    return inner;
  }
  if (t.kind == TokenKind::op && (t.text == "[" || t.text == "{")) {
    const bool dict = t.text == "{";
    NodePtr node = make(dict ? Op::dict : Op::list, t.line);
    while (!at_op(dict ? "}" : "]")) {
      add(*node, expression());
      if (dict) expect_op(":"), add(*node, expression());
      if (!at_op(dict ? "}" : "]")) expect_op(",");
    }
    ++at_;
    return node;
  }
  --at_;
  unexpected("an expression");
}

NodePtr ExpressionParser::postfix(NodePtr node) {
  for (;;) {
    const int line = now().line;
    if (skip_op(".")) {
      if (at(TokenKind::integer)) {
        node = make(Op::item, line, "", std::move(node), constant(line, Value(now().integer)));
        ++at_;
      } else {
        node = make(Op::attribute, line, name(), std::move(node));
      }
    } else if (skip_op("[")) {
      node = subscript(std::move(node), line);
    } else if (at_op("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
}

NodePtr ExpressionParser::subscript(NodePtr object, int line) {
  NodePtr parts[3];
  if (!at_op(":")) parts[0] = expression();
  if (skip_op("]")) return make(Op::item, line, "", std::move(object), std::move(parts[0]));
  for (int i = 1; i < 3 && skip_op(":"); ++i) {
    if (!at_op(":") && !at_op("]")) parts[i] = expression();
  }
  expect_op("]");
  return make(Op::slice, line, "", std::move(object), std::move(parts[0]), std::move(parts[1]), std::move(parts[2]));
}

void ExpressionParser::arguments(Node& node) {
  expect_op("(");
  while (!at_op(")")) {
    if (at_op("*") || at_op("**")) reject("arguments with '{}' are not supported", now().text);
    if (at(TokenKind::name) && next_is(TokenKind::op, "=")) {
      node.names.push_back(name());
      ++at_;
    } else if (!node.names.empty()) {
      reject("an argument without a name behind one with a name");
    }
    add(node, expression());
    if (!at_op(")")) expect_op(",");
  }
  ++at_;
}

NodePtr ExpressionParser::call(NodePtr function) {
  NodePtr node = make(Op::call, now().line, "", std::move(function));
  arguments(*node);
  return node;
}

NodePtr ExpressionParser::filters(NodePtr subject, bool begun) {
  while (std::exchange(begun, false) || skip_op("|")) {
    NodePtr node = make(Op::filter, now().line, name(), std::move(subject));
    if (at_op("(")) arguments(*node);
    subject = std::move(node);
  }
  return subject;
}

NodePtr ExpressionParser::test(NodePtr subject) {
  const int line = now().line;
  ++at_;
  const bool inverts = skip_name("not");
  NodePtr node = make(Op::test, line, name(), std::move(subject));
  const bool literal = at(TokenKind::text) || at(TokenKind::integer) || at(TokenKind::real) || at_op("[") || at_op("{");
  if (at_op("(")) {
    arguments(*node);
  } else if (literal || (at(TokenKind::name) && !at_name("else") && !at_name("or") && !at_name("and"))) {
    if (at_name("is")) reject("tests cannot be chained with is");
    add(*node, postfix(primary()));
  }
  return inverts ? make(Op::invert, line, "", std::move(node)) : std::move(node);
}

}  // namespace kvmesh::jinja
