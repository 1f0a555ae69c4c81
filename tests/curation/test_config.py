from dataclasses import dataclass, field
from typing import Annotated

import pytest
from annotated_types import Gt

from curation.config import ConfigError, as_dict, build, differences, load


@dataclass
class Motion:
    gap_s: Annotated[float, Gt(0)] = 0.25


@dataclass
class Settings:
    motion: Motion = field(default_factory=Motion)
    seed: int = 0
    name: str | None = None
    light: Motion | None = None


def written(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_overrides_replace_values_of_the_yaml_file(tmp_path):
    path = written(tmp_path, "motion: {gap_s: 0.5}\nseed: 3\n")
    assert load(Settings, path, ["seed=4", "name=a b"]) == Settings(Motion(0.5), 4, "a b")


def test_unknown_setting_is_refused_with_the_nearest_known_name(tmp_path):
    path = written(tmp_path, "motion: {gap: 0.5}\n")
    with pytest.raises(ConfigError, match=r"c.yaml: motion.gap is not a setting; did you mean mot"):
        load(Settings, path)
    with pytest.raises(ConfigError, match=r"sed is not a setting; did you mean seed\?"):
        load(Settings, None, ["sed=1"])
    with pytest.raises(ConfigError, match=r"light.gap is not a setting; did you mean light.gap_s"):
        load(Settings, None, ["light.gap=1"])
    assert load(Settings, None, ["light.gap_s=1"]).light == Motion(1)


def test_value_of_the_wrong_type_or_range_is_refused_with_its_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"motion.gap_s is 'much'"):
        load(Settings, written(tmp_path, "motion: {gap_s: much}\n"))
    with pytest.raises(ConfigError, match=r"motion.gap_s is -1.*greater than 0"):
        load(Settings, None, ["motion.gap_s=-1"])


def test_settings_file_of_megabytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        load(Settings, written(tmp_path, "#" * (2 << 20)))


LEVELS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a0: &a0 [x]\n" + LEVELS, "more than 100000 values"),
        ("a: &a [*a]", "more than 100000 values"),
        ("seed: 2024-99-99", "month must be in"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_settings_that_are_deep_huge_or_no_text_are_refused_at_once(tmp_path, text, reason):
    with pytest.raises(ConfigError, match=f"(?s)not valid YAML: .*{reason}"):
        load(Settings, written(tmp_path, text))
    with pytest.raises(ConfigError, match=r"(?s)motion=.*: not valid YAML"):
        load(Settings, None, [f"motion={text}"])


def test_file_that_is_not_a_settings_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load(Settings, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="expected settings"):
        load(Settings, written(tmp_path, "- 1\n- 2\n"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(Settings, written(tmp_path, "a: [1\n"))
    with pytest.raises(ConfigError, match="expected key=value"):
        load(Settings, None, ["seed"])
    with pytest.raises(ConfigError, match="has none of its settings: run_dir, steps; expected a"):
        load(Settings, written(tmp_path, "run_dir: a\nsteps: 3\n"))


def test_colon_without_a_space_is_named():
    with pytest.raises(ConfigError, match=r"not valid YAML: gap_s:2 needs a space after the colon"):
        load(Settings, None, ["motion={gap_s:2}"])


def test_setting_that_a_file_has_twice_is_refused_with_its_line(tmp_path):
    path = written(tmp_path, "seed: 1\nmotion: {gap_s: 1}\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"not valid YAML: seed is given twice\n.*line 3"):
        load(Settings, path)
    merged = written(tmp_path, "motion: &usual {gap_s: 1}\nlight: {<<: *usual, gap_s: 2}\n")
    assert load(Settings, merged).light == Motion(2)


def test_mapping_with_merged_names_may_be_merged_again(tmp_path):
    @dataclass
    class Both:
        score: Settings
        light: Motion

    fast = "&fast {<<: {gap_s: 1}, gap_s: 2}"
    path = written(tmp_path, f"score: {{motion: {fast}}}\nlight: {{<<: *fast}}\n")
    assert load(Both, path) == Both(Settings(Motion(2)), Motion(2))


def test_differences_list_each_setting_that_changed():
    old, new = as_dict(Settings()), as_dict(Settings(Motion(0.5), name="x"))
    assert differences(old, new) == ["motion.gap_s: 0.25 -> 0.5", "name: None -> 'x'"]


@dataclass(frozen=True)
class Round:
    radius: float = 1.0
    colour: str = "red"


@dataclass(frozen=True)
class Square:
    side: float
    colour: str = "red"


@dataclass(frozen=True)
class Drawing:
    shape: Round | Square = field(default_factory=Round)


def test_union_of_dataclasses_becomes_the_one_whose_names_are_given(tmp_path):
    path = tmp_path / "drawing.yaml"
    path.write_text("shape: {side: 2, colour: blue}")
    assert load(Drawing, path) == Drawing(Square(2.0, "blue"))
    assert load(Drawing, path, ["shape.side=3"]) == Drawing(Square(3.0, "blue"))
    assert load(Drawing, path, ["shape.colour=no"]) == Drawing(Square(2.0, "no"))
    assert load(Drawing, None, ["shape.colour=no"]) == Drawing(Round(1.0, "no"))
    assert load(Drawing, None) == Drawing(Round())
    found = Drawing(Square(4.0))
    assert build(Drawing, as_dict(found), "saved") == found
    path.write_text("shape: {side: 2, colou: blue}")
    with pytest.raises(ConfigError, match=r"shape\.colou is not a setting; did you mean shape\.co"):
        load(Drawing, path)


def test_error_of_an_override_names_the_command_line_instead_of_the_file(tmp_path):
    path = tmp_path / "drawing.yaml"
    path.write_text("shape: {side: 2}")
    for wrong in ("shap.side=3", "shape.sid=3", "shape.side=wide"):
        with pytest.raises(ConfigError, match=r"^command line: shap"):
            load(Drawing, path, [wrong])
    path.write_text("shape: {side: wide}")
    with pytest.raises(ConfigError, match=r"drawing\.yaml: shape\.side is 'wide'"):
        load(Drawing, path, ["shape.colour=blue"])
