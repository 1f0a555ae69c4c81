"""The page in headless Chromium: play, filter, thresholds, flag, correct, audit, export."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.storage import Folder
from pipelines.browse.audit_marks import AuditSettings
from pipelines.reviews import read_reviews
from tests.support.chromium import Browser, chromium
from tests.support.local_page import local_page
from tests.support.whole_run import run_here

pytestmark = pytest.mark.browser
HOSTILE = (
    "<img src=x onerror=\"document.title='ran'\"></textarea><script>document.title='ran'</script>"
    "{{7*7}}</style><svg onload=\"document.title='ran'\">"
)


@pytest.fixture
def out(dataset, tmp_path) -> Path:
    return Path(shutil.copytree(dataset.out, tmp_path / "out"))


@contextmanager
def opened(out: Path, folder: Path, audit: AuditSettings | None = None) -> Iterator[Browser]:
    with local_page(str(out), audit=audit) as page, chromium(folder / "profile") as browser:
        browser.size(1300, 900)
        browser.open(page.url)
        yield browser


def wait_for_list(browser: Browser, n: int) -> None:
    browser.wait(f"document.querySelectorAll('#rows button').length === {n}")


def choose(browser: Browser, selector: str, value: str) -> None:
    """Sets a select or an input, and sends its events."""
    script = f"""(() => {{
      const node = document.querySelector({json.dumps(selector)});
      node.value = {json.dumps(value)};
      node.dispatchEvent(new Event('input', {{bubbles: true}}));
      node.dispatchEvent(new Event('change', {{bubbles: true}}));
    }})()"""
    browser.run(script)


def test_clips_are_filtered_played_flagged_corrected_and_exported(out, tmp_path, cluster):
    with opened(out, tmp_path) as browser:
        wait_for_list(browser, 6)
        assert browser.run("location.search") == ""  # the token is in no history
        # a rejected clip plays its source between start and end
        choose(browser, "#filter-rule", "static_share")
        wait_for_list(browser, 1)
        browser.wait("document.querySelector('#clip .reasons') !== null")
        assert "static_share" in browser.text("#clip .reasons")
        browser.wait("document.querySelector('video')?.readyState >= 2")
        choose(browser, "#filter-rule", "")
        choose(browser, "#filter-status", "kept")
        wait_for_list(browser, 4)
        browser.wait("state.clip?.clip_id === state.rows[0].clip_id")
        # keys alone
        browser.run("document.activeElement.blur()")
        first = browser.text("#clip code")
        browser.press("j")
        browser.wait(f"document.querySelector('#clip code').innerText !== {json.dumps(first)}")
        browser.press("k")
        browser.wait(f"document.querySelector('#clip code').innerText === {json.dumps(first)}")
        browser.wait("document.querySelector('video').readyState >= 2")
        browser.run("document.activeElement.blur()")
        browser.press(" ")
        browser.wait("document.querySelector('video').currentTime > 0.3")
        browser.press("4")
        browser.wait("document.querySelector('video').currentTime > 1.7")
        browser.wait("document.querySelector('[data-segment=\"3\"]').hasAttribute('aria-current')")
        browser.press("f")
        browser.wait("document.querySelector('#rows .flag') !== null")
        browser.wait("document.querySelector('#flag').getAttribute('aria-pressed') === 'true'")
        browser.run("document.activeElement.blur()")
        browser.press("e")
        browser.wait("document.activeElement.id === 'edit-0'")
        for i in range(5):
            choose(browser, f"#edit-{i}", f"Part {i} {HOSTILE}")
        choose(browser, "#edit-all", "A square sways before a wall.")
        browser.press("Enter", ctrl=True)
        browser.wait(
            "document.querySelector('#clip .pill.plain')?.innerText === 'corrected by Ada'"
        )
        assert "<script>" in browser.text(".segments")  # as text
        assert browser.run("document.title").startswith("longtake browse")
        assert browser.errors == []
    reviews = read_reviews(Folder(str(out))).to_pylist()
    assert [(row["kind"], row["reviewer"], row["clip_id"]) for row in reviews] == [
        ("flag", "Ada", first),
        ("caption", "Ada", first),
    ]
    run_here("export", out, cluster)
    rows = {row["clip_id"]: row for row in pq.read_table(out / "clips.parquet").to_pylist()}
    with tarfile.open(out / "shards" / rows[first]["shard"]) as tar:
        sample = json.load(tar.extractfile(f"{first}.json"))
    assert sample["caption"] == "A square sways before a wall."
    assert sample["captioner"] == "corrected"
    run_here("select", out, cluster, "select.reject_flagged=true")
    rows = {row["clip_id"]: row for row in pq.read_table(out / "clips.parquet").to_pylist()}
    assert rows[first]["rule"] == "flagged"


def test_moved_threshold_changes_the_funnel_and_shows_the_clips_that_it_loses(out, tmp_path):
    kept = [r for r in pq.read_table(out / "clips.parquet").to_pylist() if r["status"] == "kept"]
    values = sorted(row["brightness"] for row in kept)
    with opened(out, tmp_path) as browser:
        wait_for_list(browser, 6)
        browser.press("p")
        browser.wait("document.querySelector('#exactness').innerText.startsWith('exact')")
        assert browser.text("#figures dd") == "4"
        least = (values[0] + values[1]) / 2
        choose(browser, "[data-rule=brightness] input[type=number]", str(least))
        browser.wait("document.querySelector('#figures dd').innerText === '3'")
        browser.wait("document.querySelector('#exactness').innerText.startsWith('exact')")
        assert f"select.policy.brightness='{{min: {least}" in browser.text("#command pre")
        browser.run("[...document.querySelectorAll('#changes button')].at(-1).click()")
        wait_for_list(browser, 1)
        browser.wait("document.querySelector('#clip code') !== null")
        [darkest] = [row for row in kept if row["brightness"] == values[0]]
        browser.wait(f"document.querySelector('#clip code').innerText === '{darkest['clip_id']}'")
        assert browser.errors == []


def test_sample_is_marked_by_keys_and_gives_precision_and_recall(out, tmp_path):
    rows = {row["clip_id"]: row for row in pq.read_table(out / "clips.parquet").to_pylist()}
    with opened(out, tmp_path, AuditSettings(0, 6)) as browser:
        browser.wait("document.querySelector('#mark-good') !== null")
        for number in range(6):
            browser.wait(f"state.audit.at === {number} && document.querySelector('#mark-bad')")
            clip_id = browser.run("state.audit.clips[state.audit.at].clip_id")
            browser.wait(f"state.clip?.clip_id === '{clip_id}'")
            browser.press("g" if rows[clip_id]["status"] == "kept" else "b")
        browser.wait("!document.querySelector('#view-results').hidden")
        browser.wait("document.querySelector('#view-results tbody') !== null")
        policy = browser.text("#view-results tbody tr")
        assert policy.split()[:3] == ["policy", "100.0", "%"]
        assert browser.errors == []
    assert read_reviews(Folder(str(out))).num_rows == 6


def test_hostile_names_captions_and_reasons_are_shown_as_text(out, tmp_path):
    table = pq.read_table(out / "clips.parquet")
    rows = table.to_pylist()
    for row in rows:
        row |= {"video": f"/nowhere/{HOSTILE}.mp4", "caption": HOSTILE, "captioner": HOSTILE}
        row["sub_captions"] = [{"start_s": 0.0, "end_s": 3.0, "text": HOSTILE}]
        row |= {"reason": HOSTILE, "reasons": [HOSTILE], "rule": HOSTILE, "rules": [HOSTILE]}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), out / "clips.parquet")
    with opened(out, tmp_path) as browser:
        wait_for_list(browser, 6)
        browser.wait("document.querySelector('#clip .segments p') !== null")
        for selector in ("#rows", "#clip h2", "#clip .reasons", "#clip .caption", ".segments"):
            assert "<svg onload" in browser.text(selector), selector
        browser.click("[data-view=policy]")
        browser.wait("document.querySelector('#funnel tr') !== null")
        assert browser.run("document.title").startswith("longtake browse")
        assert browser.run("document.querySelectorAll('script').length") == 1
        policy = [error for error in browser.errors if "Content Security Policy" in error]
        assert policy == []
        # The test would fail otherwise: markup that is parsed is stopped by the policy.
        parse = "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')"
        assert (
            browser.run(
                f"(() => {{ try {{ {parse}; return 'parsed' }} catch (e) {{ return e.name }} }})()"
            )
            == "TypeError"
        )


@pytest.mark.parametrize("width", [360, 768, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_its_width_and_every_control_has_a_name(out, tmp_path, width, dark):
    with opened(out, tmp_path) as browser:
        browser.size(width, 800, dark)
        wait_for_list(browser, 6)
        for view in ("clips", "policy"):
            browser.click(f"[data-view={view}]")
            browser.wait("document.querySelector('#rules .rule svg') || state.view === 'clips'")
            assert browser.run("document.documentElement.scrollWidth") <= width, view
        unnamed = browser.run("""[...document.querySelectorAll('button, input, select, textarea')]
            .filter((node) => !(node.innerText || node.ariaLabel || node.labels?.length
                || node.querySelector('img'))).map((node) => node.outerHTML)""")
        assert unnamed == []
        colours = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (colours == "rgb(20, 23, 26)") == dark
        assert browser.errors == []
