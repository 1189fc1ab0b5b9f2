"""Where the time of a training step goes, and how far from its floor it is.

    python -m benchmarks.step                                # the mini prior, on this machine
    python -m benchmarks.step --prior sd21-shape --steps 60  # Stable Diffusion 2.1's shapes, random weights
    python -m benchmarks.step --prior sd21 --config configs/sds-gs.yaml system.guidance.compile=true

Trains as launch.py would, for a few steps that go through all phases of a run, without clone, split and
prune, and measures each part of every step. Calls of the UNet and of the VAE's encoder (both passes) are the
diffusion model's own time; whatever else the guidance does is its overhead. The floor is the model calls'
arithmetic at the rate of a large matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import threestudio
import threestudio_lucid  # noqa: F401 - registers its modules
from benchmarks import report
from benchmarks.shapes import sd21_shape
from threestudio.utils.config import load_config
from threestudio_lucid.files import write_text
from threestudio_lucid.recipe import find_recipe
from toybox import page

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """Seconds spent in named parts of a step; on CUDA between the stream's events, which wait for nothing."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.spans: list[tuple[str, Any, Any]] = []
        self.samples: dict[str, int] = defaultdict(int)  # of a first argument's batch, over all calls

    def now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, start: Any) -> None:
        self.spans.append((name, start, self.now()))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.add(name, start)

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method of an object."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.samples[name] += len(args[0]) if args and torch.is_tensor(args[0]) and args[0].dim() else 1
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        if self.on_gpu:
            torch.cuda.synchronize()
        spent: dict[str, float] = defaultdict(float)
        for name, start, end in self.spans:
            spent[name] += start.elapsed_time(end) / 1e3 if self.on_gpu else end - start
        self.spans.clear()
        return spent


def instrument(system: Any, clock: Clock) -> None:
    """Time the parts of a system's steps."""
    prior, guidance = system.guidance.prior, system.guidance
    clock.wrap(system.renderer, "forward", "render")
    clock.wrap(prior, "predict", "unet")
    clock.wrap(system, "manual_backward", "backward")

    encode = prior.encode

    def timed_encode(images: Tensor, *args: Any) -> Tensor:
        marks: list[Any] = []
        if images.requires_grad:
            images.register_hook(lambda grad: clock.add("vae backward", marks.pop()))
        with clock.part("vae"):
            latents = encode(images, *args)
        if latents.requires_grad:
            latents.register_hook(lambda grad: marks.append(clock.now()))
        return latents

    prior.encode = timed_encode
    guided = type(guidance).__call__

    class Timed(type(guidance)):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with clock.part("guidance"):
                return guided(self, *args, **kwargs)

    guidance.__class__ = Timed


