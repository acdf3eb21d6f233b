#!/bin/sh
# Fetch and unpack the public packages that pocket is made from and tested with (337 MB) under build/pocket/src.
# Run again, it fetches what is missing.     usage: sh recipes/pocket/fetch.sh [WORK]
# Needs npm, and apt-get with dpkg: on another system take the four .deb files from a Debian mirror by hand.
set -eu
work=${1:-build/pocket}
mkdir -p "$work/src"
cd "$work/src"
for package in @iconify/json@2.2.535 emojibase-data@17.0.0; do
    folder=$(echo "${package%@*}" | tr -d '@' | tr '/' '-')
    [ -d "$folder" ] && continue
    archive=$(npm pack --silent "$package")
    rm -rf "$folder.part" && mkdir "$folder.part"
    tar xzf "$archive" -C "$folder.part" --strip-components=1
    mv "$folder.part" "$folder"
done
for package in openclipart-svg wordnet-base tuxpaint-stamps-default dataset-fashion-mnist; do
    [ -d "$package" ] && continue
    apt-get download "$package"
    rm -rf "$package.part" && mkdir "$package.part"
    dpkg -x "$package"_*.deb "$package.part"
    mv "$package.part" "$package"
done
