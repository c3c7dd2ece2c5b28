"""Registries of named implementations."""

from importlib.metadata import EntryPoint

import pytest

from lorasmith.core import registry as registry_module
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.core.registry import Registry


def make_registry() -> Registry[object]:
    return Registry("encoder", "encoders", {"utf8": "json:dumps", "latin": "json:loads"})


def test_builtin_item_is_imported_on_first_use() -> None:
    import json

    assert make_registry().get("utf8") is json.dumps
    assert Registry("x", "xs", {"a": "no_such_module:thing"}).names() == ("a",)


def test_added_item_comes_after_the_builtin_ones() -> None:
    registry = make_registry()
    registry.register("mine", 7)
    assert registry.names() == ("utf8", "latin", "mine")
    assert registry.get("mine") == 7
    registry.unregister("mine")
    assert "mine" not in registry


def test_decorator_registers_and_returns_the_function() -> None:
    registry = make_registry()

    @registry.register("double")
    def double(value: int) -> int:
        return 2 * value

    assert double(2) == 4
    assert registry.get("double") is double


def test_taken_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="the encoder 'utf8' is registered already"):
        make_registry().register("utf8", 1)


def test_unknown_name_suggests_a_close_match() -> None:
    with pytest.raises(ConfigError, match=r"no encoder 'utf9'; did you mean 'utf8'\? .*latin"):
        make_registry().get("utf9")


def test_entry_point_of_another_package_is_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "json:load", "lorasmith.encoders")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])
    import json

    assert make_registry().get("theirs") is json.load


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_module:thing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such_thing", "AttributeError: module 'json' has no attribute 'no_such_thing'"),
    ],
)
def test_broken_entry_point_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, value: str, problem: str
) -> None:
    entry = EntryPoint("theirs", value, "lorasmith.encoders")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])
    registry = make_registry()
    assert registry.check("theirs") == "theirs"
    with pytest.raises(ConfigError) as caught:
        registry.load_all()
    module = value.partition(":")[0]
    assert str(caught.value) == (
        f"the encoder 'theirs' of the package with the module {module} cannot be loaded from "
        f"{value}: {problem}; update or uninstall that package"
    )


def test_entry_point_with_a_taken_name_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = EntryPoint("UTF8", "json:load", "lorasmith.encoders")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [entry])
    registry = make_registry()
    with pytest.warns(LorasmithWarning, match=r"the encoder 'UTF8' of the package .* is taken"):
        assert registry.names() == ("utf8", "latin")


def test_names_are_found_in_any_case() -> None:
    registry = make_registry()
    assert registry.check("UTF8") == "utf8"
    assert "Latin" in registry
    registry.register("Mine", 7)
    assert registry.get("mine") == 7
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("MINE", 8)
    with pytest.raises(ConfigError, match="did you mean 'Mine'"):
        registry.check("mime")
