"""The card of a dataset: a header that the hub reads, and texts that stay texts."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from markdown_it import MarkdownIt

from curation.progress import printable
from stages.report.card import dataset_card, escape, table

HOSTILE = (
    "<script>alert(1)</script>",
    "[link](https://example.com)",
    "![image](https://example.com/x.png)",
    "a | b\n| --- |\n# heading",
    "*bold* _it_ ~~no~~ `code` $x$",
    "<!-- \\",
    "&lt;b&gt;",
    "https://example.com www.example.com",
)


def render(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


@pytest.fixture
def parts(dataset):
    manifest = json.loads((dataset.out / "manifest.json").read_text())
    tables = [pq.read_table(dataset.out / f"{n}.parquet") for n in ("funnel", "videos", "clips")]
    return manifest, tables


def header(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_export_writes_a_card_with_the_header_of_the_hub(dataset, parts):
    card = (dataset.out / "README.md").read_text()
    found = header(card)
    assert found["size_categories"] == ["n<1K"]
    assert found["license"] == "unknown"
    [clips] = found["configs"]
    for part in clips["data_files"]:
        named = {path.name for path in dataset.out.glob(part["path"])}
        assert named == {p.name for p in (dataset.out / "shards").glob(f"{part['split']}-*.tar")}
        assert named
    assert "4 clips of 3 videos" in card
    html = render(card.split("---\n", 2)[2])
    assert "<td>static_share &gt; 0.9</td>\n<td>1</td>" in html
    assert "<td>frozen_share</td>\n<td>max: 0.3</td>" in html
    assert html.count("<h2>") == 4
    manifest, tables = parts
    assert dataset_card(manifest, *tables) == card


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_shown_as_they_are(text):
    html = render(table(["a", "b"], [[text, 1]]))
    assert html.count("<tr>") == 2
    for tag in ("<script", "<a ", "<img", "<em", "<strong", "<code", "<s>", "<h1", "<!--"):
        assert tag not in html
    shown = render(escape(text)).removeprefix("<p>").removesuffix("</p>\n")
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown == printable(text)


def test_hostile_reasons_and_settings_stay_texts(parts):
    manifest, (funnel, videos, clips) = parts
    rows = funnel.to_pylist()
    rows += [rows[-1] | {"reason": text} for text in HOSTILE]
    manifest["config"]["select"]["where"] = "caption <> '<script>'\n# x"
    manifest["config"]["caption"] |= {"model": "<img src=x>", "languages": ["en", "x: y"]}
    card = dataset_card(manifest, funnel.from_pylist(rows, funnel.schema), videos, clips)
    assert header(card)["language"] == ["en"]
    html = render(card.split("---\n", 2)[2])
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("<h1>") == 1
    assert "does not know the licence" in html


def test_dataset_without_clips_has_a_card(parts):
    manifest, (funnel, videos, clips) = parts
    manifest["splits"], manifest["shards"] = {}, {"clips": 0, "shards": 0}
    card = dataset_card(manifest, funnel, videos, clips.slice(0, 0))
    assert "No clip is in a shard." in card
    assert header(card)["configs"] == []


def test_datasets_reads_the_folder_by_its_card(dataset):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(dataset.out), split="train", streaming=True).decode(False)
    shards = pq.read_table(dataset.out / "shards.parquet").to_pylist()
    assert {row["__key__"] for row in rows} == {
        row["clip_id"] for row in shards if row["split"] == "train"
    }
