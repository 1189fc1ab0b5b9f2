#!/usr/bin/env bash
# Links the extension into a threestudio checkout:  launch_examples/install_into_threestudio.sh ~/threestudio
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR    (DIR: a threestudio checkout)" >&2
    exit 2
fi
if [ ! -f "$1/threestudio/__init__.py" ]; then
    echo "$1 is no threestudio checkout: it has no threestudio/__init__.py. Get one with" >&2
    echo "  git clone https://github.com/threestudio-project/threestudio" >&2
    exit 2
fi
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$(cd "$1" && pwd)/custom/threestudio-lucid
if [ -e "$target" ] && [ ! -L "$target" ]; then
    echo "$target exists and is no link: move it away first." >&2
    exit 2
fi
mkdir -p "$(dirname "$target")"
ln -sfn "$source/custom/threestudio-lucid" "$target"
echo "linked $target"
echo "next:  cd $1 && pip install numba plyfile scikit-image trimesh && python launch.py --config $source/configs/ism-gs.yaml --train"
