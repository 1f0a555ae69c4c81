"""The display of progress on a terminal and in a pipe."""

import io
import os
import pty
import re
import threading
import time

import pytest

from curation.progress import Progress, format_duration, printable


def lines_of(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def read_into(end: int, parts: list[bytes]) -> None:
    """Reads until the other end is closed: a terminal that is not read fills up."""
    while True:
        try:
            parts.append(os.read(end, 65536))
        except OSError:  # on Linux, where the other end is closed
            return


def test_phase_ends_with_one_line_of_counts_in_a_pipe():
    out = io.StringIO()
    with Progress("score", 34, "videos", out) as progress:
        progress.update(done=30, rejected=7)
        progress.update(done=4, failed=1)
    assert lines_of(out) == [
        "score  34/34 videos · 7 rejected · 1 failed · in 0 s",
    ]


def test_lines_are_printed_at_intervals_in_a_pipe_even_without_updates():
    out = io.StringIO()
    with Progress("caption", None, "clips", out, every_s=0.05):
        time.sleep(0.5)
    assert len(lines_of(out)) >= 3
    assert all(line.startswith("caption  0 clips · 0 failed") for line in lines_of(out))


def test_begin_and_end_of_a_wait_are_printed_at_once_in_a_pipe():
    out = io.StringIO()
    with Progress("caption", 9, "clips", out, every_s=0.2) as progress:
        for _ in range(3):
            progress.show_wait_reason("the server\n is down")
            time.sleep(0.15)
        progress.show_wait_reason(None)
        progress.show_wait_reason(None)
    lines = lines_of(out)
    assert lines[0] == r"caption  the server\n is down"
    assert r"caption  0/9 clips · 0 failed · the server\n is down" in lines
    assert lines[-2] == "caption  continues"
    assert re.fullmatch(r"caption  0/9 clips · 0 failed · in \d+ s", lines[-1])


@pytest.mark.parametrize(
    ("done", "expected"), [(50, "5/s · 10 s left"), (2, "12/min · 8 min 10 s left"), (100, "10/s")]
)
def test_speed_and_time_left_follow_from_the_units_done(done, expected):
    with Progress("score", 100, "videos", io.StringIO()) as progress:
        progress._history[0] = (time.monotonic() - 10, 0)  # as if the phase had begun 10 s ago
        progress.update(done=done)
        assert progress.format_line().endswith(f"0 failed · {expected}")


def test_speed_is_that_of_the_last_minute():
    """An hour of loading a model must not lower the speed of the run."""
    with Progress("caption", 1000, "clips", io.StringIO()) as progress:
        now = time.monotonic()
        progress._history.clear()
        progress._history.extend([(now - 3600, 0), (now - 100, 0), (now - 50, 0)])
        progress.update(done=500)
        assert "5/s · 1 min 40 s left" in progress.format_line()


def test_control_characters_in_names_are_printed_as_escapes():
    out = io.StringIO()
    with Progress("score\n", 1, "vid\x1b[31meos", out) as progress:
        progress.print_line("failed: \x1b[2J\u202egpm.exe\nscore  999/999 videos")
    text = out.getvalue()
    assert len(lines_of(out)) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"\x1b[2J\u202egpm.exe\nscore" in text


def test_output_in_ascii_gets_escapes_instead_of_an_error():
    raw = io.BytesIO()
    with Progress("score", 1, "videos", io.TextIOWrapper(raw, "ascii")) as progress:
        progress.print_line("чужой.mp4")
    assert b"\\u0447" in raw.getvalue()


def test_failed_phase_prints_the_error_class_and_raises_the_error():
    out = io.StringIO()

    def export() -> None:
        with Progress("export", 3, "clips", out) as progress:
            progress.update(done=1)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export()
    assert lines_of(out)[-1] == "export  stopped by OSError"
    assert "1/3 clips" in lines_of(out)[-2]


def test_live_line_on_a_terminal_is_redrawn_and_ends_with_the_final_counts():
    ours, theirs = pty.openpty()
    parts: list[bytes] = []
    reader = threading.Thread(target=read_into, args=(ours, parts), daemon=True)
    reader.start()
    with (
        open(theirs, "w", encoding="utf-8") as out,
        Progress("score", 3, "videos", out) as progress,
    ):
        for reason in (None, "the server is down", None):
            progress.show_wait_reason(reason)
            progress.update(done=1)
            time.sleep(0.4)
        progress.print_line("one \x1b[31m failed [bold]x[/bold]")
    reader.join(10)
    os.close(ours)
    output = b"".join(parts).decode()
    assert output.count("score  ") >= 2  # drawn more than once, in place
    assert "\x1b[" in output
    assert r"one \x1b[31m failed [bold]x[/bold]" in output  # not our markup either
    assert "the server is down" in output
    assert "3/3 videos · 0 failed" in (last := output[output.rindex("score  ") :])
    assert "down" not in last


def test_printable_keeps_any_language_and_shortens_long_names_in_the_middle():
    assert printable("видео ☂ می\u200cخواهم.mp4") == "видео ☂ می\u200cخواهم.mp4"
    assert printable("\udcff\x00") == r"\udcff\x00"
    long = printable("a" * 500 + ".mp4", 40)
    assert len(long) == 40
    assert long.endswith(".mp4")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (59.9, "1 min 00 s"), (200, "3 min 20 s"), (18420, "5 h 07 min")],
)
def test_duration_is_formatted_in_two_units_at_most(seconds, text):
    assert format_duration(seconds) == text
