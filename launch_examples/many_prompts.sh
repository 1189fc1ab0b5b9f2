#!/usr/bin/env bash
# One asset for each line of a file, one after the other:  launch_examples/many_prompts.sh prompts.txt [key=value ...]
set -uo pipefail

if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    echo "usage: $0 FILE [key=value ...]    (FILE: one prompt a line)" >&2
    exit 2
fi
file=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
failed=0
while IFS= read -r prompt; do
    [ -n "$prompt" ] || continue
    python launch.py --config configs/ism-gs.yaml --train system.prompt_processor.prompt="$prompt" "$@" </dev/null ||
        { echo "failed: $prompt" >&2; failed=$((failed + 1)); }
done <"$file"
exit $((failed > 0))
