"""What every command has: arguments, --help, one-line errors, Ctrl-C, a closed pipe.

A command is a module with a `main(argv)` that calls `run_command`. It refuses a mistyped setting at
once where the module itself imports neither torch nor Ray: `work` imports them. A module that is
also a library of torch code calls `check_command_line` first.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import select
import signal
import sys
import textwrap
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from curation import config
from curation.errors import UserError
from curation.progress import printable

EXIT_INTERRUPTED = 130  # what a shell reports for Ctrl-C
EXIT_CLOSED_PIPE = 141  # and for a reader that ended early, as `| head` does
MAX_LINE_CHARS = 1000  # of a message with names or texts of others
INSTALLED = Path(__file__).parent.parent  # the folder of curation/, stages/, configs/ …
SETTING_COLUMNS = 44  # of --help, before the comment

S = TypeVar("S")
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")


class UsageError(UserError):
    """The arguments are not those that the command takes."""


@dataclass(frozen=True)
class NoSettings:
    """For a command without settings: each argument is a value, also one with `=`."""


@dataclass(frozen=True)
class Arguments(Generic[S]):
    """A command line, checked."""

    values: list[str]  # in order, without CONFIG
    settings: S
    options: frozenset[str]  # as written: --dry-run
    option_values: dict[str, str] = dataclasses.field(default_factory=dict)  # --sample -> 20

    def whole_number(self, option: str, default: int, most: int = 2**31 - 1) -> int:
        """The option's value. Raises UsageError."""
        text = self.option_values.get(option, str(default))
        if text.isdecimal() and len(text) <= len(str(most)) and int(text) <= most:
            return int(text)
        raise UsageError(f"{option} is {text!r:.60}: expected a whole number up to {most}")


