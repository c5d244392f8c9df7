#!/bin/sh
# isa_symbols.sh NM OBJECT...: fails if an object defines a symbol that the linker may merge with another object's, or runs code
# before main. Objects compiled for a lesser CPU would then run instructions that it lacks.
set -eu
nm=$1
shift
symbols=$("$nm" -A --defined-only "$@")
[ -n "$symbols" ] || { echo "no symbols in $*"; exit 1; }
if printf '%s\n' "$symbols" | grep -E ' [VvWwu] |_GLOBAL__sub_I'; then
  echo "these are weak symbols or initializers"
  exit 1
fi
