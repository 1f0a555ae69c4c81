"""What a person sees while a phase runs."""

import io
import os
import pty
import re
import threading
import time

import pytest

from curation.progress import Progress, duration, shown


def lines_of(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def read_into(end: int, seen: list[bytes]) -> None:
    """Reads until the other end is closed, as a terminal does: one that nobody reads fills up."""
    while True:
        try:
            seen.append(os.read(end, 65536))
        except OSError:  # how Linux says that the other end is closed
            return


def test_off_a_terminal_a_phase_ends_with_one_plain_line_of_its_counts():
    out = io.StringIO()
    with Progress("score", 34, "videos", out) as progress:
        progress.update(done=30, kept=20, rejected=7)
        progress.update(done=4, kept=2, failed=1)
    assert lines_of(out) == [
        "score  34/34 videos · 22 kept · 7 rejected · 1 failed · in 0 s",
    ]


def test_off_a_terminal_a_line_comes_at_intervals_even_if_nothing_happens():
    out = io.StringIO()
    with Progress("caption", None, "clips", out, every_s=0.05):
        time.sleep(0.5)
    assert len(lines_of(out)) >= 3
    assert all(line.startswith("caption  0 clips · 0 failed") for line in lines_of(out))


def test_off_a_terminal_what_is_waited_for_is_said_at_once_beside_the_counts_and_when_it_ends():
    out = io.StringIO()
    with Progress("caption", 9, "clips", out, every_s=0.2) as progress:
        for _ in range(3):
            progress.note("the server\n is gone")
            time.sleep(0.15)
        progress.note(None)
        progress.note(None)
    lines = lines_of(out)
    assert lines[0] == r"caption  the server\n is gone"
    assert r"caption  0/9 clips · 0 failed · the server\n is gone" in lines
    assert lines[-2:] == ["caption  goes on", "caption  0/9 clips · 0 failed · in 0 s"]


@pytest.mark.parametrize(
    ("done", "said"), [(50, "5/s · 10 s left"), (2, "12/min · 8 min 10 s left"), (100, "10/s")]
)
def test_speed_and_time_left_come_from_what_was_done(done, said):
    with Progress("score", 100, "videos", io.StringIO()) as progress:
        progress._marks[0] = (time.monotonic() - 10, 0)  # as if the phase had begun 10 s ago
        progress.update(done=done)
        assert progress.line().endswith(f"0 failed · {said}")


def test_speed_forgets_what_was_more_than_a_minute_ago():
    """A model that loaded for an hour doesn't make the rest of the run look slow."""
    with Progress("caption", 1000, "clips", io.StringIO()) as progress:
        now = time.monotonic()
        progress._marks.clear()
        progress._marks.extend([(now - 3600, 0), (now - 100, 0), (now - 50, 0)])
        progress.update(done=500)
        assert "5/s · 1 min 40 s left" in progress.line()


def test_hostile_names_reach_neither_a_pipe_nor_a_terminal_as_control_characters():
    out = io.StringIO()
    with Progress("score\n", 1, "vid\x1b[31meos", out) as progress:
        progress.say("failed: \x1b[2J\u202egpm.exe\nscore  999/999 videos")
    text = out.getvalue()
    assert len(lines_of(out)) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"\x1b[2J\u202egpm.exe\nscore" in text


def test_a_pipe_that_knows_only_ascii_gets_escapes_not_an_error():
    raw = io.BytesIO()
    with Progress("score", 1, "videos", io.TextIOWrapper(raw, "ascii")) as progress:
        progress.say("чужой.mp4")
    assert b"\\u0447" in raw.getvalue()


def test_a_phase_that_fails_says_so_and_lets_the_error_through():
    out = io.StringIO()

    def export() -> None:
        with Progress("export", 3, "clips", out) as progress:
            progress.update(done=1)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export()
    assert lines_of(out)[-1] == "export  stopped by OSError"
    assert "1/3 clips" in lines_of(out)[-2]


def test_on_a_terminal_a_live_line_is_redrawn_and_stays_with_the_final_counts():
    ours, theirs = pty.openpty()
    parts: list[bytes] = []
    reader = threading.Thread(target=read_into, args=(ours, parts), daemon=True)
    reader.start()
    with (
        open(theirs, "w", encoding="utf-8") as out,
        Progress("score", 3, "videos", out) as progress,
    ):
        for note in (None, "the server is gone", None):
            progress.note(note)
            progress.update(done=1, kept=1)
            time.sleep(0.4)
        progress.say("one \x1b[31m failed [bold]x[/bold]")
    reader.join(10)
    os.close(ours)
    seen = b"".join(parts).decode()
    assert seen.count("score  ") >= 2  # drawn more than once, in place
    assert "\x1b[" in seen
    assert r"one \x1b[31m failed [bold]x[/bold]" in seen  # not our markup either
    assert "the server is gone" in seen
    assert "3/3 videos · 3 kept · 0 failed" in (last := seen[seen.rindex("score  ") :])
    assert "gone" not in last


def test_shown_keeps_any_language_and_cuts_long_names_in_the_middle():
    assert shown("видео ☂ می\u200cخواهم.mp4") == "видео ☂ می\u200cخواهم.mp4"
    assert shown("\udcff\x00") == r"\udcff\x00"
    long = shown("a" * 500 + ".mp4", 40)
    assert len(long) == 40
    assert long.endswith(".mp4")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (59.9, "1 min 00 s"), (200, "3 min 20 s"), (18420, "5 h 07 min")],
)
def test_durations_read_as_a_person_would_say_them(seconds, text):
    assert duration(seconds) == text
