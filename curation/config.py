"""Settings: reads YAML and `key=value` overrides into dataclasses, and checks them.

A setting is a dataclass field, and its default is defined only there. pydantic checks types and
ranges (`Annotated[float, Gt(0)]`); this module checks names, and suggests the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from curation.errors import UserError
from curation.renames import OLD_VERSION, new_setting, old_settings

MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 100_000

T = TypeVar("T")


class ConfigError(UserError):
    """A setting is wrong: which, where, what was expected."""


def load(kind: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Returns the settings of a YAML file, with `a.b=value` overrides (values are YAML) applied.

    Raises ConfigError, also for names of an earlier version.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            read = _parse_yaml(_read_small_file(Path(path)))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; expected a YAML file of settings") from None
        except OSError as e:
            raise ConfigError(
                f"{path}: can't be read: {e.strerror}; expected a YAML file of settings"
            ) from None
        except (yaml.YAMLError, ValueError) as e:
            raise ConfigError(f"{path}: not valid YAML: {e}") from None
        if read is not None and not isinstance(read, dict):
            raise ConfigError(f"{path}: expected settings as `name: value`, found {read!r:.60}")
        data = read or {}
        known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if len(data) > 1 and not known & data.keys() and not list(old_settings(data)):
            raise ConfigError(
                f"{path}: this command has none of its settings: {', '.join(map(str, data)):.100}; "
                "expected a file for this command, whose settings --help lists"
            )
        if old := list(old_settings(data)):
            new = ", ".join(f"{name} is {new_setting(name)}" for name in old)
            raise ConfigError(f"{path}: written for version {OLD_VERSION}; in this one {new}")
    given = []
    for item in overrides:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r}: expected key=value, for example select.seed=1")
        if (new := new_setting(name)) != name:
            was = f"{name} was a setting of version {OLD_VERSION}"
            raise ConfigError(f"command line: {was}; in this one it is {new}")
        _set(data, name, _parse_value(kind, name, value))
        given.append(name)
    return build(kind, data, str(path or "command line"), given=given)


def _parse_value(kind: Any, dotted: str, text: str) -> Any:
    """Returns the value after key=, parsed as YAML except where the setting is a string.

    As YAML, the path `*.mp4` would be a reference, `2024-01-01` a date and `no` false.
    """
    for part in dotted.split("."):
        kinds = typing.get_args(kind) or (kind,)
        known = [typing.get_type_hints(k) for k in kinds if dataclasses.is_dataclass(k)]
        kind = next((hints[part] for hints in known if part in hints), None)
    is_optional = typing.get_origin(kind) in (typing.Union, types.UnionType)
    is_null = text in ("", "null") and (kind is not str or text == "null")
    if (kind is str or (is_optional and str in typing.get_args(kind))) and not is_null:
        return text
    try:
        return _parse_yaml(text) if text else None
    except (yaml.YAMLError, ValueError) as e:
        problem = getattr(e, "problem", None) or e
        raise ConfigError(f"{dotted}={text:.200}: not valid YAML: {problem}") from None


def _read_small_file(path: Path) -> str:
    """Returns the text. Raises OSError; ValueError if it is too large for settings or not UTF-8."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    return data.decode()


def _parse_yaml(text: str) -> Any:
    """Returns plain data. Raises YAMLError, ValueError.

    References to references are a few bytes that stand for billions of values: too many values are
    an error.
    """
    try:
        found = _Loader(text).get_single_data()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    left, counted = [found], 0
    while left:
        value = left.pop()
        counted += 1
        if isinstance(value, dict | list) and counted + len(left) + len(value) <= MAX_VALUES:
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, dict | list):
            raise ValueError(f"more than {MAX_VALUES} values")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a name that is given twice: YAML's own rule, by which PyYAML takes the last one. Also
    {max:2}, which is the name `max:2` without a value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # not in construct_mapping: `<<` has added names to some of the mappings by then
        node = super().compose_mapping_node(anchor)
        names: set[str] = set()
        for key, value in node.value:
            problem = ""
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                problem = f"{key.value} is given twice"
            elif node.flow_style and ":" in str(key.value) and value.value == "":
                problem = f"{key.value} needs a space after the colon"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            names.add(str(key.value))
        return node


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        child = data.get(part)
        if not isinstance(child, dict):
            child = data[part] = {}
        data = child
    data[last] = value


