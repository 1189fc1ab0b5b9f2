"""What is typed on the command line arrives in the config: text as text, the rest as YAML reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.config import dump_config, load_config, parse_structured, register_resolver
from threestudio.utils.errors import UserError

TEXTS = [
    "a blue mug #1 in the world",
    "#1 mug",
    "a mug: blue",
    "a=b",
    "[1,2]",
    "[1, 2",
    "{a}",
    "{a: b}",
    "~",
    "null",
    "true",
    "007",
    "1e3",
    "- a",
    "!mug",
    "&a *b",
    "`date` $5 100%",
    'a "blue" mug',
    '"red" and "blue"',
    "it's",
    "  a  ",
    "two\nlines",
    "☕",
    "a ${seed} mug",
    "${nothing}",
    "\\${seed} \\",
    "",
]


@pytest.fixture(autouse=True)
def classes(monkeypatch):
    """A system with a part, and a datamodule whose config stands beside it."""
    monkeypatch.setattr(threestudio, "__modules__", dict(threestudio.__modules__))

    @threestudio.register("texts-system")
    class System(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            part_type: str = ""
            part: dict = field(default_factory=dict)
            title: str = ""

    @threestudio.register("texts-part")
    class Part(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            prompt: str = ""
            maybe: Optional[str] = None
            anything: Any = None
            size: int = 3

    threestudio.register("texts-data")(DataModule)


@dataclass
class DataModuleConfig:
    image: str = ""


class DataModule:
    pass


BASE = """
tag: ${rmspace:${system.part.prompt},_}
seed: 7
use_timestamp: false
data_type: texts-data
data: {}
system_type: texts-system
system:
  part_type: texts-part
  part: {prompt: a mug}
"""


def part_of(cfg: Any) -> Any:
    return parse_structured(threestudio.find(cfg.system.part_type).Config, cfg.system.part)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_was_typed(tmp_path, text):
    keys = ("system.part.prompt", "system.title", "data.image", "name", "checkpoint.filename")
    given = [f"{key}={text}" for key in keys] + ["tag=t"]
    cfg = load_config(BASE, from_string=True, cli_args=given)
    dump_config(str(tmp_path / "parsed.yaml"), cfg)
    for found in (cfg, load_config(str(tmp_path / "parsed.yaml"))):
        assert (found.system.part.prompt, found.system.title, found.data.image) == (text, text, text)
        assert (found.name, part_of(found).prompt) == (text, text)
        assert found.checkpoint.filename == (None if text in ("", "null") else text)  # which may be none


def test_text_reaches_what_refers_to_it():
    cfg = load_config(BASE, from_string=True, cli_args=["system.part.prompt=a ${seed} #1: mug"])
    assert cfg.tag == "a_${seed}_#1:_mug"
    assert cfg.trial_dir.endswith("/a_${seed}_#1:_mug")


@pytest.mark.parametrize(("typed", "text"), [('"a: b"', "a: b"), ("'it''s'", "it's"), ("''", "")])
def test_quotes_around_the_whole_are_taken_off(typed, text):
    given = ["tag=t", *(f"system.part.{key}={typed}" for key in ("prompt", "anything"))]
    part = part_of(load_config(BASE, from_string=True, cli_args=given))
    assert (part.prompt, part.anything) == (text, text)


@pytest.mark.parametrize("typed", ["", "null"])
def test_no_text_where_there_may_be_none(typed):
    cfg = load_config(BASE, from_string=True, cli_args=[f"resume={typed}", f"system.part.maybe={typed}"])
    assert cfg.resume is None and part_of(cfg).maybe is None


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("1e-3", 1e-3),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{path: a.ckpt, weight: 0.5}", {"path": "a.ckpt", "weight": 0.5}),
        ("a #1/x: y.ckpt", "a #1/x: y.ckpt"),
        ("3 # three", "3 # three"),
        ("${seed}", 7),
    ],
)
def test_a_field_of_any_type_takes_yaml_without_comments(typed, value):
    assert (
        part_of(load_config(BASE, from_string=True, cli_args=[f"system.part.anything={typed}"])).anything
        == value
    )


def test_the_class_is_known_whatever_the_order():
    bare = "use_timestamp: false\ntag: t"
    given = ["system.part.prompt=[a]: b", "system.part_type=texts-part", "system_type=texts-system"]
    assert load_config(bare, from_string=True, cli_args=given).system.part.prompt == "[a]: b"


def test_entries_of_lists():
    cfg = load_config(BASE + "  ramp: [1, 2, 3]", from_string=True, cli_args=["system.ramp[1]=5"])
    assert list(cfg.system.ramp) == [1, 5, 3]
    with pytest.raises(UserError, match=r"system\.ramp\.3: there is a list of 3"):
        load_config(BASE + "  ramp: [1, 2, 3]", from_string=True, cli_args=["system.ramp[3]=5"])


@pytest.mark.parametrize("item", ["system.relax={fovy: 9}", "system.relax.fovy=9"])
def test_references_are_followed_when_all_overrides_are_in_place(item):
    """What replaces a reference does not follow it; what changes a part of it follows it at last."""
    asked = []

    def relax_of(prior):
        asked.append(prior)
        return {"fovy": 1, "distance": prior}

    register_resolver("relax_of", relax_of)
    base = BASE + "  prior: old\n  relax: ${relax_of:${system.prior}}\n  steps: ${relax_of:${system.prior}}"
    cfg = load_config(base, from_string=True, cli_args=[item, "system.steps=3", "system.prior=new"])
    assert cfg.system.relax == {"fovy": 9, "distance": "new"}
    assert cfg.system.steps == 3 and set(asked) == {"new"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("system.part.prompt=a\udce9", ["system.part.prompt", "UTF-8"]),
        ("system.part.anything=[1, 2", ["system.part.anything=[1, 2", "quote"]),
        ("system.part.size=3 # three", ["system.part.size", "3 # three"]),
        ("system.part.prompt=???", ["system.part.prompt"]),
    ],
)
def test_what_cannot_be_read_is_told_with_its_key(item, words):
    with pytest.raises(UserError) as caught:
        part_of(load_config(BASE, from_string=True, cli_args=[item]))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("prompt", ["[1, 2]", "{a: b}", "null"])
def test_a_file_may_not_give_a_list_for_text(prompt):
    cfg = load_config(BASE.replace("a mug", prompt), from_string=True, cli_args=["tag=t"])
    with pytest.raises(UserError, match=r"system\.part\.prompt of texts-part takes str"):
        part_of(cfg)
