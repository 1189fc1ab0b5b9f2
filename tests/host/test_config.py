"""Config files, overrides, sections, and what is said about mistakes in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

import pytest
from omegaconf import OmegaConf

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.config import ExperimentConfig, dump_config, folder_name, load_config, parse_structured
from threestudio.utils.errors import ConfigValueError, UserError
from threestudio.utils.misc import C


@dataclass
class Section:
    number: float = 1.0
    count: int = 2
    either: Union[int, float] = 1  # the old spelling must work too
    maybe: Optional[str] = None
    anything: Any = 0
    group: dict = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.count, int) and self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}.")


def test_scalars_are_coerced_and_fields_writable():
    cfg = parse_structured(Section, {"number": 3, "count": "7", "either": 1.5})
    assert cfg.number == 3.0 and isinstance(cfg.number, float)
    assert cfg.count == 7 and cfg.either == 1.5 and cfg.maybe is None
    cfg.number = 5
    assert cfg.get("nothing", "default") == "default"


@pytest.mark.parametrize("cfg", [{"number": [0, 1, 10]}, OmegaConf.create({"number": [0, 1, 10]})])
def test_a_schedule_fits_a_float_field(cfg):
    assert C(parse_structured(Section, cfg).number, 0, 5) == 0.5


def test_unknown_key_names_section_closest_and_all():
    with pytest.raises(TypeError) as caught:
        parse_structured(Section, {"numbr": 1})
    assert caught.value.is_user_error
    message = str(caught.value)
    assert "'numbr'" in message and "Section" in message and "Did you mean 'number'?" in message
    assert "anything, count, either, group, maybe, number" in message


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"number": "fast"}, ["number", "'fast'", "float"]),
        ({"count": 1.5}, ["count", "1.5", "int"]),
        ({"either": "x"}, ["either", "'x'"]),
        ({"count": -1}, ["count must not be negative"]),
    ],
)
def test_wrong_values(cfg, words):
    with pytest.raises(ValueError) as caught:
        parse_structured(Section, cfg)
    assert caught.value.is_user_error
    assert all(word in str(caught.value) for word in words)


def test_nested_sections_know_their_full_name(monkeypatch):
    monkeypatch.setattr(threestudio, "__modules__", dict(threestudio.__modules__))

    @threestudio.register("outer-thing")
    class Outer(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            inner_type: str = ""
            inner: dict = field(default_factory=dict)

        def configure(self):
            self.inner = threestudio.find(self.cfg.inner_type)(self.cfg.inner)

    @threestudio.register("inner-thing")
    class Inner(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            size: int = 1

    text = "system_type: outer-thing\nsystem: {inner_type: inner-thing, inner: {siz: 2}}"
    cfg = load_config(text, from_string=True)
    with pytest.raises(UserError, match=r"'siz' in system\.inner \(inner-thing\)\. Did you mean 'size'"):
        threestudio.find(cfg.system_type)(cfg.system)


# ---- whole files ----


def test_merge_order_is_files_then_overrides_then_arguments(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("name: a\nseed: 1\nsystem: {x: 1, y: 1, z: 1}\n")
    second.write_text("seed: 2\nsystem: {y: 2, z: 2}\n")
    cfg = load_config(str(first), str(second), cli_args=["system.z=3", "seed=3"], n_gpus=2)
    assert (cfg.name, cfg.seed, cfg.n_gpus) == ("a", 3, 2)
    assert cfg.system == {"x": 1, "y": 2, "z": 3}
    assert not (tmp_path / "outputs").exists()


def test_loading_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_config("name: a", from_string=True)
    assert list(tmp_path.iterdir()) == []


def test_resolvers():
    cfg = load_config(
        """
        tag: ${rmspace:${system.prompt},_}
        system:
          prompt: a red mug
          sum: ${add:1,2}
          difference: ${sub:1,2}
          product: ${mul:2,3}
          ratio: ${div:1,2}
          whole: ${idiv:7,2}
          base: ${basename:a/b/c.txt}
          pair: ${tuple2:3}
          positive: ${gt0:${system.sum}}
          schedule: [0, 0.0, 1.0, 10]
          rises: ${cmaxgt0:${system.schedule}}
          either: ${cmaxgt0orcmaxgt0:${system.schedule},${system.zero}}
          zero: 0
          never: ${not:${system.positive}}
          decay: ${calc_exp_lr_decay_rate:0.01,2}
        """,
        from_string=True,
    )
    s = cfg.system
    assert cfg.tag == "a_red_mug"
    assert (s.sum, s.difference, s.product, s.ratio, s.whole, s.base) == (3, -1, 6, 0.5, 3, "c.txt")
    assert list(s.pair) == [3.0, 3.0]
    assert s.positive and s.rises and s.either and not s.never
    assert s.decay == pytest.approx(0.1)


def test_trial_name_and_folder():
    cfg = load_config("name: n\ntag: t", from_string=True)
    assert cfg.trial_name.startswith("t@") and cfg.trial_dir == f"outputs/n/{cfg.trial_name}"
    cfg = load_config("name: n\ntag: t\nuse_timestamp: false", from_string=True)
    assert cfg.trial_dir == "outputs/n/t"
    assert load_config("tag: t", from_string=True, n_gpus=2).trial_name.startswith("t@")


def test_saved_config_continues_in_the_same_folder(tmp_path):
    cfg = load_config("name: n\ntag: t", from_string=True)
    dump_config(str(tmp_path / "parsed.yaml"), cfg)
    assert load_config(str(tmp_path / "parsed.yaml")).trial_dir == cfg.trial_dir


def test_folder_names_of_wild_prompts():
    assert "/" not in folder_name("a mug / a cup")
    long = [folder_name("a very " * 100 + last, suffix="@1") for last in ("red mug", "blue mug")]
    assert all(len(name.encode()) <= 160 and name.endswith("@1") for name in long) and long[0] != long[1]
    assert len(folder_name("苹" * 200).encode()) <= 160
    assert folder_name("..") not in (".", "..")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2\nb: 3", ["line 2", "column"]),
        ("systm: {}", ["'systm'", "top level", "'system'"]),
        ("system: 3", ["system", "3 (int)"]),
        ("name: ${system.prompt}\nsystem:\n  prompt: ???", ["system.prompt", "system.prompt=..."]),
        ("name: ${nothing}", ["name", "nothing"]),
        ("name: ${nope:1}", ["name", "nope", "rmspace"]),
        ("seed: one", ["seed", "'one'", "int"]),
        ("seed: -5", ["seed is -5", "0 to"]),
        ("use_timestamp: false", ["tag"]),
        ("- 1\n- 2", ["mapping"]),
        ("just words", ["top level"]),
        ("system:\n  a: [1, 2]\n  b: ${cmaxgt0:${system.a}}", ["Schedule [1, 2] has 2 entries"]),
    ],
)
def test_mistakes_in_a_file(text, words):
    with pytest.raises(UserError) as caught:
        load_config(text, from_string=True)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_missing_file_names_near_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ism-gs.yaml").write_text("name: a")
    with pytest.raises(
        UserError, match=r"nowhere/ism_gs\.yaml does not exist\. Did you mean: configs/ism-gs\.yaml"
    ):
        load_config("nowhere/ism_gs.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_config("configs")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("hamburger", ["'hamburger'", "quote"]),
        ("--speed", ["'--speed'", "option"]),
        ("+a.b=1", ["without + or ~"]),
        ("a b=1", ["'a b'"]),
        ("=1", ["''"]),
        ("a=[1, 2", ["a=[1, 2"]),
    ],
)
def test_mistakes_in_an_override(item, words):
    with pytest.raises(UserError) as caught:
        load_config("name: a", from_string=True, cli_args=[item])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_override_values_are_yaml():
    cfg = load_config(
        "name: a",
        from_string=True,
        cli_args=["system.a=1e-3", "system.b=[1,2]", "system.c=null", "system.d=a red mug", "system.e=true"],
    )
    assert cfg.system == {"a": 1e-3, "b": [1, 2], "c": None, "d": "a red mug", "e": True}


def test_every_field_of_the_top_level_is_documented():
    import ast
    import inspect

    (cls,) = ast.parse(inspect.getsource(ExperimentConfig)).body
    for line, following in zip(cls.body[1:], cls.body[2:], strict=False):
        if isinstance(line, ast.AnnAssign):
            assert isinstance(following, ast.Expr), ast.unparse(line)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", "[0, 1.0, .inf, 9]"])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ConfigValueError, match=r"system.x.y.* is (-?inf|nan); it must be a finite number"):
        load_config(f"tag: a\nsystem: {{x: {{y: {value}}}}}", from_string=True)


def test_words_that_a_number_is_read_from_are_refused_too():
    @dataclass
    class Section:
        lr: float = 0.1
        limit: float = float("inf")
        name: str = ""

    assert parse_structured(Section, {"lr": 1, "name": "inf"}).limit == float("inf")  # a default is meant
    for word in ("inf", "nan", "-Infinity"):
        with pytest.raises(ConfigValueError, match=r"lr is (-?inf|nan); it must be a finite number"):
            parse_structured(Section, {"lr": word})
