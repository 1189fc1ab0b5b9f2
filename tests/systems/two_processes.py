"""One of two processes of a toy run, or one alone with the batch of both: two_processes.py FOLDER RANK SIZE

It trains twice. "still": nothing moves, all cameras are given, and what the first round of density control
gets is saved. "moving": the ordinary toy run, whose first Gaussians differ by rank until they are shared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VIEWS = 4


def main(folder: Path, rank: int, size: int) -> None:
    import torch
    from toy import launch, toy_config

    import threestudio
    import threestudio_lucid  # noqa: F401 (registers)
    from threestudio_lucid.data.cameras import view_batch
    from threestudio_lucid.data.orbit import circle

    cameras = threestudio.find("lucid-camera-datamodule")
    splatting = threestudio.find("lucid-gaussian-splatting")

    @threestudio.register("recording-splatting")
    class Recording(splatting):
        """Saves the statistics that density control decides by."""

        def refine(self, *args, **kwargs):
            file = folder / f"statistics-{rank}-of-{size}.pt"
            if not file.exists():
                torch.save((self.cloud.grad_sum.clone(), self.cloud.grad_count.clone()), file)
            return super().refine(*args, **kwargs)

    @threestudio.register("given-cameras")
    class Given(cameras):
        """Of VIEWS views, this process's, at every step."""

        def setup(self, stage=None):
            super().setup(stage)
            views = view_batch(circle(VIEWS, 20.0, 3.0, 40.0), 24, 24, rays=False)
            mine = slice(rank * VIEWS // size, (rank + 1) * VIEWS // size)
            part = {key: value[mine] if hasattr(value, "shape") else value for key, value in views.items()}
            self.train_dataset.batch = lambda step: dict(part)

    @threestudio.register("recording-system")
    class System(threestudio.find("lucid-dreamer-system")):
        """Saves what each process has in the end; checkpoints are the first one's."""

        def on_train_end(self):
            super().on_train_end()
            torch.save(self.state_dict(), folder / f"final-{rank}-of-{size}.pt")

    together = {"accelerator": "cpu", "devices": size, "strategy": "ddp" if size > 1 else "auto"}

    still = toy_config(folder / f"still-{rank}-of-{size}")
    still["data_type"] = "given-cameras"
    still["data"]["batch_size"] = VIEWS // size
    system = still["system"]
    system["geometry_type"] = "recording-splatting"
    rates = ("means", "quats", "scales", "opacities", "sh_dc", "sh_rest")
    system["geometry"] |= {f"lr_{name}": 0.0 for name in rates}
    system["renderer"] = {"scale_noise": 0.0, "bg_aug_ratio": 0.0}
    system["as_latent_ratio"] = 0.0
    system["loss"] = {"lambda_sds": float(VIEWS // size), "lambda_tv": 0.0, "lambda_scale": 0.0}
    system["density"] |= {"reset_every": 0}
    still["trainer"] |= {"max_steps": 3, **together}
    launch(still, folder / f"still-{rank}-of-{size}")

    if size > 1:
        moving = toy_config(folder / f"moving-{rank}")
        moving["system"]["geometry"] |= {"seed": rank, "sh_degree": 1}
        moving["system_type"] = "recording-system"
        moving["trainer"] |= together
        launch(moving, folder / f"moving-{rank}")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(Path(__file__).parent), str(root / "tests"), str(root)]
    import conftest  # noqa: F401 (makes threestudio and the extension importable)

    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
