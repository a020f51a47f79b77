#!/usr/bin/env bash
# Looks for data races with ThreadSanitizer: in tests/threads.rs, and in answers of a tiny model on the CPU's pool of
# threads. It must see what locks do, so std is compiled as well, from LIBRARY: the folder `library` of rustc's
# sources, of the very version of `rustc`. Takes some five minutes of processor time; not a part of the gate.
#
# valgrind's drd and helgrind know neither atomics nor locks that are not of pthreads, and so take all that a thread
# hands to another for a race: some 600 places in one answer of a tiny model.
#
# usage: bash .ci/races.sh LIBRARY
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

library=${1:?usage: bash .ci/races.sh LIBRARY}
target=x86_64-unknown-linux-gnu
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
# A GPU's driver is not instrumented.
export REQUIRE_GPU=0 VK_DRIVER_FILES=/nonexistent VK_ICD_FILENAMES=/nonexistent
export RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT=$library CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/races}
export CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 TSAN_OPTIONS=exitcode=66

# It must say no to a race.
rustc --edition 2024 -O -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -o "$log/mistakes" .ci/mistakes.rs
code=0
"$log/mistakes" race &> /dev/null || code=$?
[ $code = 66 ] || { echo "ThreadSanitizer did not find a race" >&2; exit 1; }

# The second flag has crossbeam do without fences, which ThreadSanitizer does not know.
export RUSTFLAGS="-Zsanitizer=thread --cfg crossbeam_sanitize_thread"
build=(-Z build-std=std,panic_unwind --release --target $target)
cargo test "${build[@]}" --test threads
cargo build "${build[@]}" --example generate
for type in f16 q4_0 q4_k; do
  "$CARGO_TARGET_DIR/$target/release/examples/generate" --device cpu --threads 4 --model synthetic:tiny:$type \
    --context 64 --seed 1 --max-tokens 24 --prompt "a prompt of many rows" > /dev/null
done
echo "no data race"
