#!/usr/bin/env bash
# Type-checks each MSL file of a folder by clang against `metal/metal_stdlib`, as C++ for OpenCL. Any message is a failure.
# Mistakes that it must refuse come first.
#
# usage: .ci/kernels/msl.sh CLANG KERNELS        the program, and the folder
set -euo pipefail

clang=$1
kernels=$(cd "$2" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# naga writes arguments, variables and fields that nothing uses, and arrays of unknown length as arrays of one element.
check() {
  "$clang" -x clcpp -cl-std=clc++2021 -target spir64-unknown-unknown -fsyntax-only \
    -nostdinc -cl-no-stdinc -cl-single-precision-constant -I "$here/metal" \
    -Wall -Wextra -Werror -Wno-unknown-attributes -Wno-unused-parameter -Wno-unused-variable \
    -Wno-missing-field-initializers -Wno-array-bounds "$1"
}

# Files of one name for many things can be checked together where each has a namespace.
unit() {
  local n=0 file
  echo "#include <metal_stdlib>"
  for file; do
    n=$((n + 1))
    printf 'namespace kernel_%d {\n#include "%s"\n}\n' $n "$file"
  done
}

refuse() {
  cat "$kernels/add_0.metal" - > "$scratch/wrong.metal" <<< "$2"
  unit "$scratch/wrong.metal" > "$scratch/wrong.cl"
  if [[ $(check "$scratch/wrong.cl" 2>&1) != *"error: "*"$3"* ]]; then
    echo "clang does not refuse as it must: $1" >&2
    exit 1
  fi
}

unit "$kernels"/*.metal > "$scratch/all.cl"
unit "$kernels/add_0.metal" > "$scratch/add.cl"
check "$scratch/add.cl"
refuse "a bracket is missing" "void wrong() {" "expected '}'"
refuse "a vector is returned as an integer" "uint wrong(metal::float4 a) { return a; }" "cannot initialize return object"
refuse "a name is unknown" "uint wrong() { return absent; }" "undeclared identifier"
refuse "a constructor with too few elements" "metal::float4 wrong(metal::float2 a) { return metal::float4(a, 1.0); }" \
  "no matching function"
refuse "types that do not agree" "uint wrong(uint a, float b) { return metal::max(a, b); }" "no matching function"
refuse "memory of the device taken for the workgroup's" \
  "void wrong(threadgroup uint& a); void also(device uint& a) { wrong(a); }" "no matching function"
refuse "a constant is written" "void wrong(constant Params& a) { a.width = 1u; }" "not assignable"
refuse "matrices that Metal lacks" "typedef metal::simdgroup_half16x16 Wrong;" "simdgroup_half16x16"
check "$scratch/all.cl"
echo "clang: $(grep -c '^namespace' "$scratch/all.cl") kernels in MSL"
