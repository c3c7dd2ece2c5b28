"""Settings under names of other programs become ours, by the table of `foreign_names`."""

from collections.abc import Collection, Mapping
from typing import Any

from lorasmith.config.reading.foreign_names import FOREIGN_NAMES, SWITCHES, Changes, normalize
from lorasmith.core.errors import ConfigError, did_you_mean

Tree = dict[str, Any]

FEATURE_KEYS = {
    "tag": "data.tag",
    "class_word": "data.class_word",
    "targets": "lora.targets",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "overrides": "lora.overrides",
    "gate": "lora.gate",
    "learning_rate": "train.learning_rate",
}
"""Keys of a ``[[feature]]`` table, and the settings of a run of one feature that they stand for."""


def translate(tree: Mapping[str, Any], known: Collection[str]) -> Tree:
    """Return settings in which foreign names are replaced.

    Args:
        tree: settings from one source, in sections or flat.
        known: the dotted keys that there are.

    Raises:
        ConfigError: a name has another meaning here; the message has the answer.
    """
    result: Tree = {}
    moved: dict[str, tuple[str, Any]] = {}
    _walk(tree, "", known, result, moved)
    for key, (name, value) in moved.items():
        *sections, last = key.split(".")
        branch = result
        for section in sections:
            branch = branch.setdefault(section, {})
        if last in branch and branch[last] != value and name != "unet_lr":
            raise ConfigError(f"{name} and {key} are the same setting; give one of them")
        branch[last] = value
    if isinstance(result.get("feature"), list):
        result["feature"] = [_translate_feature(feature, known) for feature in result["feature"]]
    return result


def _translate_feature(feature: Any, known: Collection[str]) -> Any:
    """Return a ``[[feature]]`` table in which foreign names are replaced.

    Raises:
        ConfigError: a name has another meaning here, or its setting is the same for all features.
    """
    if not isinstance(feature, Mapping):
        return feature
    keys = {*known, "data.path", *FEATURE_KEYS.values()}
    result = {name: value for name, value in feature.items() if name in {*FEATURE_KEYS, "data"}}
    data = feature.get("data", {})
    images: Tree = dict(data) if isinstance(data, Mapping) else {"path": data}
    foreign = {name: value for name, value in feature.items() if name not in result}
    foreign |= {name: images.pop(name) for name in list(images) if f"data.{name}" not in keys}
    for name, value in foreign.items():
        changes = foreign_changes(name, value, keys)
        if changes is None:
            inside = images if isinstance(data, Mapping) and name in data else result
            inside[name] = value
        for key, new in (changes or {}).items():
            _put_in_feature(name, key, new, result, images)
    if images and images != {"path": data}:
        result["data"] = images
    return result


def _put_in_feature(name: str, key: str, value: Any, feature: Tree, images: Tree) -> None:
    """Set what a foreign name in a feature's table stands for."""
    ours = {setting: own for own, setting in FEATURE_KEYS.items()}
    section, _, last = key.partition(".")
    if key in ours:
        branch, last = feature, ours[key]
    elif section == "data":
        branch = images
    else:
        raise ConfigError(f"feature: {name}: {key} is the same for all features; set it there")
    if branch.get(last, value) != value:
        raise ConfigError(f"feature: {name} and {last} are the same setting; give one of them")
    branch[last] = value


def _walk(
    tree: Mapping[str, Any],
    prefix: str,
    known: Collection[str],
    result: Tree,
    moved: dict[str, tuple[str, Any]],
) -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in known:
            result[name] = value
        elif isinstance(value, Mapping) and _has_section(key, known):
            _walk(value, f"{key}.", known, result.setdefault(name, {}), moved)
        elif isinstance(value, Mapping):
            typo = bool(did_you_mean(name, {section.partition(".")[0] for section in known}))
            if typo or not _move_section(value, known, moved):
                result[name] = value
        elif not _move(name, value, known, moved, anywhere=not prefix):
            result[name] = value


def _move_section(
    section: Mapping[str, Any], known: Collection[str], moved: dict[str, tuple[str, Any]]
) -> bool:
    """Move a whole section that is unknown here, such as kohya's ``[training_arguments]``."""
    names = [normalize(name) for name in section]
    if not names or not all(name in FOREIGN_NAMES or _by_last_part(name, known) for name in names):
        return False
    for name, value in section.items():
        _move(name, value, known, moved, anywhere=True)
    return True


def _move(
    name: str,
    value: Any,
    known: Collection[str],
    moved: dict[str, tuple[str, Any]],
    anywhere: bool,
) -> bool:
    """Note what a name stands for; return False if it is unknown.

    Args:
        name: the key, without its section.
        value: its value.
        known: the dotted keys that there are.
        moved: gets the settings, each with the name that it was given by.
        anywhere: whether the last part of a key of ours will do.
    """
    if not anywhere and normalize(name) not in FOREIGN_NAMES:
        return False
    changes = foreign_changes(name, value, known)
    if changes is None:
        return False
    for key, new in changes.items():
        other, before = moved.get(key, (name, new))
        names = {normalize(name), normalize(other)}
        if names == {"output_dir", "output_name"}:
            folder, file = (new, before) if normalize(name) == "output_dir" else (before, new)
            moved[key] = ("output_name", f"{str(folder).rstrip('/')}/{file}")
        elif names > {"unet_lr"}:  # kohya's learning_rate is that of all other parts
            moved[key] = ("unet_lr", new if normalize(name) == "unet_lr" else before)
        elif before != new:
            raise ConfigError(f"{other} and {name} are both {key} here; give one of them")
        else:
            moved[key] = (name, new)
    return True


def foreign_changes(name: str, value: Any, known: Collection[str]) -> Changes | None:
    """Return the settings that a foreign name and its value stand for, None where it is none.

    Raises:
        ConfigError: it has another meaning here; the message has the answer.
    """
    entry = FOREIGN_NAMES.get(normalize(name))
    if entry is None or not _fits(entry.key, known):
        key = _by_last_part(normalize(name), known)
        return None if key is None else {key: value}
    if entry.translate is None:
        raise ConfigError(f"{name}: {entry.answer}")
    try:
        return entry.translate(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def is_foreign(name: str, known: Collection[str]) -> bool:
    """Return whether an option is a name in the table, or the last part of a key of ours."""
    name = normalize(name)
    return name in FOREIGN_NAMES or _by_last_part(name, known) is not None


def is_switch(name: str, known: Mapping[str, Any]) -> bool:
    """Return whether an option is true or false and may stand without a value.

    Args:
        name: of an option.
        known: the settings with their defaults.
    """
    name = normalize(name)
    entry = FOREIGN_NAMES.get(name)
    if name in SWITCHES:
        return True
    key = entry.key if entry is not None else _by_last_part(name, known)
    return key is not None and isinstance(known.get(key), bool)


def is_translated(name: str, known: Collection[str]) -> bool:
    """Return whether an option's value becomes that of a setting."""
    name = normalize(name)
    entry = FOREIGN_NAMES.get(name)
    return entry.translate is not None if entry else _by_last_part(name, known) is not None


def _by_last_part(name: str, known: Collection[str]) -> str | None:
    """Return the setting whose key ends in a name, if there is exactly one."""
    keys = [key for key in known if key.rpartition(".")[2] == name]
    return keys[0] if len(keys) == 1 else None


def _fits(key: str, known: Collection[str]) -> bool:
    return not key or key in known or _has_section(key, known)


def _has_section(key: str, known: Collection[str]) -> bool:
    return any(name.startswith(f"{key}.") for name in known)
