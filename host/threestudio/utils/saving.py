"""What a system writes: the ``save_*`` methods of `SaverMixin` put files below one folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from threestudio.utils import images
from threestudio.utils.errors import ConfigValueError
from threestudio.utils.files import atomic_path, make_folder, write_text
from threestudio.utils.glb import write_glb
from threestudio.utils.obj import write_obj
from threestudio.utils.video import write_video


class SaverMixin:
    """Saving of pictures, videos, meshes and data.

    File names are relative to the save folder and may hold sub-folders, which are made.  Every file appears
    whole or not at all.  ``name`` and ``step`` also send a picture to Weights & Biases when that is on.
    """

    _save_dir: str | None = None
    _wandb_logger: Any = None

    # ---- where ---------------------------------------------------------------------------------------------

    def set_save_dir(self, save_dir: str) -> None:
        """Where the files go; the folder is made with the first of them."""
        self._save_dir = str(save_dir)

    def get_save_dir(self) -> str:
        """The save folder.

        Raises:
            ValueError: `set_save_dir` has not been called.
        """
        if self._save_dir is None:
            raise ValueError("The save folder is not set: call set_save_dir first.")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """``filename`` below the save folder; its parent folders are made."""
        path = os.path.join(self.get_save_dir(), filename)
        make_folder(os.path.dirname(path))
        return path

    # ---- loggers -------------------------------------------------------------------------------------------

    def create_loggers(self, cfg_loggers: Any) -> None:
        """Loggers besides TensorBoard and CSV: ``wandb: {enable: true, project: ..., name: ...}``.

        Raises:
            ConfigValueError: an unknown logger, or Weights & Biases asked for and not installed.
        """
        for name in cfg_loggers:
            if name != "wandb":
                raise ConfigValueError(
                    f"loggers.{name}: unknown logger; the host knows 'wandb' (TensorBoard is on)."
                )
        wandb = cfg_loggers.get("wandb", None)
        if not wandb or not wandb.get("enable", False):
            return
        from pytorch_lightning.loggers import WandbLogger

        options = {key: value for key, value in wandb.items() if key != "enable"}
        try:
            self._wandb_logger = WandbLogger(**options)
        except ModuleNotFoundError as error:
            raise ConfigValueError(
                "loggers.wandb.enable: wandb is not installed; pip install wandb."
            ) from error

    def get_loggers(self) -> list[Any]:
        """The loggers of `create_loggers`."""
        return [self._wandb_logger] if self._wandb_logger is not None else []

    def _log_media(self, name: str | None, step: int | None, path: str, video: bool = False) -> None:
        if name is None or self._wandb_logger is None:
            return
        if video:
            self._wandb_logger.log_video(key=name, videos=[path], step=step)
        else:
            self._wandb_logger.log_image(key=name, images=[path], step=step)

    # ---- pictures ------------------------------------------------------------------------------------------

    def convert_data(self, data: Any) -> Any:
        """Tensors as numpy arrays, in lists and dicts too."""
        return images.to_numpy(data)

    def save_rgb_image(
        self,
        filename: str,
        img: Any,
        data_format: str = "HWC",
        data_range: Sequence[float] = (0, 1),
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Save [H, W, C] or [C, H, W] values; 3k channels are laid side by side."""
        return self._save_picture(filename, images.rgb_image(img, data_format, data_range), name, step)

    def save_uv_image(
        self,
        filename: str,
        img: Any,
        data_format: str = "HWC",
        data_range: Sequence[float] = (0, 1),
        cmap: str = "checkerboard",
    ) -> str:
        """Save texture coordinates [H, W, 2] as a checkerboard or as colours ("color")."""
        return self._save_picture(filename, images.uv_image(img, data_format, data_range, cmap))

    def save_grayscale_image(
        self,
        filename: str,
        img: Any,
        data_range: Sequence[float] | None = None,
        cmap: str | None = "jet",
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Save [H, W] values in the colours of ``cmap`` (jet, magma, spectral; None is gray)."""
        return self._save_picture(filename, images.grayscale_image(img, data_range, cmap), name, step)

    def save_image_grid(
        self,
        filename: str,
        imgs: list[Any],
        align: Any = "max",
        name: str | None = None,
        step: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> str:
        """Save many pictures as one; see `threestudio.utils.images.grid_image` for ``imgs`` and ``align``."""
        return self._save_picture(filename, images.grid_image(imgs, align, texts), name, step)

    def save_image(self, filename: str, img: Any) -> str:
        """Save a uint8 [H, W], [H, W, 3] or [H, W, 4] picture, or a uint16 [H, W] one, as it is.

        Raises:
            ValueError: another dtype.
        """
        img = np.asarray(self.convert_data(img))
        if img.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"save_image takes uint8 or uint16, got {img.dtype}; save_rgb_image takes floats."
            )
        return self._save_picture(filename, img)

    def save_cubemap(
        self, filename: str, img: Any, data_range: Sequence[float] = (0, 1), rgba: bool = False
    ) -> str:
        """Save faces [6, H, H, C] (+x, -x, +y, -y, +z, -z) as a cross; ``rgba`` keeps a fourth channel."""
        faces = np.asarray(self.convert_data(img))
        if faces.ndim != 4 or faces.shape[0] != 6:
            raise ValueError(f"A cube map is [6, H, H, C], got {faces.shape}.")
        faces = images.to_bytes(images.rescale(faces[..., : 4 if rgba else 3], data_range))
        side = faces.shape[1]
        cross = np.zeros((3 * side, 4 * side, faces.shape[3]), dtype=np.uint8)
        for face, (row, column) in enumerate(((1, 2), (1, 0), (0, 1), (2, 1), (1, 1), (1, 3))):
            cross[row * side : (row + 1) * side, column * side : (column + 1) * side] = faces[face]
        return self._save_picture(filename, cross)

    def _save_picture(
        self, filename: str, img: np.ndarray, name: str | None = None, step: int | None = None
    ) -> str:
        path = self.get_save_path(filename)
        with atomic_path(path) as temporary:
            Image.fromarray(img).save(temporary)
        self._log_media(name, step, path)
        return path

    def save_img_sequence(
        self,
        filename: str,
        img_dir: str,
        matcher: str,
        save_format: str = "mp4",
        fps: float = 30,
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Join the pictures of a folder below the save folder, in the order of a number in their names.

        Args:
            matcher: regular expression whose first group is the number, e.g. ``r"(\\d+)\\.png"``.
            save_format: "mp4" or "gif"; the suffix is added to ``filename`` when missing.

        Raises:
            ValueError: no picture matches, or an unknown format.
        """
        if not filename.endswith(save_format):
            filename += f".{save_format}"
        folder = Path(self.get_save_dir()) / img_dir
        pattern = re.compile(matcher)
        found = [(pattern.search(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
        numbered = sorted((int(match.group(1)), path) for match, path in found if match)
        if not numbered:
            raise ValueError(f"Nothing in {folder} matches {matcher!r}.")
        path = self.get_save_path(filename)
        frames = (np.asarray(Image.open(picture).convert("RGB")) for _, picture in numbered)
        write_video(path, frames, fps=fps, save_format=save_format)
        self._log_media(name, step, path, video=True)
        return path

    # ---- data and meshes -----------------------------------------------------------------------------------

    def save_data(self, filename: str, data: Any) -> str:
        """Save arrays: a dict as .npz, anything else as .npy; the suffix is added when missing."""
        data = self.convert_data(data)
        suffix = ".npz" if isinstance(data, dict) else ".npy"
        path = self.get_save_path(filename if filename.endswith(suffix) else filename + suffix)
        with atomic_path(path) as temporary:
            if isinstance(data, dict):
                np.savez(temporary, **data)
            else:
                np.save(temporary, data)
        return path

    def save_state_dict(self, filename: str, data: Any) -> str:
        """``torch.save``."""
        path = self.get_save_path(filename)
        with atomic_path(path) as temporary:
            torch.save(data, temporary)
        return path

    def save_json(self, filename: str, payload: Any) -> str:
        """Save as JSON text."""
        path = self.get_save_path(filename)
        write_text(path, json.dumps(payload, indent=2) + "\n")
        return path

    def save_file(self, filename: str, src_path: str) -> str:
        """Copy ``src_path``."""
        path = self.get_save_path(filename)
        with atomic_path(path, durable=True) as temporary:
            shutil.copyfile(src_path, temporary)
        return path

    def save_mesh(
        self, filename: str, v_pos: Any, t_pos_idx: Any, v_tex: Any = None, t_tex_idx: Any = None
    ) -> str:
        """Save vertices [Nv, 3] and triangles [Nf, 3] in the suffix's format, without texture coordinates."""
        import trimesh

        path = self.get_save_path(filename)
        mesh = trimesh.Trimesh(
            vertices=self.convert_data(v_pos), faces=self.convert_data(t_pos_idx), process=False
        )
        with atomic_path(path) as temporary:
            mesh.export(temporary)
        return path

    def save_obj(
        self,
        filename: str,
        mesh: Any,
        save_mat: bool = False,
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,
        map_Ks: Any = None,
        map_Bump: Any = None,
        map_Pm: Any = None,
        map_Pr: Any = None,
        map_format: str = "jpg",
    ) -> list[str]:
        """Save a `threestudio.models.mesh.Mesh` as Wavefront OBJ.

        Args:
            save_mat: write an .mtl of the same name, with the given maps as textures beside it.
            save_normal, save_uv, save_vertex_color: write ``v_nrm``, ``v_tex``, ``v_rgb`` of the mesh.
            map_Kd, map_Ks, map_Bump, map_Pm, map_Pr: colour [H, W, 3], specular [H, W, 3], bump [H, W, 3],
                metallic [H, W], roughness [H, W], in [0, 1].
            map_format: suffix of the textures.

        Returns:
            The paths written, the .obj first.
        """
        path = self.get_save_path(filename if filename.endswith(".obj") else filename + ".obj")
        maps = {"Kd": map_Kd, "Ks": map_Ks, "Bump": map_Bump, "Pm": map_Pm, "Pr": map_Pr}
        return write_obj(
            path,
            v_pos=self.convert_data(mesh.v_pos),
            t_pos_idx=self.convert_data(mesh.t_pos_idx),
            v_nrm=self.convert_data(mesh.v_nrm) if save_normal else None,
            v_tex=self.convert_data(mesh.v_tex) if save_uv else None,
            t_tex_idx=self.convert_data(mesh.t_tex_idx) if save_uv else None,
            v_rgb=self.convert_data(mesh.v_rgb) if save_vertex_color else None,
            maps={key: self.convert_data(value) for key, value in maps.items() if value is not None}
            if save_mat
            else None,
            map_format=map_format,
        )

    def save_glb(
        self,
        filename: str,
        mesh: Any,
        save_normal: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,
        map_Pm: Any = None,
        map_Pr: Any = None,
    ) -> str:
        """Save a `threestudio.models.mesh.Mesh` as binary glTF, y up as glTF has it.

        Args:
            save_normal, save_vertex_color: write ``v_nrm``, ``v_rgb`` of the mesh.
            map_Kd, map_Pm, map_Pr: colour [H, W, 3], metallic [H, W], roughness [H, W], in [0, 1], at the
                mesh's ``v_tex``.
        """
        path = self.get_save_path(filename if filename.endswith(".glb") else filename + ".glb")
        maps = {"Kd": map_Kd, "Pm": map_Pm, "Pr": map_Pr}
        maps = {key: self.convert_data(value) for key, value in maps.items() if value is not None}
        return write_glb(
            path,
            v_pos=self.convert_data(mesh.v_pos),
            t_pos_idx=self.convert_data(mesh.t_pos_idx),
            v_nrm=self.convert_data(mesh.v_nrm) if save_normal else None,
            v_tex=self.convert_data(mesh.v_tex) if maps else None,
            t_tex_idx=self.convert_data(mesh.t_tex_idx) if maps else None,
            v_rgb=self.convert_data(mesh.v_rgb) if save_vertex_color else None,
            maps=maps,
        )
