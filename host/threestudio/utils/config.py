"""Configs: YAML files and ``key=value`` into checked dataclasses."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)

import threestudio
from threestudio.kinds import LEFT_OUT, ROLES, unknown_name
from threestudio.utils.errors import (
    ConfigFileError,
    ConfigValueError,
    UnknownKeyError,
    UnknownNameError,
    closest,
    did_you_mean,
    is_user_error,
)
from threestudio.utils.misc import schedule_knots
from threestudio.utils.overrides import annotations_of, apply_overrides, escape_all, escaped, is_text

# ---- resolvers ---------------------------------------------------------------------------------------------


def C_max(value: Any) -> float:
    """The largest value a scheduled scalar reaches.

    >>> C_max([100, 1.0, 0.0, 200])
    1.0
    """
    if isinstance(value, (int, float)):
        return value
    return max(knot_value for _, knot_value in schedule_knots(value))


_RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda path: os.path.basename(path),
    "rmspace": lambda s, sub: str(s).replace(" ", sub),
    "tuple2": lambda x: OmegaConf.create([float(x), float(x)]),  # omegaconf 2.3 takes no plain list
    "gt0": lambda s: s > 0,
    "cmaxgt0": lambda s: C_max(s) > 0,
    "cmaxgt0orcmaxgt0": lambda a, b: C_max(a) > 0 or C_max(b) > 0,
    "not": lambda s: not s,
}


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Make ``${name:...}`` call ``resolver``; a later registration of the same name wins."""
    with warnings.catch_warnings():
        # omegaconf 2.4 renames this function; 2.3 has only this name.
        warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
        OmegaConf.register_new_resolver(name, resolver, replace=True)


for _name, _resolver in _RESOLVERS.items():
    register_resolver(_name, _resolver)


# ---- the experiment ----------------------------------------------------------------------------------------

MAX_SEED = 2**32 - 2**16
"""Numpy's seeds have 32 bits; what is left is for the ranks that are added."""

MAX_NAME_BYTES = 160
"""Longest trial folder name, timestamp included: files of long prompts must still fit a path."""

COMPUTED_KEYS = {
    "exp_dir": "it is exp_root_dir/name: give those",
    "trial_name": "it is made of tag and timestamp: give those",
    "trial_dir": "it is exp_root_dir/name/tag: give those",
    "n_gpus": "the GPUs are counted: --gpu 0,1 says which",
}
"""Keys of `ExperimentConfig` that a saved config holds and nobody gives, and what to give instead."""


@dataclass
class ExperimentConfig:
    """The top level of a config file."""

    name: str = "default"
    """First folder below exp_root_dir."""
    description: str = ""
    """One line for people."""
    tag: str = ""
    """Name of the trial."""
    seed: int = 0
    """Seed of everything random; each process adds its rank."""
    use_timestamp: bool = True
    """Append @date-time to the tag, so that each trial has a folder of its own."""
    timestamp: str | None = None
    """The timestamp itself; a saved config has one, and runs from it continue in the same folder."""
    exp_root_dir: str = "outputs"
    """Where results go."""

    exp_dir: str = "outputs/default"
    """Computed: exp_root_dir/name."""
    trial_name: str = "exp"
    """Computed: tag + timestamp."""
    trial_dir: str = "outputs/default/exp"
    """Computed: exp_dir/trial_name."""
    n_gpus: int = 1
    """Computed: how many devices train."""

    resume: str | None = None
    """Checkpoint to continue from."""

    data_type: str = ""
    """Registered name of the datamodule."""
    data: dict = field(default_factory=dict)
    """Its config."""

    system_type: str = ""
    """Registered name of the system."""
    system: dict = field(default_factory=dict)
    """Its config."""

    trainer: dict = field(default_factory=dict)
    """Arguments of pytorch_lightning.Trainer."""
    checkpoint: dict = field(default_factory=dict)
    """Arguments of pytorch_lightning's ModelCheckpoint."""

    def __post_init__(self) -> None:
        if not self.tag and not self.use_timestamp:
            raise ConfigValueError("Give a tag, or leave use_timestamp true: the trial needs a name.")
        if isinstance(self.seed, int) and not 0 <= self.seed <= MAX_SEED:  # other types are refused later
            raise ConfigValueError(f"seed is {self.seed}; it must be 0 to {MAX_SEED}.")
        if self.timestamp is None:
            self.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S") if self.use_timestamp else ""
        _check_inside("name", str(self.name))
        if re.search(r"[/\\\x00-\x1f]", str(self.timestamp)) or len(str(self.timestamp).encode()) > 64:
            raise ConfigValueError(
                f"timestamp is {self.timestamp!r}; it is the end of a folder's name, of at most 64 bytes, "
                "without slashes. exp_root_dir=... says where results go."
            )
        self.trial_name = folder_name(str(self.tag), suffix=str(self.timestamp))
        self.exp_dir = os.path.join(str(self.exp_root_dir), str(self.name))
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)


