"""Makes golden_ism.json by running LucidDreamer's published step on the inputs of `replay`.

    python tests/guidance/make_golden.py CHECKOUT_OF_EnVision-Research/LucidDreamer

The published `train_step` and `train_step_perpneg` run unchanged. Around them: the network is
`replay.network`, the encoder is the identity (images are the latents), flips are off, and the two random
draws (noise, index) return what the case asks for. Not part of the tests: the file it makes is committed, and
was made from commit 2ecf093.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import replay  # noqa: E402


def import_published(checkout: Path) -> types.ModuleType:
    """`guidance.sd_utils` of the checkout, under present-day diffusers and without torchvision."""
    import diffusers.utils
    from diffusers import StableDiffusionPipeline  # noqa: F401 (before torchvision is replaced)
    from diffusers.utils.torch_utils import randn_tensor
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    diffusers.utils.randn_tensor = randn_tensor
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision.transforms"].Compose = lambda transforms: lambda x: x
    sys.modules["torchvision.transforms"].RandomHorizontalFlip = lambda p: None
    sys.modules["torchvision.utils"].save_image = None
    sys.path.insert(0, str(checkout))
    import guidance.sd_utils

    return guidance.sd_utils


class FixedDraws:
    """Stands for the name `torch` in the published module: the same but for the random draws."""

    def __init__(self, index: int):
        self.index = index

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def randn(self, shape: tuple, **kwargs) -> torch.Tensor:
        return replay.noise() if tuple(shape) == tuple(replay.noise().shape) else torch.zeros(shape)

    def randint(self, low: int, high: int, *args, **kwargs) -> torch.Tensor:
        return torch.tensor([self.index])


def published_step(module: types.ModuleType, case: dict) -> dict:
    """Runs one published step; what went into the network tells x_s and x_t."""
    from diffusers import DDIMScheduler

    calls = []

    def unet(x, t, encoder_hidden_states):
        calls.append(x.detach().clone())
        return types.SimpleNamespace(sample=replay.network(x, t, encoder_hidden_states))

    sd = module.StableDiffusion.__new__(module.StableDiffusion)
    torch.nn.Module.__init__(sd)
    sd.device, sd.precision_t, sd.unet = "cpu", torch.float32, unet
    sd.scheduler = DDIMScheduler(**replay.scheduler_config(case))
    sd.scheduler.set_timesteps(1000)
    sd.timesteps = torch.flip(sd.scheduler.timesteps, dims=(0,))
    sd.min_step, sd.max_step, sd.warmup_step = 20, 500, 480
    sd.ism, sd.sche_func = not case["sds"], module.ddim_step
    sd.noise_gen, sd.noise_temp = None, torch.zeros(1)
    sd.alphas = sd.scheduler.alphas_cumprod
    sd.encode_imgs = lambda images: (images, None)
    module.torch = FixedDraws(case["index"])

    emb = replay.embeddings()
    text = [emb["uncond"], emb["text"], *(emb["negatives"] if case["perp_neg"] else ())]
    options = types.SimpleNamespace(
        annealing_intervals=True,
        delta_t=case["delta_t"],
        delta_t_start=100,
        xs_delta_t=case["delta_s"],
        xs_inv_steps=case["xs_inv_steps"],
        xs_eta=0.0,
        denoise_guidance_scale=case["inversion_guidance_scale"],
        guidance_scale=case["guidance_scale"],
        fix_noise=False,
        vis_interval=10**9,
    )
    latents = replay.latents().requires_grad_()
    step = sd.train_step_perpneg if case["perp_neg"] else sd.train_step
    extra = {"weights": torch.cat([torch.ones(1, replay.BATCH), emb["weights"]])} if case["perp_neg"] else {}
    loss = step(
        torch.stack(text),
        latents,
        pred_depth=latents[:, :1],
        pred_alpha=latents[:, :1],
        grad_scale=0.1,
        iteration=case["iteration"],
        warm_up_rate=1.0 - min(case["iteration"] / 1500, 1.0),
        resolution=(8 * replay.SIZE, 8 * replay.SIZE),
        guidance_opt=options,
        embedding_inverse=torch.stack([emb["uncond"][0], emb["inverse"][0]]),
        **extra,
    )
    loss.backward()
    found = {"grad": latents.grad, "x_t": calls[-1][: replay.BATCH]}
    if not case["sds"]:
        found["x_s"] = calls[-2][: replay.BATCH]
    return {name: [float(f"{v:.9g}") for v in tensor.flatten().tolist()] for name, tensor in found.items()}


def main() -> None:
    module = import_published(Path(sys.argv[1]))
    rows = [{"case": case, **published_step(module, case)} for case in replay.cases()]
    body = ",\n".join(json.dumps(row) for row in rows)
    (HERE / "golden_ism.json").write_text(f"[\n{body}\n]\n")
    print(f"{len(rows)} cases")


if __name__ == "__main__":
    main()
