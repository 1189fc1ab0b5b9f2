#!/usr/bin/env bash
# Train the bundled prior on a machine with a GPU, in about ten minutes, and leave it in OUT.
#
#   bash launch_examples/train_prior_gpu.sh OUT [MINUTES]
#
# All that it needs is in the project. Pictures, latents and checkpoints stay in the cache, so that the same
# command goes on where the last one stopped; a minute of MINUTES (6) goes to the release. Try it beforehand on
# a CPU: IMAGES=3240 bash launch_examples/train_prior_gpu.sh /tmp/prior 2
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: train_prior_gpu.sh OUT [MINUTES]}
minutes=${2:-6}
prior=custom/threestudio-lucid/priors/mini
train() { python -m toybox.train_prior "$@"; }

mkdir -p "$out"
cp -r "$prior/." "$out"
train --stage data --images "${IMAGES:-48000}" --workers "$(nproc)"
train --stage latents --vae "$prior"
train --stage unet --start "$prior" --minutes "$minutes"
train --stage release --start "$prior" --minutes "$(python -c "print(max($minutes / 6, 0.5))")" --new
train --stage export --start "$prior" --out "$out"