def _check_inside(key: str, path: str) -> None:
    """Raise a ConfigValueError if ``path``, given as ``key``, would not be a folder below exp_root_dir."""
    parts = re.split(r"[/\\]", path)
    too_long = any(len(part.encode(errors="surrogatepass")) > 255 for part in parts)
    if Path(path).is_absolute() or ".." in parts or re.search(r"[\x00-\x1f]", path) or too_long:
        raise ConfigValueError(
            f"{key} is {path!r}; it names a folder below exp_root_dir, which says where results go."
        )


def folder_name(tag: str, suffix: str = "") -> str:
    """``tag + suffix`` as one folder name, without separators, of at most `MAX_NAME_BYTES` bytes.

    A tag that is too long is cut and ends in a hash of the whole: different prompts keep different names.
    """
    clean = re.sub(r"[/\\\x00-\x1f]", "_", tag)
    room = MAX_NAME_BYTES - len(suffix.encode())
    if len(clean.encode()) > room:
        digest = hashlib.sha256(tag.encode()).hexdigest()[:8]
        clean = clean.encode()[: room - 9].decode(errors="ignore") + "-" + digest
    name = clean + suffix
    return name if name.strip(".") else "_" + name


# ---- loading -----------------------------------------------------------------------------------------------


def load_config(
    *yamls: str, cli_args: Sequence[str] = (), from_string: bool = False, **kwargs: Any
) -> ExperimentConfig:
    """Merge YAML files (or strings) < ``cli_args`` < ``kwargs``, resolve, and check the top level.

    Unlike threestudio's, it creates no folder: whoever writes into ``trial_dir`` makes it.

    Args:
        yamls: paths, or the text itself with ``from_string``; later ones win.
        cli_args: ``key.sub=value`` items, see `threestudio.utils.overrides`.
        kwargs: top-level values, e.g. ``n_gpus``.

    Raises:
        UserError: whatever is wrong with them, and where.
    """
    parts = [_parse_yaml(text, "the config text") if from_string else _load_yaml(text) for text in yamls]
    _reject_computed(parts, cli_args)
    try:
        merged = OmegaConf.merge(*parts)
        if not isinstance(merged, DictConfig):
            raise ConfigValueError("A config file is a mapping of keys to values.")
        tree = OmegaConf.to_container(merged)
        apply_overrides(tree, cli_args, ExperimentConfig)
        tree |= kwargs
        _reject_missing(tree)
        # Not OmegaConf.resolve, after which texts with an escaped ${ would be references.
        resolved = escape_all(OmegaConf.to_container(OmegaConf.create(tree), resolve=True))
        _reject_infinite(resolved)
    except OmegaConfBaseException as error:
        raise _readable(error) from error
    return parse_structured(ExperimentConfig, OmegaConf.create(resolved))


