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

if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get > /dev/null; then
  echo "lavapipe.sh: needs Debian on x86-64" >&2
  exit 1
fi

# An apt of its own: other releases from the mirror this machine uses, and a record of nothing installed, so
# that the packages come with everything they depend on.
unpack() {
  local apt=$folder/apt release mirror packages
  mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep --max-count 1 -E '/debian/?$')
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$folder/root"
  : > "$apt/status"
  for release in trixie trixie-backports; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main"
  done > "$apt/sources.list"
  cat > "$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
CONF
  export APT_CONFIG=$apt/apt.conf
  apt-get -qq update
  packages=$(apt-get --simulate --target-release trixie-backports install mesa-vulkan-drivers libvulkan1 |
    sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p')
  (
    cd "$apt/cache"
    # shellcheck disable=SC2086 # one argument a package
    apt-get -qq download $packages
    for package in *.deb; do dpkg-deb --extract "$package" "$folder/root"; done
  )
  rm -rf "$apt"
}
[ -e "$driver" ] || (unpack) >&2

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