def train(config: str, overrides: list[str], steps: int, warm_up: int) -> tuple[Any, list[dict], Clock]:
    """Seconds of each part, for every step after `warm_up` others; the system, and counts of samples."""
    cfg = load_config(config, cli_args=overrides, n_gpus=1)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = threestudio.find(cfg.data_type)(cfg.data)
    system = threestudio.find(cfg.system_type)(cfg.system)
    clock, rows = Clock(), []

    class Watch(pl.Callback):
        def on_fit_start(self, *_: Any) -> None:
            instrument(system, clock)
            self.start = clock.now()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            clock.add("step", self.start)  # since the last one's end, for making a batch takes time too
            spent = clock.read()
            self.start = clock.now()
            if trainer.global_step > warm_up:
                rows.append(spent)
            else:
                clock.samples.clear()

    trainer = pl.Trainer(
        max_steps=steps + warm_up,
        accelerator="gpu" if clock.on_gpu else "cpu",
        devices=1,
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(system, datamodule=data)
    return system, rows, clock


def shares(row: dict[str, float]) -> dict[str, float]:
    """A step's seconds by part, each moment counted once; they add up to `step`."""
    vae = row["vae"] + row["vae backward"]
    guidance = row["guidance"] - row["unet"] - row["vae"]
    backward = row["backward"] - row["vae backward"]
    known = row["render"] + row["unet"] + vae + guidance + backward
    return {
        "step": row["step"],
        "render": row["render"],
        "unet": row["unet"],
        "vae": vae,
        "guidance": guidance,
        "backward": backward,
        "rest": row["step"] - known,
    }


# ---- the floor ---------------------------------------------------------------------------------------------


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product of random numbers."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock, times = Clock(), []
    for _ in range(10):
        with clock.part("matmul"):
            a @ b
        times.append(clock.read()["matmul"])
    return 2 * size**3 / statistics.median(times[3:])


def model_flops(prior: Any) -> dict[str, float]:
    """Operations for one sample: of the denoiser, and of the VAE's encoder and its gradient."""
    size, channels = prior.latent_size, prior.latent_channels
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.randn(1, channels, size, size, device=prior.device, dtype=prior.dtype)
        width = prior.unet.config.cross_attention_dim
        text = torch.randn(1, 77, width, device=prior.device, dtype=prior.dtype)
        prior.unet(x, torch.ones(1, device=prior.device), text)
    unet = counter.get_total_flops()
    side = prior.card.image_size
    with FlopCounterMode(display=False) as counter:
        pixels = torch.rand(1, 3, side, side, device=prior.device, dtype=prior.dtype).requires_grad_()
        prior.vae.encoder(pixels).float().sum().backward()
    return {"unet": unet, "vae": counter.get_total_flops()}


# ---- command line ------------------------------------------------------------------------------------------


def measure(config: str, overrides: list[str], steps: int, warm_up: int) -> dict[str, Any]:
    """Medians of the parts, in seconds, and the floor."""
    system, rows, clock = train(config, overrides, steps, warm_up)
    parts = [shares(row) for row in rows]
    seconds = {name: statistics.fmean(part[name] for part in parts) for name in parts[0]}
    prior = system.guidance.prior
    unet_samples = clock.samples["unet"] / len(rows)
    guided = seconds["unet"] + seconds["vae"] + seconds["guidance"]
    result = {
        "prior": prior.card.name,
        "dtype": str(prior.dtype).removeprefix("torch."),
        "seconds": seconds,
        "median_step": statistics.median(part["step"] for part in parts),
        "unet_samples_per_step": unet_samples,
        "overhead_of_guidance": seconds["guidance"] / guided,
    }
    views = int(system.trainer.datamodule.cfg.batch_size)
    flops, rate = model_flops(prior), matmul_rate(prior.device, prior.dtype)
    result["flops_per_sample"], result["matmul_flops_per_second"] = flops, rate
    result["run_steps"] = find_recipe(prior.card.path)["steps"]
    result["floor_seconds"] = (unet_samples * flops["unet"] + views * flops["vae"]) / rate
    return result


def print_table(result: dict[str, Any]) -> None:
    seconds = result["seconds"]
    print(f"\n{result['name']}: prior {result['prior']} in {result['dtype']}")
    for name, value in seconds.items():
        if name != "step":
            print(f"  {name:10} {1e3 * value:9.2f} ms {value / seconds['step']:6.1%}")
    print(f"  {'step':10} {1e3 * seconds['step']:9.2f} ms (median {1e3 * result['median_step']:.2f})")
    minutes = result["run_steps"] * seconds["step"] / 60
    print(f"  a run of {result['run_steps']} steps at this rate: {minutes:.1f} minutes")
    print(
        f"  of the guidance's own time {result['overhead_of_guidance']:.1%} is neither UNet nor VAE; "
        f"{result['unet_samples_per_step']:.1f} UNet samples a step"
    )
    print(
        f"  floor of the model calls {1e3 * result['floor_seconds']:.2f} ms at "
        f"{result['matmul_flops_per_second'] / 1e12:.1f} TFLOP/s of a matrix product"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """A page with the step's parts beside the floor of the model calls."""
    parts = {name: 1e3 * value for name, value in result["seconds"].items() if name != "step"}
    bars = {"step": parts, "floor": {"model calls": 1e3 * result["floor_seconds"]}}
    chart = page.bar_chart(f"A step with {result['prior']}", bars, "ms")
    write_text(path, page.page("Where the time of a step goes", [chart]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=str(ROOT / "configs/ism-gs.yaml"), help="(%(default)s)")
    parser.add_argument(
        "--prior", default="mini", help="sd21-shape, or as system.guidance.prior (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=40, help="to measure (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before those (%(default)s)")
    parser.add_argument("--out", type=Path, default=report.FOLDER / "step.json", help="(%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    options = parser.parse_intermixed_args(arguments)

    prior = sd21_shape(report.FOLDER) if options.prior == "sd21-shape" else options.prior
    start = ["system.geometry.init=shape:sphere"] if options.prior == "sd21-shape" else []
    overrides = [
        f"system.guidance.prior={prior}",
        f"trainer.max_steps={options.steps + options.warm_up}",
        "system.density.every=1000000",
        *start,
        *options.overrides,
    ]
    report.print_machine()
    result = {"name": Path(options.config).stem, "overrides": overrides}
    result |= measure(options.config, overrides, options.steps, options.warm_up)
    print_table(result)
    draw(result, options.out.with_suffix(".html"))
    report.write(result, options.out)


if __name__ == "__main__":
    main()