def _reject_computed(files: Sequence[DictConfig], items: Sequence[str]) -> None:
    """Raise an error for computed keys that are given; a config that a run saved holds them all."""
    given = {item.partition("=")[0] for item in items}
    for file in files:
        given |= set() if all(key in file for key in COMPUTED_KEYS) else {str(key) for key in file}
    for key, instead in COMPUTED_KEYS.items():
        if key in given:
            raise ConfigValueError(f"{key} cannot be given: {instead}.")


def _load_yaml(path: str) -> DictConfig:
    file = Path(path)
    if not file.is_file():
        raise ConfigFileError(_missing_config_message(file))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"Cannot read the config file {file}: {error}.") from error
    return _parse_yaml(text, str(file))


def _missing_config_message(file: Path) -> str:
    what = "is a folder, not a config file" if file.is_dir() else "does not exist"
    message = f"The config file {file} {what}."
    folders = [
        file if file.is_dir() else file.parent,
        Path("configs"),
        *sorted(Path("custom").glob("*/configs")),
    ]
    choices = list(dict.fromkeys(str(path) for folder in folders for path in sorted(folder.glob("*.yaml"))))
    by_name: dict[str, str] = {}
    for choice in choices:
        by_name.setdefault(Path(choice).stem, choice)
    near = [by_name[stem] for stem in closest(file.stem, by_name)]
    listed = near or choices[:12]
    if listed:
        message += (" Did you mean: " if near else " There is: ") + ", ".join(listed) + "?"[: bool(near)]
    return message


def _parse_yaml(text: str, source: str) -> DictConfig:
    try:
        parsed = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigValueError(f"{where}: not YAML: {problem}.\n  {line.rstrip()}".rstrip()) from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigValueError(f"{source}: {_first_line(error)}") from error
    # OmegaConf reads a lone word as {word: None}.
    if not isinstance(parsed, DictConfig):
        raise ConfigValueError(f"{source}: a config file is a mapping of keys to values.")
    return parsed


def _reject_missing(tree: dict[str, Any]) -> None:
    missing = _missing_keys(tree)
    if missing:
        _reject_left_out(tree)  # who would answer, only to hear that it cannot run?
        examples = " ".join(f"{key}=..." for key in missing)
        raise ConfigValueError(f"The config leaves {', '.join(missing)} for you to give: add {examples}.")


def _reject_left_out(given: dict[str, Any], where: str = "") -> None:
    """UnknownNameError if a `*_type` of the config is one that this host leaves out."""
    for key, value in given.items():
        if isinstance(value, dict):
            _reject_left_out(value, f"{where}{key}.")
        elif key in ROLES and isinstance(value, str):
            for name in re.split("[:,]", value):
                if name in LEFT_OUT and name not in threestudio.__modules__:
                    raise UnknownNameError(
                        f"{where}{key}: {unknown_name(name, threestudio.__modules__, ROLES[key])}", name=name
                    )


