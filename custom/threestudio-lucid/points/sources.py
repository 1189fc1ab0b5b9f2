"""Where a cloud comes from, as configs write it: "shape:ball", "file:points.ply", "text:a mug", "shap-e"."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import UserError, closest
from ..guidance.cards import announce
from .cloud import PointCloud
from .files import is_gaussian_ply, read_points
from .frame import GLTF, GLTF_SUFFIXES, OPENAI, OURS
from .meshes import read_mesh, sample_ply
from .npz import read_npz
from .shapes import SHAPES

# The kinds there are, each with what stands behind its colon. (A program may register more.)
KINDS = {
    "text": "text:PROMPT, or text alone for the prompt",
    "shape": f"shape:{'|'.join(SHAPES)}",
    "file": "file:PATH of .ply, .npz, .obj, .glb or .gltf",
    "shap-e": "shap-e:PROMPT, or shap-e alone for the prompt",
    "body": "body:mannequin, body:smplx:FOLDER or body:file:PATH",
}
SUFFIXES = (".ply", ".npz", ".obj", ".glb", ".gltf")
# Where points reach farther than this many radii, the cameras will hardly see them.
FAR = 4.0


def split_source(source: str, kinds: Iterable[str] = tuple(KINDS)) -> tuple[str, str]:
    """ "shape:ball" -> ("shape", "ball"), "text" -> ("text", "").

    Raises:
        UserError: no such kind of source; lists the kinds.
    """
    kind, _, value = str(source).partition(":")
    kinds = list(kinds)
    if kind not in kinds:
        near = closest(kind, kinds, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        forms = "; ".join(KINDS.get(name, f"{name}:...") for name in kinds)
        raise UserError(f"{source!r} is no source of points.{hint} There is: {forms}.")
    return kind, value.strip()


def check_shape(name: str) -> None:
    """Raises UserError unless it is one of `SHAPES`; lists them."""
    if name not in SHAPES:
        raise UserError(f"There is no shape {name!r}; there is: {', '.join(SHAPES)}. Example: shape:ball.")


def check_suffix(path: str | Path) -> None:
    """Raises UserError unless files that end like this are read; lists the endings."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{str(path)!r} is no file that points are read from; it must end in {', '.join(SUFFIXES)}. "
            "Example: file:mug.ply."
        )


def read_file(
    path: str | Path,
    n: int,
    generator: torch.Generator,
    *,
    up: str = "",
    front: str = "",
    fit: bool | None = None,
    radius: float = 0.5,
) -> PointCloud:
    """Points of a file, in our axes: `n` on a mesh, as many as there are of a cloud.

    Args:
        up, front: axes of the file, such as "+y"; empty: +y and +z in glTF files, +z and -y in Point-E's
            archives, else +z and +x, which are ours.
        fit: move and scale the cloud so that its bounding box is centred and 2 radius long; None: meshes.

    Raises:
        UserError: see `files.read_points`, `npz.read_npz`, `meshes.read_mesh`, `frame.Frame.changed`.
    """
    check_suffix(path)
    suffix, frame, mesh = Path(path).suffix.lower(), OURS, False
    if suffix == ".npz":
        cloud, from_point_e = read_npz(path)
        frame = OPENAI if from_point_e else OURS
    elif suffix == ".ply":
        surface = None if is_gaussian_ply(path) else sample_ply(path, n, generator)
        mesh = surface is not None
        cloud = surface if mesh else read_points(path)
    else:
        mesh = True
        cloud, frame = read_mesh(path, n, generator), GLTF if suffix in GLTF_SUFFIXES else OURS
    cloud = cloud.turned(frame.changed(up, front))
    if mesh if fit is None else fit:
        return cloud.fitted(radius)
    reach = float(cloud.points.abs().max())
    if reach > FAR * radius:
        announce(
            f"The points of {path} reach {reach:.3g} units from the origin, and objects are meant to reach "
            f"about {radius:g}: system.geometry.init_args.fit=true rescales them."
        )
    return cloud
