#!/usr/bin/env bash
# Fetches Dawn, the WebGPU of Chromium, into a folder as the npm package `webgpu`. Nothing is installed.
#
# usage: .ci/webgpu.sh FOLDER        once; after that FOLDER/node_modules/webgpu is there
set -euo pipefail

folder=${1:?usage: webgpu.sh FOLDER}
version=0.6.2

mkdir -p "$folder"
if ! grep -qs "\"version\": \"$version\"" "$folder/node_modules/webgpu/package.json"; then
  npm install --silent --ignore-scripts --no-audit --no-fund --no-package-lock --prefix "$folder" "webgpu@$version" >&2
fi
