#!/usr/bin/env bash
# One asset for each line of a file, one after the other:  launch_examples/many_prompts.sh prompts.txt [key=value ...]
# Blank lines, and lines that start with #, are passed over.
set -uo pipefail

if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    echo "usage: $0 FILE [key=value ...]    (FILE: one prompt a line)" >&2
    exit 2
fi
file=$(realpath "$1")
shift
if ! tr -d '\000' <"$file" | cmp -s - "$file"; then
    echo "$file is no UTF-8 text: save it as UTF-8." >&2 # NUL bytes: UTF-16, most likely
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
failed=0
while IFS= read -r line || [ -n "$line" ]; do # the last line may lack its end
    prompt=${line#$'\xef\xbb\xbf'} # the mark that Windows puts before UTF-8
    prompt=${prompt%$'\r'}
    [[ $prompt =~ ^[[:space:]]*(#|$) ]] && continue
    python launch.py --config configs/ism-gs.yaml --train system.prompt_processor.prompt="$prompt" "$@" </dev/null
    code=$?
    if [ $code -ge 128 ]; then exit $code; fi # stopped: not the next one
    [ $code -eq 0 ] || { echo "failed: $prompt" >&2; failed=$((failed + 1)); }
done <"$file"
exit $((failed > 0))
