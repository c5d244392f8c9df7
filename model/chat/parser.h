// What reading expressions and reading statements share.
#pragma once

#include "model/chat/lexer.h"
#include "model/chat/syntax.h"

#include <algorithm>
#include <initializer_list>

namespace kvmesh::jinja {

/// Reads expressions, as Jinja's own parser does.
class ExpressionParser {
 public:
  /// `line` follows what is read.
  ExpressionParser(std::vector<Token> tokens, int& line) : tokens_(std::move(tokens)), line_(line) {}

 protected:
  static constexpr int most_depth = 120;  // of tags in tags and brackets in brackets
  struct Nested {
    explicit Nested(ExpressionParser& p) : parser(p) {
      if (++parser.depth_ > most_depth) reject("nested deeper than {}", most_depth);
    }
    ~Nested() { --parser.depth_; }
    ExpressionParser& parser;
  };

  // Tokens.
  const Token& now() {
    line_ = tokens_[at_].line;
    return tokens_[at_];
  }
  bool at(TokenKind kind) { return now().kind == kind; }
  bool at_op(std::string_view op) { return at(TokenKind::op) && now().text == op; }
  bool at_name(std::string_view name) { return at(TokenKind::name) && now().text == name; }
  bool next_is(TokenKind kind, std::string_view text) const { return at_ + 1 < tokens_.size() && tokens_[at_ + 1].kind == kind && tokens_[at_ + 1].text == text; }
  bool skip_op(std::string_view op) { return at_op(op) && ++at_; }
  bool skip_name(std::string_view name) { return at_name(name) && ++at_; }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) unexpected(op);
  }
  void expect(TokenKind kind, std::string_view what) {
    if (!at(kind)) unexpected(what);
    ++at_;
  }
  std::string name() {
    if (!at(TokenKind::name)) unexpected("a name");
    return tokens_[at_++].text;
  }
  [[noreturn]] void unexpected(std::string_view wanted);

  // Nodes.
  template <typename... Parts>
  NodePtr make(Op op, int line, std::string text = {}, Parts... parts) {
    auto node = std::make_unique<Node>(Node{op, line, std::move(text), {}, {}});
    (add(*node, std::move(parts)), ...);
    return node;
  }
  void add(Node& node, NodePtr part) {
    if (part) node.depth = std::max(node.depth, part->depth + 1);
    if (node.depth > 2 * most_depth) reject("an expression that is too deep");
    node.parts.push_back(std::move(part));
  }
  NodePtr constant(int line, const Value& v) {
    NodePtr node = make(Op::constant, line);
    node->constant = v;
    return node;
  }

  NodePtr expression();
  /// Several with commas are a tuple. `conditions`: whether a if b else c may be among them; `end`: a name that ends them.
  NodePtr tuple_or_one(bool conditions = true, std::string_view end = {}, bool may_be_empty = false);
  /// | filter | filter … behind `subject`, which is null at the head of a block; `begun`: the first stands without its bar.
  NodePtr filters(NodePtr subject, bool begun);

  std::size_t at_ = 0;
  Node* macro_ = nullptr;  // whose body is read

 private:
  NodePtr either();
  NodePtr both();
  NodePtr inverted();
  NodePtr comparison();
  template <typename Part>
  NodePtr arithmetic(std::initializer_list<std::string_view> ops, const Part& part);
  NodePtr sum();
  NodePtr concat();
  NodePtr product();
  NodePtr unary(bool with_filters);
  NodePtr primary();
  NodePtr postfix(NodePtr node);
  NodePtr subscript(NodePtr object, int line);
  void arguments(Node& node);
  NodePtr call(NodePtr function);
  NodePtr test(NodePtr subject);

 protected:
  std::vector<Token> tokens_;
  int& line_;

 private:
  int depth_ = 0;
};

}  // namespace kvmesh::jinja
