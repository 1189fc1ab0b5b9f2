"""``key.sub=value`` items of a command line, put into a config.

What a value means is decided by the field that it is for.  A field of text takes the text as it was typed,
whatever is in it: ``a mug: blue #1 ${x}``.  Any other field takes a list or a mapping in brackets, a number,
true, false or null as YAML reads them, or else text; there are no comments.  Quotes around the whole of a
value are YAML's, and taken off.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import threestudio
from threestudio.utils.errors import CommandLineError, UserError

_KEY = re.compile(r"[A-Za-z_][\w\-]*(\.[\w\-]+|\[\d+\])*")
_UNREADABLE = (
    yaml.YAMLError,
    OmegaConfBaseException,
    AttributeError,
    TypeError,
    ValueError,
    RecursionError,
)


def apply_overrides(tree: dict[str, Any], items: Iterable[str], top: type) -> None:
    """Change ``tree`` as the items say; mappings are merged, everything else is replaced.

    A reference that an item reaches into is followed when all other items are in place, since what it says
    may depend on them.  No other reference is followed.

    Args:
        tree: the config as plain dicts and lists, with its ``${...}``.
        items: ``key.sub=value``; of two for one key the later counts.
        top: the dataclass of the config's top level.

    Raises:
        CommandLineError: an item that is not ``key=value``, is no text, or whose value cannot be read.
    """
    given = [_split(item) for item in items]
    given.sort(key=_names_a_class, reverse=True)  # which decide what the others mean
    waiting = []
    for path, text in given:
        value = read_value(text, annotation_of(path, tree, top), ".".join(path))
        if not _put(tree, path, value):
            waiting.append((path, value))
    for path, value in waiting:
        _put(tree, path, value, follow=True)


# ---- items -------------------------------------------------------------------------------------------------


def _split(item: str) -> tuple[list[str], str]:
    """The names of the key, and the text of the value."""
    key, separator, text = item.partition("=")
    if not separator or not _KEY.fullmatch(key):
        raise CommandLineError(_bad_item_message(item, key, bool(separator)))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CommandLineError(f"{key}: {text!a} is no text: it has bytes that are not UTF-8.") from None
    return re.findall(r"[\w\-]+", key), text


def _names_a_class(item: tuple[list[str], str]) -> int:
    """Larger for what must be known earlier: system_type, then system.geometry_type, then all others."""
    path, _ = item
    return -len(path) if path[-1].endswith("_type") else -sys.maxsize


def _bad_item_message(item: str, key: str, has_value: bool) -> str:
    if item.startswith("-"):
        return f"Unknown option {item!r}. Settings are written key.sub=value; --help shows the options."
    if item.startswith(("+", "~")):
        return f"Cannot read {item!r}: write key.sub=value, without + or ~; keys cannot be deleted here."
    if not has_value:
        return f'Cannot read {item!r}: write key.sub=value, and quote values with spaces: key="a b".'
    return f"Cannot read {item!r}: {key!r} is not a config key such as system.guidance.guidance_scale."


# ---- values ------------------------------------------------------------------------------------------------


def read_value(text: str, annotation: Any = None, key: str = "") -> Any:
    """What ``text`` means for a field of that type, None if unknown.  References of the field stay.

    >>> read_value("a #1", str), read_value("[1, 2]", str), read_value("[1, 2]"), read_value("1e-3")
    ('a #1', '[1, 2]', [1, 2], 0.001)

    Raises:
        CommandLineError: brackets that hold no list and no mapping.
    """
    quoted = _unquoted(text)
    if is_text(annotation):
        if type(None) in typing.get_args(annotation) and text.strip() in ("", "null"):
            return None
        return escaped(text if quoted is None else quoted)
    if quoted is not None:
        return quoted
    if text.strip()[:1] in ("[", "{"):
        try:
            return _from_yaml(text)
        except _UNREADABLE as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CommandLineError(
                f"Cannot read the value of {key}={text}: {reason}. If it is text, quote it twice, "
                f"e.g. {key}='\"[a] b\"'."
            ) from error
    try:
        value = text if "#" in text else _from_yaml(text)
    except _UNREADABLE:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _from_yaml(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]


def _unquoted(text: str) -> str | None:
    """The text within quotes that are around the whole of it."""
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, str) else None


def escaped(text: str) -> str:
    r"""``text`` for OmegaConf, which would take ``${...}`` in it for a reference.

    >>> escaped("a ${x} mug")
    'a \\${x} mug'
    """
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


def escape_all(value: Any) -> Any:
    """Plain dicts and lists with every text `escaped`."""
    if isinstance(value, dict):
        return {key: escape_all(v) for key, v in value.items()}
    if isinstance(value, list):
        return [escape_all(v) for v in value]
    return escaped(value) if isinstance(value, str) else value


# ---- fields ------------------------------------------------------------------------------------------------


def is_text(annotation: Any) -> bool:
    """Whether a field takes text and nothing else: ``str``, a path, or either with None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = set(typing.get_args(annotation)) if union else {annotation}
    return str in members and members <= {str, Path, type(None)}