def _reject_infinite(value: Any, key: str = "") -> None:
    """Raise ConfigValueError that names the key of a number that is infinite or none."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _reject_infinite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _reject_infinite(inner, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigValueError(f"{key} is {value}; it must be a finite number.")


def _missing_keys(value: Any, key: str = "") -> list[str]:
    """The full keys whose value is ???; omegaconf 2.3's own search stumbles over references to them."""
    if isinstance(value, dict):
        return [
            found for k, v in value.items() for found in _missing_keys(v, f"{key}.{k}" if key else str(k))
        ]
    if isinstance(value, list):
        return [found for i, v in enumerate(value) for found in _missing_keys(v, f"{key}[{i}]")]
    return [key] if value == "???" else []


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _user_error_within(error: BaseException) -> BaseException | None:
    """The user's mistake that a resolver reported and omegaconf wrapped, if that is what happened."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not is_user_error(cause):
        cause = cause.__cause__ or cause.__context__
    return cause


def _readable(error: OmegaConfBaseException, section: str = "") -> Exception:
    """An omegaconf error as one line that names the key in full."""
    key = error.full_key or ""
    if section and not key.startswith(section):
        key = f"{section}.{key}" if key else section
    where = f"{key}: " if key else ""
    detail = _first_line(error)
    if isinstance(error, (MissingMandatoryValue, InterpolationToMissingValueError)):
        return ConfigValueError(f"{where}a value is needed here (??? in the config). {detail}.")
    if isinstance(error, InterpolationKeyError):
        return ConfigValueError(
            f"{where}{detail}. A ${{...}} reference names a key from the top of the config."
        )
    if isinstance(error, UnsupportedInterpolationType):
        names = sorted(_RESOLVERS)
        return ConfigValueError(
            f"{where}{detail}. The host's own: {', '.join(names)}; extensions may add theirs."
        )
    if isinstance(error, GrammarParseError):
        return ConfigValueError(f"{where}cannot read the ${{...}} expression: {detail}.")
    if isinstance(error, ConfigKeyError):
        return UnknownKeyError(f"{where}{detail}.")
    mistake = _user_error_within(error)
    if mistake is not None:
        # At the end: the first key that refers to the mistaken value need not be the one to mend.
        return ConfigValueError(f"{mistake}" + (f" (Found when reading {key}.)" if key else ""))
    return ConfigValueError(f"{where}{detail}.")


# ---- sections ----------------------------------------------------------------------------------------------


def config_to_primitive(config: Any, resolve: bool = True) -> Any:
    """A config node as plain dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=resolve)


def dump_config(path: str, config: Any) -> None:
    """Write ``config`` as YAML, whole or not at all."""
    from threestudio.utils.files import write_text

    write_text(path, OmegaConf.to_yaml(config))


def parse_structured(fields: Any, cfg: dict | DictConfig | None = None) -> Any:
    """``cfg`` checked against the dataclass ``fields``, as a structured config.

    Scalars are checked and coerced.  A list or mapping passes unchecked into any field but one of text, which
    is how a schedule fits a field annotated ``float``.

    Raises:
        UnknownKeyError: (a TypeError) keys that ``fields`` does not have.
        ConfigValueError: (a ValueError) a value of the wrong type, or one that ``__post_init__`` refuses.
    """
    cfg = {} if cfg is None else cfg
    section = _Section.of(fields, cfg)
    try:
        values = _values_of(cfg)
    except OmegaConfBaseException as error:
        raise _readable(error, section.key) from error
    _reject_unknown_keys(section, fields, values)
    _reject_lists_as_text(section, fields, values)
    try:
        instance = fields(**values)
        _escape_texts(instance)
        parsed = OmegaConf.structured(instance)
    except OmegaConfBaseException as error:
        raise _type_error(section, fields, values, error) from error
    except (ValueError, TypeError) as error:
        if is_user_error(error):
            error.args = (section.prefix(str(error)), *error.args[1:])
            raise
        if (wrong := _wrong_type(fields, values)) is not None:
            raise _type_error(section, fields, values, wrong) from error
        if isinstance(error, TypeError) and "missing" not in str(error):
            raise
        raise ConfigValueError(section.prefix(str(error))) from error
    for key, value in values.items():
        if isinstance(value, str) and value != "???":  # omegaconf reads "inf" where a number is wanted
            _reject_infinite(parsed[key], f"{section.key}.{key}" if section.key else key)
    if section.key:
        parsed._set_key(section.key)  # so that sections nested in this one know their full name
    return parsed


