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
echo "next, in threestudio's environment (its own pins are of 2023; pip replaces only what is older than this):"
echo "  cd $1"
echo "  pip install 'torch>=2.6' 'diffusers>=0.36' 'transformers>=4.57' 'accelerate>=1.0' 'peft>=0.17' \\"
echo "    'safetensors>=0.4.5' 'omegaconf>=2.3' 'numpy>=1.26' 'scipy>=1.12' 'numba>=0.61' 'pillow>=10.1' \\"
echo "    'plyfile>=1.1' 'trimesh>=4.4' 'scikit-image>=0.24'"
echo "  python launch.py --config $source/configs/ism-gs.yaml --train"
