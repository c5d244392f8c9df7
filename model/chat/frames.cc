// Names that Jinja's compiler leaves undefined until they are set, although the template was given them: what a block (the template, a loop's or a macro's body …)
// sets outside of any `if` before it says the name itself, counts as the block's own from its beginning. Blocks within it see that.
#include "model/chat/syntax.h"

#include <initializer_list>
#include <map>
#include <set>

namespace kvmesh::jinja {
namespace {

// What a block, or a branch of an `if` in it, says of names.
class Names {
 public:
  /// `work` counts what all blocks take from their branches.
  Names(const Names* outer, std::size_t& work) : outer_(outer), work_(work) {}
  Names within() const { return Names(this, work_); }
  static Names branch_of(const Names& base) {
    Names branch(base.outer_, base.work_);
    branch.base_ = &base;
    return branch;
  }

  void load(std::string_view name) {
    if (!known(name)) own_[name] = false;
  }
  void store(std::string_view name) {
    stored_.insert(name);
    if (!has(name)) own_[name] = !(outer_ && outer_->known(name));
  }
  void parameter(std::string_view name) {
    stored_.insert(name);
    own_[name] = false;
  }
  void take(std::initializer_list<const Names*> branches) {
    std::set<std::string_view> fresh;
    for (const Names* b : branches) {
      for (const std::string_view name : b->stored_) {
        if (!is_stored(name)) fresh.insert(name);
      }
    }
    for (const Names* b : branches) {
      work_ += b->own_.size() + b->stored_.size();
      if (work_ > 500'000) reject("too many names");
      own_.insert(b->own_.begin(), b->own_.end());
      stored_.insert(b->stored_.begin(), b->stored_.end());
    }
    for (const std::string_view name : fresh) own_[name] = false;  // set in one branch only: as it was in the other
  }

  std::vector<std::string> hidden() const {
    std::vector<std::string> names;
    for (const auto& [name, hides] : own_) {
      if (hides) names.emplace_back(name);
    }
    return names;
  }

 private:
  bool has(std::string_view name) const { return own_.contains(name) || (base_ && base_->has(name)); }
  bool is_stored(std::string_view name) const { return stored_.contains(name) || (base_ && base_->is_stored(name)); }
  bool known(std::string_view name) const { return has(name) || (outer_ && outer_->known(name)); }

  const Names* outer_;
  std::size_t& work_;
  const Names* base_ = nullptr;
  std::map<std::string_view, bool> own_;  // whether the name is hidden until it is set
  std::set<std::string_view> stored_;
};

void store(const Node& target, Names& names, bool parameters) {
  for (const NodePtr& part : target.parts) store(*part, names, parameters);
  if (target.op != Op::name) return;
  if (!target.names.empty()) names.load(target.text);
  else if (parameters) names.parameter(target.text);
  else names.store(target.text);
}

void visit(const Node& node, Names& names);

// A branch node's tests and bodies from `first` on; an elif is an `if` in a branch of its own.
void visit_branches(const Node& node, std::size_t first, Names& names) {
  visit(*node.parts[first], names);
  Names body = Names::branch_of(names), others = Names::branch_of(names), otherwise = Names::branch_of(names);
  visit(*node.parts[first + 1], body);
  if (first == 0) {
    std::size_t i = 2;
    for (; i + 1 < node.parts.size(); i += 2) visit_branches(node, i, others);
    if (i < node.parts.size()) visit(*node.parts[i], otherwise);
  }
  names.take({&body, &others, &otherwise});
}

// What a node says in the block in which it stands, not in the blocks that it has.
void visit(const Node& node, Names& names) {
  switch (node.op) {
    case Op::name: names.load(node.text); return;
    case Op::branch: visit_branches(node, 0, names); return;
    case Op::macro: names.store(node.text); return;
    case Op::set:
      visit(*node.parts[1], names);
      store(*node.parts[0], names, false);
      return;
    case Op::set_block: store(*node.parts[0], names, false); return;
    case Op::loop: visit(*node.parts[1], names); return;
    case Op::call_block:
    case Op::filter_block: visit(*node.parts[0], names); return;
    case Op::with:
      for (std::size_t i = 1; i + 1 < node.parts.size(); i += 2) visit(*node.parts[i], names);
      return;
    case Op::generation: return;
    default:
      for (const NodePtr& part : node.parts) {
        if (part) visit(*part, names);
      }
  }
}

void find_blocks(Node& node, const Names& names);

// A block's body, whose parameters are among its names already.
void analyze(Node* body, Names& names) {
  if (!body) return;
  visit(*body, names);
  body->names = names.hidden();
  for (const NodePtr& part : body->parts) find_blocks(*part, names);
}

// The blocks in a statement of the block that has these names.
void find_blocks(Node& node, const Names& names) {
  Names inner = names.within();
  switch (node.op) {
    case Op::body:
    case Op::branch:
      for (const NodePtr& part : node.parts) find_blocks(*part, names);
      return;
    case Op::loop: {
      Names otherwise = names.within();
      analyze(node.parts[4].get(), otherwise);
      store(*node.parts[0], inner, true);
      inner.parameter("loop");
      analyze(node.parts[3].get(), inner);
      return;
    }
    case Op::call_block: find_blocks(*node.parts[1], names); return;
    case Op::macro:
      for (const std::string& name : node.names) inner.parameter(name);
      for (const char* name : {"caller", "varargs", "kwargs"}) inner.parameter(name);
      for (std::size_t i = 1; i < node.parts.size(); ++i) visit(*node.parts[i], inner);
      analyze(node.parts[0].get(), inner);
      return;
    case Op::with:
      for (std::size_t i = 0; i + 1 < node.parts.size(); i += 2) store(*node.parts[i], inner, true);
      analyze(node.parts.back().get(), inner);
      return;
    case Op::set_block:
    case Op::filter_block: analyze(node.parts[1].get(), inner); return;
    case Op::generation: analyze(node.parts[0].get(), inner); return;
    default: return;
  }
}

}  // namespace

void hide_early_names(Node& root) {
  std::size_t work = 0;
  Names names(nullptr, work);
  analyze(&root, names);
}

}  // namespace kvmesh::jinja
