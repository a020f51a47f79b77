#!/usr/bin/env bash
# Unpacks Debian packages into a folder, with all that they depend on; nothing is installed. They come with the C
# library they were built for, so their programs start through its loader.
#
# usage: .ci/unpack.sh FOLDER RELEASES PACKAGES [ALONE]: into FOLDER/root, from the last of the releases where it has
#        them; those of ALONE without what they depend on
set -euo pipefail

folder=${1:?usage: unpack.sh FOLDER RELEASES PACKAGES [ALONE]} releases=$2 wanted=$3 alone=${4:-}
if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get > /dev/null; then
  echo "unpack.sh: needs Debian on x86-64" >&2
  exit 1
fi

# An apt of its own: other releases from the mirror this machine uses, and a record of nothing installed, so
# that the packages come with everything they depend on.
apt=$folder/apt
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep --max-count 1 -E '/debian/?$')
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
: > "$apt/status"
for release in $releases; do
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
# shellcheck disable=SC2086 # one argument a package, here and below
packages=$(apt-get --simulate --target-release "${releases##* }" install $wanted |
  sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p')
cd "$apt/cache"
# shellcheck disable=SC2086
apt-get -qq download $packages $alone
# What is interrupted leaves no root that looks complete.
rm -rf "$folder/root" "$folder/root.part"
for package in *.deb; do dpkg-deb --extract "$package" "$folder/root.part"; done
mv "$folder/root.part" "$folder/root"
rm -rf "$apt"
