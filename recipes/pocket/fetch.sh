#!/bin/sh
# Fetch and unpack the public packages that pocket is made from (145 MB) under build/pocket/src.
# Needs npm, and apt-get with dpkg: on another system take the two .deb files from a Debian mirror by hand.
set -eu
work=${1:-build/pocket}
mkdir -p "$work/src"
cd "$work/src"
for package in @iconify/json@2.2.535 emojibase-data@17.0.0; do
    archive=$(npm pack --silent "$package")
    folder=$(echo "${package%@*}" | tr -d '@' | tr '/' '-')
    mkdir -p "$folder"
    tar xzf "$archive" -C "$folder" --strip-components=1
done
for package in openclipart-svg wordnet-base; do
    apt-get download "$package"
    mkdir -p "$package"
    dpkg -x "$package"_*.deb "$package"
done
