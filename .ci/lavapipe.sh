#!/usr/bin/env bash
# Unpacks a recent lavapipe (Mesa's Vulkan driver that runs on the CPU) into a folder; nothing is installed.
# Debian 12 ships Mesa 22; this one, from Debian 13's backports, has subgroups of the same kind, f16 and
# cooperative matrices. It comes with the C library it was built for, so programs start through its loader.
#
# usage: .ci/lavapipe.sh FOLDER        once; after that FOLDER/run PROGRAM ARGUMENTS...
#        CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=FOLDER/run cargo test --release
set -euo pipefail

mkdir -p "${1:?usage: lavapipe.sh FOLDER}"
folder=$(cd "$1" && pwd)
libraries=$folder/root/usr/lib/x86_64-linux-gnu
driver=$libraries/libvulkan_lvp.so

if [ ! -e "$driver" ]; then
  releases="trixie trixie-backports"
  bash "$(dirname "${BASH_SOURCE[0]}")/unpack.sh" "$folder" "$releases" "mesa-vulkan-drivers libvulkan1" >&2
fi

# The driver's own description names it by the place where it would be installed.
description=$folder/lavapipe.json
sed -E "s|(\"library_path\": *)\"[^\"]*\"|\1\"$driver\"|" \
  "$folder"/root/usr/share/vulkan/icd.d/lvp_icd*.json > "$description"
cat > "$folder/run" <<RUN
#!/bin/sh
export VK_DRIVER_FILES=$description VK_ICD_FILENAMES=$description
export XDG_RUNTIME_DIR=\${XDG_RUNTIME_DIR:-/tmp}
exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries "\$@"
RUN
chmod +x "$folder/run"
