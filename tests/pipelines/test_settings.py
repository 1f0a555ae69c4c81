"""What holds for every setting of the pipelines and of training."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt

from curation.config import ConfigError, as_dict, load
from pipelines.settings import DEFAULT_CONFIG, Settings
from training import config as training_config
from training.segmentation import config as segmentation_config

BOUNDS = (Ge, Gt, Le, Lt, Interval)


def bounds_of(hint: object, bounds: tuple = ()) -> tuple | None:
    """The bounds of a number's type, also of an optional one; None where it is no number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return bounds_of(args[0], tuple(m for m in args[1:] if isinstance(m, BOUNDS)))
    if origin in (typing.Union, types.UnionType, list, tuple):
        found = [bounds_of(arg, bounds) for arg in args if arg is not Ellipsis]
        return next((b for b in found if b is not None), None)
    return bounds if hint in (int, float) else None


def numbers_in(kind: type, prefix: str = "") -> Iterator[tuple[str, tuple]]:
    """Each numeric setting below a dataclass, with its bounds."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        name, hint = prefix + field.name, hints[field.name]
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from numbers_in(part, f"{name}.")
        if (bounds := bounds_of(hint)) is not None:
            yield name, bounds


def setting_names(kind: type, prefix: str = "") -> Iterator[str]:
    """Every setting below a dataclass, dotted; groups of settings included."""
    for name, hint in typing.get_type_hints(kind).items():
        if name in {field.name for field in dataclasses.fields(kind)}:
            yield prefix + name
            if dataclasses.is_dataclass(hint):
                yield from setting_names(hint, f"{prefix}{name}.")


TRAINING = [
    kind
    for kind in (*vars(training_config).values(), *vars(segmentation_config).values())
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind)
]


def test_every_numeric_setting_has_a_range():
    found = [*numbers_in(Settings), *(n for kind in TRAINING for n in numbers_in(kind))]
    assert len(found) > 100
    assert [name for name, bounds in found if not bounds] == []


@pytest.mark.parametrize("name", [name for name, _ in numbers_in(Settings)])
def test_nan_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        load(Settings, DEFAULT_CONFIG, [f"{name}=.nan"])


@pytest.mark.parametrize("name", ["export.shard_mb", "cluster.memory_gib"])
def test_infinite_size_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is inf"):
        load(Settings, DEFAULT_CONFIG, [f"{name}=.inf"])


@pytest.mark.parametrize("kind", [training_config.TrainConfig, training_config.SampleConfig])
def test_seed_that_pytorch_does_not_take_is_refused(kind):
    with pytest.raises(ConfigError, match="seed is 9223372036854775808: "):
        load(kind, None, [f"seed={2**63}"])


@pytest.mark.parametrize("meter", ["motion", "light", "overlay"])
def test_zero_samples_per_second_are_refused(meter):
    with pytest.raises(ConfigError, match=rf"score.decode.{meter}.samples_per_s is 0"):
        load(Settings, DEFAULT_CONFIG, [f"score.decode.{meter}.samples_per_s=0"])


def test_recorded_settings_hold_every_setting_and_nothing_else():
    def assert_same(recorded: dict, kind: type) -> None:
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        assert list(recorded) == [field.name for field in fields]
        assert all(field.init for field in fields)
        for name, value in recorded.items():
            if dataclasses.is_dataclass(hints[name]):
                assert_same(value, hints[name])

    settings = load(Settings, DEFAULT_CONFIG)
    assert_same(as_dict(settings), Settings)
    assert settings.caption.chosen.captioner == "measured"
    assert_same(as_dict(settings), Settings)