@dataclass
class _Section:
    """What to call a part of the config in messages."""

    key: str
    """Full key, "" when unknown or the top level."""
    name: str
    """Registered name, or the dataclass's."""

    @classmethod
    def of(cls, fields: Any, cfg: Any) -> _Section:
        key = ""
        name = None
        if isinstance(cfg, DictConfig):
            key = cfg._get_full_key(None) or ""
            parent, own = cfg._get_parent(), cfg._key()
            if isinstance(parent, DictConfig) and isinstance(own, str):
                name = parent.get(f"{own}_type", None)
        if not isinstance(name, str) or not name:
            name = _owner_name(fields)
        return cls(key, name)

    def __str__(self) -> str:
        if self.name == ExperimentConfig.__name__:
            return "the top level of the config"
        return f"{self.key} ({self.name})" if self.key else self.name

    def prefix(self, message: str) -> str:
        return message if self.name == ExperimentConfig.__name__ else f"{self}: {message}"


def _owner_name(fields: Any) -> str:
    for name, cls in threestudio.__modules__.items():
        if getattr(cls, "Config", None) is fields:
            return name
    return getattr(fields, "__qualname__", repr(fields)).removesuffix(".Config")


def _values_of(cfg: Any) -> dict[str, Any]:
    if isinstance(cfg, DictConfig):
        return {str(key): cfg[key] for key in cfg}
    # Plain lists become nodes, so that a schedule given from Python is taken as one given in YAML.
    return {
        key: OmegaConf.create(value) if isinstance(value, list) else value for key, value in dict(cfg).items()
    }


def _reject_unknown_keys(section: _Section, fields: Any, values: dict[str, Any]) -> None:
    if not dataclasses.is_dataclass(fields):
        raise TypeError(f"{fields!r} is not a dataclass, so it cannot hold a config.")
    known = [f.name for f in dataclasses.fields(fields) if f.init]
    unknown = [key for key in values if key not in known]
    if not unknown:
        return
    said = ", ".join(repr(key) for key in unknown)
    hint = "".join(did_you_mean(key, known) for key in unknown[:3])
    raise UnknownKeyError(
        f"Unknown key{'s' * (len(unknown) > 1)} {said} in {section}.{hint}\n"
        f"Its keys: {', '.join(sorted(known)) or '(none)'}."
    )


def _reject_lists_as_text(section: _Section, fields: Any, values: dict[str, Any]) -> None:
    annotations = annotations_of(fields)
    for key, value in values.items():
        if isinstance(value, DictConfig | ListConfig | dict | list) and is_text(annotations.get(key)):
            raise _type_message(section, fields, key, value)


def _escape_texts(instance: Any) -> None:
    """Texts of a dataclass as OmegaConf wants them; all references have been followed by now."""
    for spec in dataclasses.fields(instance):
        value = getattr(instance, spec.name)
        if isinstance(value, str) and "${" in value:
            object.__setattr__(instance, spec.name, escaped(value))


def _wrong_type(fields: Any, values: dict[str, Any]) -> OmegaConfBaseException | None:
    """omegaconf's error for a value of the wrong type, which a check in ``__post_init__`` stumbled over."""
    parsed = OmegaConf.structured(fields)  # of the class: nothing is checked yet
    for key, value in values.items():
        try:
            parsed[key] = value
        except OmegaConfBaseException as error:
            return error
    return None


def _type_error(
    section: _Section, fields: Any, values: dict[str, Any], error: OmegaConfBaseException
) -> Exception:
    key = (error.full_key or "").split(".")[0]
    if not isinstance(error, ValidationError) or key not in values:
        return _readable(error, section.key)
    return _type_message(section, fields, key, values[key])


def _type_message(section: _Section, fields: Any, key: str, value: Any) -> ConfigValueError:
    annotation = next(f.type for f in dataclasses.fields(fields) if f.name == key)
    wanted = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    full_key = f"{section.key}.{key}" if section.key else key
    kind = "a list" if isinstance(value, (list, ListConfig)) else type(value).__name__
    owner = "" if section.name == ExperimentConfig.__name__ else f" of {section.name}"
    return ConfigValueError(f"{full_key}{owner} takes {wanted}, got {value!r} ({kind}).")
