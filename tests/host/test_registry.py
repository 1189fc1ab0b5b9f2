"""Registering and finding by name."""

from __future__ import annotations

import pytest

import threestudio
from threestudio.utils.base import BaseModule, BaseObject, Updateable
from threestudio.utils.errors import UnknownNameError


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(threestudio, "__modules__", dict(threestudio.__modules__))


def test_find_returns_what_was_registered():
    @threestudio.register("a-thing")
    class Thing:
        pass

    assert threestudio.find("a-thing") is Thing


def test_a_name_is_registered_once():
    threestudio.register("a-thing")(type("One", (), {}))
    with pytest.raises(ValueError, match=r"'a-thing'.*One.*Two"):
        threestudio.register("a-thing")(type("Two", (), {}))


def test_unknown_name_lists_the_closest_and_all_of_its_kind():
    with pytest.raises(KeyError) as caught:
        threestudio.find("solid-colour-background")
    assert isinstance(caught.value, UnknownNameError) and caught.value.is_user_error
    assert "Did you mean 'solid-color-background'" in str(caught.value)
    assert "Registered as background: " in str(caught.value)
    assert "random-camera-datamodule" not in str(caught.value)
    with pytest.raises(KeyError, match=r"Registered as guidance: .*stable-diffusion-guidance"):
        threestudio.find("stable-diffusion-guidence")
    with pytest.raises(KeyError, match=r"Registered as datamodule: [\s\S]*Registered as system: "):
        threestudio.find("qqq")


def test_mixin_form_runs_left_to_right_and_main_last():
    class Base:
        def order(self):
            return ["main"]

    class A:
        def order(self):
            return ["a", *super().order()]

    class B:
        def order(self):
            return ["b", *super().order()]

    for name, cls in (("main", Base), ("a", A), ("b", B)):
        threestudio.register(name)(cls)
    mixed = threestudio.find("main:a,b")
    assert mixed.__name__ == "main.a,b"
    assert mixed().order() == ["a", "b", "main"]
    assert mixed.__mro__[1:4] == (A, B, Base)


@pytest.mark.parametrize("name", ["main: a", "main:a:b", "main:nope"])
def test_mixin_form_rejects(name):
    threestudio.register("main")(type("Main", (), {}))
    threestudio.register("a")(type("A", (), {}))
    with pytest.raises(KeyError):
        threestudio.find(name)


@pytest.mark.parametrize("cls", [BaseObject, BaseModule])
def test_no_config_is_an_error_and_an_empty_one_is_not(cls):
    with pytest.raises(TypeError, match=r"pass \{\}"):
        cls(None)
    assert cls({}).cfg is not None


class Counter(Updateable):
    def __init__(self):
        self.steps = []

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.steps.append(global_step)


def test_update_step_reaches_public_attributes_children_first():
    log = []

    class Child(Updateable):
        def update_step(self, epoch, global_step, on_load_weights=False):
            log.append("child")

    class Parent(Updateable):
        def __init__(self):
            self.child = Child()
            self._hidden = Counter()
            self.in_a_list = [Counter()]

        @property
        def broken(self):
            raise RuntimeError("not ready")

        def update_step(self, epoch, global_step, on_load_weights=False):
            log.append("parent")

    parent = Parent()
    parent.do_update_step(0, 3)
    assert log == ["child", "parent"]
    assert parent._hidden.steps == [] and parent.in_a_list[0].steps == []