def build(
    kind: type[T],
    data: dict[str, Any],
    source: str,
    prefix: str = "",
    given: Sequence[str] = (),
) -> T:
    """Returns a dataclass made of plain data; fields that are absent have their default.

    source: the file that errors name. given: the settings that came from the command line, for
    which errors name that instead. Raises ConfigError.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for name, value in data.items():
        is_given = any(f"{item}.".startswith(f"{prefix}{name}.") for item in given)
        where = "command line" if is_given else source
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            if not known:
                hint = f"{prefix.rstrip('.')} has none"
            raise ConfigError(f"{where}: {prefix}{name} is not a setting; {hint}")
        full, hint = f"{prefix}{name}", _choose_dataclass(hints[name], value)
        if not dataclasses.is_dataclass(hint):
            values[name] = _validate(hint, value, where, full)
        elif isinstance(value, dict):
            values[name] = build(typing.cast(type, hint), value, source, f"{full}.", given)
        else:
            raise ConfigError(f"{where}: {full} is {value!r:.60}; expected settings below it")
    where = "command line" if any(item.startswith(prefix) for item in given) else source
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        has_default = {field.default, field.default_factory} != {dataclasses.MISSING}
        if field.name not in values and not has_default:
            raise ConfigError(f"{where}: {prefix}{field.name} is missing and has no default")
    try:
        return kind(**values)
    except ConfigError as e:  # of __post_init__, which does not know the file
        raise ConfigError(f"{where}: {prefix}{e}") from None


def fields_of(settings: Any, kind: type[T]) -> dict[str, T]:
    """Name -> value of the fields of a settings object that hold a `kind`, in their order."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, kind)}


def check_choice(setting: str, value: str, known: Collection[str]) -> None:
    """Raises ConfigError where `value` is not in `known`."""
    if value not in known:
        raise ConfigError(f"{setting} is {value!r:.60}: expected one of {', '.join(known)}")


def _choose_dataclass(hint: Any, value: Any) -> Any:
    """Returns the dataclass of a union that has most of the value's names, the first of equals.

    Returns any other type unchanged.
    """
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if not kinds or not all(map(dataclasses.is_dataclass, kinds)) or not isinstance(value, dict):
        return hint
    names = [{f.name for f in dataclasses.fields(kind)} for kind in kinds]
    return max(zip(kinds, names, strict=True), key=lambda pair: len(value.keys() & pair[1]))[0]


def _validate(hint: Any, value: Any, where: str, name: str) -> Any:
    """Returns the value as pydantic converts it to the type. Raises ConfigError."""
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as e:
        first = e.errors()[0]
        # pydantic also lists its own functions and the branches of a union
        inner = [str(part) for part in first["loc"] if str(part).isidentifier()]
        place, problem = ".".join([name, *inner]), first["msg"]
        known = ", ".join(_names_in(hint))
        if first["type"] == "dataclass_type":
            problem = f"expected settings below it: {known}"
        elif first["type"] == "unexpected_keyword_argument":
            problem = f"no such setting; known: {known}"
        raise ConfigError(f"{where}: {place} is {first['input']!r:.60}: {problem}") from None


def _names_in(kind: Any) -> list[str]:
    """The names of the settings of all dataclasses in a type, at any depth."""
    if dataclasses.is_dataclass(kind):
        return [f.name for f in dataclasses.fields(kind)]
    parts = (*typing.get_args(kind), *getattr(kind, "__orig_bases__", ()))
    return [name for part in parts for name in _names_in(part)]


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain data, as recorded with a result."""
    if not dataclasses.is_dataclass(settings):
        raise TypeError(f"{settings!r} is not a settings object")
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if hasattr(value, "as_setting"):
        return value.as_setting()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_dict(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def digest(settings: dict[str, Any]) -> str:
    """A short hash of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def merged(defaults: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Recorded plain settings, and the default of each that they do not have."""
    both = defaults | recorded
    for name in defaults.keys() & recorded.keys():
        if isinstance(defaults[name], dict) and isinstance(recorded[name], dict):
            both[name] = merged(defaults[name], recorded[name])
    return both


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """A line per setting that changed: `decode.clip_s: 15.0 -> 20.0`."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return lines