def annotations_of(owner: Any) -> dict[str, Any]:
    """The types of a dataclass's fields or a function's arguments, as far as they can be told."""
    try:
        return typing.get_type_hints(owner)
    except Exception:  # names that are imported for type checkers alone
        return dict(getattr(owner, "__annotations__", {}))


def annotation_of(path: list[str], tree: dict[str, Any], top: type) -> Any:
    """The type of a config's field, None where it cannot be told.

    Args:
        path: names of the key.
        tree: the config, which says in ``x_type`` whose field ``x.y`` is.
        top: the dataclass of its top level.
    """
    owner, section = top, tree
    for depth, name in enumerate(path[:-1]):
        registered = section.get(f"{name}_type")
        owner = _lightnings(name) if depth == 0 and registered is None else _config_class(registered)
        section = section.get(name)
        if not isinstance(section, dict):
            section = {}
    return annotations_of(owner).get(path[-1]) if owner is not None else None


def _lightnings(section: str) -> Any:
    """What takes the sections whose keys are arguments of Lightning's."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    return {"trainer": Trainer.__init__, "checkpoint": ModelCheckpoint.__init__}.get(section)


def _config_class(registered: Any) -> Any:
    """The dataclass of a registered name: ``Config`` of its class, or ``NAMEConfig`` beside class NAME."""
    try:
        cls = threestudio.find(registered)
    except (UserError, TypeError, AttributeError):
        return None
    beside = getattr(sys.modules[cls.__module__], f"{cls.__name__}Config", None)
    return getattr(cls, "Config", beside)


# ---- the tree ----------------------------------------------------------------------------------------------


def _put(tree: dict[str, Any], path: list[str], value: Any, follow: bool = False) -> bool:
    """Set a value; False, and nothing is done, where a reference would have to be followed first."""
    at: Any = tree
    for depth, name in enumerate(path):
        key, child = _child(at, name, path)
        last = depth == len(path) - 1
        if _is_reference(child) and (not last or isinstance(value, dict)):
            if not follow:
                return False
            child = at[key] = _referred(tree, path[: depth + 1])
        if last:
            at[key] = _merged(child, value)
        elif not isinstance(child, dict | list):
            child = at[key] = {}
        at = child
    return True


def _child(at: Any, name: str, path: list[str]) -> tuple[Any, Any]:
    """Key or index of a name in a dict or list, and what is there."""
    if isinstance(at, dict):
        return name, at.get(name)
    if not name.isdigit() or int(name) >= len(at):
        raise CommandLineError(f"{'.'.join(path)}: there is a list of {len(at)} here, which has no {name}.")
    return int(name), at[int(name)]


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _referred(tree: dict[str, Any], path: list[str]) -> Any:
    """What a reference in the tree stands for, if it is a mapping or a list; else an empty mapping."""
    node = OmegaConf.select(OmegaConf.create(tree), "".join(f"[{name}]" for name in path))
    content = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return escape_all(content) if isinstance(content, dict | list) else {}


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
