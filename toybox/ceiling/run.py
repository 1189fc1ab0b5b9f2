"""Trains the ceiling of a run, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from toybox import runs

LAUNCH = Path(__file__).parents[2] / "launch.py"


def train_ceiling(run: Path, instance: int) -> Path:
    """Train a run's Gaussians on true pictures, unless that has been done; returns the folder of that run.

    It lies beside the run's and is called RUN-ceiling-INSTANCE. First points, capacity, learning rates,
    density control, number of steps and cameras are the run's own. What was stopped goes on.

    Args:
        run: the folder of a finished run of Gaussians.
        instance: seed of the true object.

    Raises:
        FileNotFoundError: no run.
        ValueError: a run of something else, or one that cannot be made again.
    """
    folder, config = runs.config_of(run)
    if config["system_type"].partition(":")[0] != "lucid-dreamer-system":
        raise ValueError(
            f"{folder} was made by {config['system_type']}: a ceiling is for Gaussians from text."
        )
    ceiling = folder.with_name(f"{folder.name}-ceiling-{instance}")
    if (ceiling / "save" / f"it{config['trainer']['max_steps']}.ply").is_file():
        return ceiling
    settings = {
        "system_type": "toybox-truth-system",
        "system.instance": instance,
        "system.as_latent_ratio": 0.0,
        "system.renderer.scale_noise": 0.0,
        "exp_root_dir": folder.parents[1],
        "name": folder.parent.name,
        "tag": ceiling.name,
        "use_timestamp": "false",
        "data.n_test_views": 2,
        "trainer.limit_val_batches": 0,
    }
    if (last := ceiling / "ckpts" / "last.ckpt").exists():
        settings["resume"] = last
    parsed = str(folder / "configs" / "parsed.yaml")
    command = [sys.executable, "-m", "toybox.ceiling", "--config", parsed, "--train"]
    command += [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode in (130, 143):  # Ctrl+C, SIGTERM
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise ValueError(f"the ceiling of {folder} failed, see above")
    return ceiling