def run_command(
    doc: str | None,
    work: Callable[[Arguments[S]], int | None],
    argv: Sequence[str],
    *,
    settings: type[S] = NoSettings,  # type: ignore[assignment]
    arguments: str = "[CONFIG]",
    options: Collection[str] = (),
    default_config: str | None = None,
    stopped: str = "",
    prefix: str = "",
    user_errors: tuple[type[Exception], ...] = (),
) -> None:
    """Parses argv and calls `work`. Returns where that returns 0 or None; else raises SystemExit.

    doc: the module's docstring; --help prints it, then every setting.
    arguments: their names, as `OUT PROMPT [CONFIG]`: in brackets where they may be left out, `...`
    after the last where it may be repeated. CONFIG is a YAML file of settings.
    options: `--open`, or with a value `--sample N`.
    default_config: read where no CONFIG is given. stopped: what Ctrl-C adds to `stopped`.
    user_errors: printed without a traceback, as every UserError is. prefix: of all such messages.
    """
    catch: tuple[type[Exception], ...] = (UserError, *user_errors)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: stop cleanly
    try:
        if {"-h", "--help"} & set(argv):
            print("\n".join(help_lines(doc, settings, default_config)))
            code = 0
        else:
            parsed = parse(argv, settings, arguments, options, default_config)
            code = work(parsed) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        closed = [fd for fd in (1, 2) if _has_no_reader(fd)]
        if not closed:
            raise
        for fd in closed:  # Python flushes both when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        sys.exit(EXIT_CLOSED_PIPE)
    except catch as e:
        lines = [printable(line, MAX_LINE_CHARS) for line in str(e).splitlines()]
        sys.exit(f"{prefix}{type(e).__name__}: " + "\n".join(lines))
    except KeyboardInterrupt:
        print("stopped" + (f"; {stopped}" if stopped else ""), file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if code:
        sys.exit(code)


def check_command_line(
    doc: str | None,
    settings: type[Any] = NoSettings,
    arguments: str = "[CONFIG]",
    options: Collection[str] = (),
) -> None:
    """For a command whose module imports torch: called before that import, under `if __name__ ==
    "__main__"`, it prints --help or what is wrong, and exits; else it returns."""
    argv = sys.argv[1:]
    run_command(doc, lambda _: None, argv, settings=settings, arguments=arguments, options=options)
    if {"-h", "--help"} & set(argv):
        sys.exit()


def parse(
    argv: Sequence[str],
    settings: type[S],
    arguments: str,
    options: Collection[str] = (),
    default_config: str | None = None,
) -> Arguments[S]:
    """Returns the checked command line; see `run_command`. Raises UsageError, ConfigError."""
    given: list[str] = []
    overrides: list[str] = []
    option_values: dict[str, str] = {}
    with_value = {option.split()[0]: option for option in options if " " in option}
    left = iter(argv)
    for arg in left:
        option, equals, value = arg.partition("=")
        if option in with_value:
            option_values[option] = value if equals else next(left, "")
            if not option_values[option]:
                raise UsageError(f"{option} has no value; expected {with_value[option]}")
        elif settings is not NoSettings and is_setting(arg):
            if value.startswith("{") and value.count("{") > value.count("}"):
                raise UsageError(
                    f"{arg} has no closing brace; in a shell, quote a value with spaces: "
                    f"{option}='{{max: 1}}', and for make ARGS=\"{option}='{{max: 1}}'\""
                )
            overrides.append(arg)
        elif not _OPTION.fullmatch(option):
            given.append(arg)
        elif arg not in options:
            known = "".join(f"expected {option}; " for option in options)
            hint = f"{known}settings are given as key=value, --help lists them"
            raise UsageError(f"{arg} is not an option; {hint}")
    names = arguments.split()
    least = sum(not name.startswith("[") for name in names)
    repeats = names and names[-1].endswith("...")
    if not least <= len(given) <= (len(given) if repeats else len(names)):
        found = ", ".join(printable(value, 60) for value in given) or "none"
        raise UsageError(f"expected {arguments or 'no argument'}, found {found}; --help explains")
    at = [name.strip("[]") for name in names].index("CONFIG") if "CONFIG" in arguments else None
    path = default_config
    if at is not None and at < len(given):
        path = find_config(given.pop(at))
    loaded = config.load(settings, path, overrides)
    return Arguments(given, loaded, frozenset(a for a in argv if a in options), option_values)


def print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def is_setting(argument: str) -> bool:
    """Whether it is `key=value`."""
    return _SETTING.match(argument) is not None


def find_config(path: str) -> str:
    """The file; of configs/NAME, where the working folder has none, the installed one."""
    installed = INSTALLED / path
    use_installed = path.startswith("configs/") and installed.is_file()
    return str(installed) if use_installed and not Path(path).exists() else path


def help_lines(doc: str | None, settings: type, default_config: str | None = None) -> list[str]:
    lines = [(doc or "").strip()]
    if settings is NoSettings:
        return lines
    values: Any = None
    source = "their defaults"
    if default_config is not None:
        values = config.load(settings, default_config)
        source = f"their values in {'/'.join(Path(default_config).parts[-2:])}"
        lines += ["", f"CONFIG is a YAML file of settings; {source.split()[-1]} if none is given."]
    lines += ["", f"Settings, with {source}. Each can be given as key=value; the value is YAML."]
    return [*lines, *_setting_lines(settings, values)]


def _setting_lines(kind: type, values: Any = None, prefix: str = "") -> Iterator[str]:
    """A line per setting: name, value, meaning. values: an instance; None: the defaults."""
    hints, comments = typing.get_type_hints(kind), field_comments(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        value = _default(field) if values is None else getattr(values, field.name)
        kinds = (hints[field.name], *typing.get_args(hints[field.name]))
        nested = [k for k in kinds if dataclasses.is_dataclass(k)]
        if nested and (value is dataclasses.MISSING or dataclasses.is_dataclass(value)):
            first = nested[0] if value is dataclasses.MISSING else type(value)
            given = None if value is dataclasses.MISSING else value
            yield from _setting_lines(typing.cast(type, first), given, f"{name}.")
            for other in nested:
                if other is not first:
                    yield f"  or, in place of these settings of {name}:"
                    yield from _setting_lines(typing.cast(type, other), None, f"{name}.")
        elif isinstance(value, Mapping) and value:
            yield from (f"  {name}.{key}={{{item}}}" for key, item in value.items())
        else:
            comment = comments.get(field.name)
            line = f"  {name}={_as_yaml(value)}".ljust(SETTING_COLUMNS)
            yield (line + (f"  # {comment}" if comment else "")).rstrip()


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default; MISSING where the setting must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return "(required)" if value is dataclasses.MISSING else str(value)


def field_comments(kind: type) -> dict[str, str]:
    """Setting -> the comment above its field, or else at its right, inherited fields included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            names = {field.name for field in dataclasses.fields(base)}
            found |= _comments_in(inspect.getsource(base), names)
    return found


def _comments_in(source: str, names: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[str] = []
    for line in textwrap.dedent(source).splitlines():
        code, _, comment = line.partition("# ")
        if not code.strip():
            above += [comment] if comment else []
            continue
        name = re.match(r" {4}(\w+):", code)  # of the class, not of one of its methods
        if name and name[1] in names:
            found[name[1]] = found.get(name[1]) or " ".join(above) or comment
        above = []
    return found


def _has_no_reader(fd: int) -> bool:
    """Whether the file descriptor is a pipe or socket whose other end is closed."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
