"""Words for the toybox: ten colours, the things' names, direction words; captions out, specifications in."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.86, 0.12),
    "green": (0.14, 0.62, 0.20),
    "blue": (0.12, 0.30, 0.88),
    "purple": (0.50, 0.16, 0.72),
    "pink": (0.98, 0.52, 0.74),
    "brown": (0.50, 0.28, 0.12),
    "white": (0.97, 0.97, 0.97),
    "black": (0.09, 0.09, 0.10),
}
VIEWS = ("side", "front", "back", "overhead")  # threestudio's direction2idx


def direction(elevation: float, azimuth: float) -> str:
    """threestudio's direction word for a camera (degrees).

    Overhead above elevation 60, else front within 45 of azimuth 0, back beyond 135, and side between.
    """
    if elevation > 60:
        return "overhead"
    azimuth = (azimuth + 180) % 360 - 180
    return "front" if abs(azimuth) < 45 else "back" if abs(azimuth) > 135 else "side"


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for.

    ``color`` is the thing's own when the prompt names none; the others may be None.
    """

    object: str
    color: str
    part_color: str | None = None
    view: str | None = None
    pose: str | None = None
    decoration: str | None = None


def caption(
    name: str,
    color: str,
    part_color: str | None = None,
    view: str | None = None,
    drop_color: bool = False,
    pose: str | None = None,
    decoration: str | None = None,
) -> str:
    """A caption such as ``"a white snowman with a red hat, front view"`` or ``"a red mug with stars"``.

    Args:
        name: a key of ``toybox.objects.OBJECTS``.
        color: of its main part.
        part_color: of its optional part (``Thing.part_option``), which is then named.
        view: one of ``VIEWS``, or None for no direction words.
        drop_color: leave the main colour's word out (only honest when it is the thing's own colour).
        pose: for a person, the words of its pose.
        decoration: one of ``Thing.decorations``, which is then named; None leaves it open.
    """
    from .objects import OBJECTS

    thing = OBJECTS[name]
    if name == "person":
        words = ["a person" if drop_color else f"a person with a {color} shirt"]
        if part_color:
            words.append(f"{'with' if drop_color else 'and'} {part_color} trousers")
        text = " ".join(words)
    else:
        described = name if drop_color else f"{color} {name}"
        text = f"{'an' if described[0] in 'aeiou' else 'a'} {described}"
        if part_color:
            # "red fins" takes no article, "a red hat" does.
            article = "" if thing.part_option.endswith("s") else ("an " if part_color[0] in "aeiou" else "a ")
            text += f" with {article}{part_color} {thing.part_option}"
        if decoration:
            text += f" {'and' if part_color else 'with'} {decoration}"
    if pose:
        text += f", {pose}"
    return f"{text}, {view} view" if view else text


def vocabulary(decorated: bool = True) -> list[str]:
    """Every word that a caption can hold, sorted; without those for decorations unless `decorated`."""
    from .objects import OBJECTS, POSES

    words = {
        "a",
        "an",
        "with",
        "and",
        "view",
        "shirt",
        "trousers",
        *COLORS,
        *VIEWS,
        *(decorations() if decorated else ()),
    }
    for thing in OBJECTS.values():
        words.update(thing.name.split())
        words.update((thing.part_option or "").split())
    for pose in POSES:
        words.update(pose.split())
    return sorted(words)


def decorations() -> list[str]:
    """Every word for a decoration, sorted."""
    from .objects import OBJECTS

    return sorted({word for thing in OBJECTS.values() for word in thing.decorations})


def parse(prompt: str) -> Spec:
    """What a prompt of the toybox asks for.

    Raises:
        ValueError: the prompt names no thing of the toybox; the message lists the nearest and all.
    """
    from .objects import OBJECTS, POSES

    text = prompt.lower().strip().rstrip(".")
    segments = [s.strip() for s in text.split(",")]
    view = next((v for v in VIEWS for s in segments[1:] if s == f"{v} view"), None)
    pose = next((p for p in POSES if p in segments[1:]), None)
    words = segments[0].split()
    head, _, tail = segments[0].partition(" with ")
    name = next((n for n in OBJECTS if n in head.split() or (" " in n and n in head)), None)
    if name is None:
        near = get_close_matches(words[-1] if words else "", list(OBJECTS), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no thing of the toybox in {prompt!r}.{hint} It knows: {', '.join(OBJECTS)}.")
    if name == "person":
        dress = tail.replace(",", " ").split()
        worn = {dress[i + 1]: dress[i] for i in range(len(dress) - 1) if dress[i] in COLORS}
        return Spec(name, worn.get("shirt", OBJECTS[name].default_color), worn.get("trousers"), view, pose)
    color = next((w for w in head.split() if w in COLORS), OBJECTS[name].default_color)
    part_color = next((w for w in tail.split() if w in COLORS), None)
    decoration = next((w for w in tail.split() if w in OBJECTS[name].decorations), None)
    return Spec(name, color, part_color, view, pose, decoration)
