// What templates find in place: attributes and items of values, operators, filters, tests, methods and functions.
#pragma once

#include "model/chat/value.h"

namespace kvmesh::jinja {

/// object.name and object[key], as Jinja's sandbox looks them up: a dict's methods before its keys in the first, behind them in the second.
Value attribute(Heap& heap, const Value& object, std::string_view name);
Value item(Heap& heap, const Value& object, const Value& key);
/// object[start:stop:step]; null where nothing is given.
Value slice(Heap& heap, const Value& object, const Value* start, const Value* stop, const Value* step);

/// + - * / // % **
Value arithmetic(Heap& heap, std::string_view op, const Value& a, const Value& b);
/// -v, +v
Value signed_value(const Value& v, bool negative);
/// == != < <= > >= in, not in
bool compare(Heap& heap, std::string_view op, const Value& a, const Value& b);

Value apply_filter(Heap& heap, std::string_view name, const Value& in, Arguments arguments);
/// The same, or nothing for a filter that is not of sequences.
std::optional<Value> apply_sequence_filter(Heap& heap, std::string_view name, const Value& in, Arguments& arguments);
bool apply_test(Heap& heap, std::string_view name, const Value& in, Arguments arguments);

/// A function of its own, or undefined.
Value global(Heap& heap, std::string_view name);
/// Calls a method or function, but for strftime_now.
Value call_function(Heap& heap, const Function& function, Arguments arguments);

/// Python's len().
std::int64_t size_of(Heap& heap, const Value& v);
/// An argument that must be an int.
std::int64_t whole(const Value& v, const char* what);

}  // namespace kvmesh::jinja
