"""Parts by name: built in, registered by a script, or imported from a user's package."""

import subprocess
import sys

import pytest

from dsllm.errors import ConfigError
from dsllm.registry import Registry


@pytest.fixture
def codecs() -> Registry:
    return Registry("codec", {"json": "json:JSONEncoder"})


def test_a_built_in_is_imported_when_it_is_asked_for(codecs):
    assert codecs["json"].__name__ == "JSONEncoder"


def test_what_is_asked_for_by_its_place_gets_no_name(codecs):
    before = codecs.names()
    codecs["json:JSONDecoder"]
    assert codecs.names() == before


def test_a_script_registers_its_own_and_no_name_twice(codecs):
    @codecs.register("mine")
    class Mine:
        pass

    assert codecs["mine"] is Mine
    assert codecs.names() == ["json", "mine"]
    with pytest.raises(ConfigError, match="'mine' is registered already"):
        codecs.register("mine")(object())


def test_any_importable_class_can_be_named(codecs, tmp_path, monkeypatch):
    (tmp_path / "my_codecs.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert codecs["my_codecs:Mine"] is sys.modules["my_codecs"].Mine


@pytest.mark.parametrize("name", ["no_such_module:Mine", "json:NoSuchClass", ":", "json:"])
def test_what_cannot_be_imported_is_said(codecs, name):
    with pytest.raises((ConfigError), match="cannot be imported"):
        codecs[name]


def test_a_wrong_name_brings_the_nearest(codecs):
    with pytest.raises(ConfigError, match="did you mean json"):
        codecs["jsn"]


def test_every_operator_that_is_built_in_is_known_before_its_module_is_imported():
    from dsllm.growth import operators

    there = {name for name, value in vars(operators).items() if isinstance(value, operators.Operator)}
    names = "from dsllm.registry import OPERATORS; print(*OPERATORS.names())"
    known = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True).stdout.split()
    assert there == set(known)
