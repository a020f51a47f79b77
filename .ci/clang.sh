#!/usr/bin/env bash
# Unpacks clang into a folder, without headers and libraries to link with: it checks MSL. Nothing is installed.
#
# usage: .ci/clang.sh FOLDER        once; after that FOLDER/run ARGUMENTS...
set -euo pipefail

mkdir -p "${1:?usage: clang.sh FOLDER}"
folder=$(cd "$1" && pwd)
libraries=$folder/root/usr/lib/x86_64-linux-gnu
clang=$folder/root/usr/lib/llvm-19/bin/clang

[ -e "$clang" ] || bash "$(dirname "${BASH_SOURCE[0]}")/unpack.sh" "$folder" trixie libclang-cpp19 clang-19 >&2

cat > "$folder/run" <<RUN
#!/bin/sh
exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries $clang "\$@"
RUN
chmod +x "$folder/run"
