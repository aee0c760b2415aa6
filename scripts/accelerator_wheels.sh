#!/bin/sh
# Fetches what benchmarks/accelerator.py needs beside jax, for a Linux machine (x86-64, Python 3.12)
# without a package index, into .wheels (about 45 MB). On that machine, with its own jax:
#
#   python3 -m pip install --no-index --find-links .wheels flax optax orbax-checkpoint pillow &&
#     python3 benchmarks/accelerator.py
#
# pip takes from .wheels what is missing and leaves the rest. Names given here are fetched as well
# (such as timm).
set -eu
cd "$(dirname "$0")/.."
platforms=""
for version in 2014 _2_17 _2_24 _2_27 _2_28 _2_34; do
  platforms="$platforms --platform manylinux${version}_x86_64"
done
# shellcheck disable=SC2086
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp $platforms --dest .wheels \
  flax optax orbax-checkpoint pillow absl-py aiofiles etils humanize markdown-it-py mdurl msgpack \
  nest-asyncio \
  prometheus-client protobuf psutil pygments pyyaml rich simplejson tensorstore treescope \
  typing-extensions uvloop "$@"
