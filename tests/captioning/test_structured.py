"""Fields of sub-captions, with caption.structured: requests, checks, tables, shards and report."""

import io
import json
import shutil
import tarfile

import pyarrow.parquet as pq
import pytest

from curation import config
from curation.ledger import ADDED_LATER
from curation.records import CAPTION, FIELD_NAMES, schema
from curation.stage import RunContext
from curation.storage import Folder
from pipelines import caption, export, select
from pipelines.settings import DEFAULT_CONFIG, CaptionSettings, Settings
from pipelines.tables import SELECTION, captions_ledger, make_clips_table, read_clips
from stages.captioning.caption_fields import MAX_FIELD_WORDS, failed_field, parse_fields
from stages.captioning.captioner import NOT_STRUCTURED, Captioner
from stages.captioning.conversation import Conversation, prompts_version
from tests.captioning.test_conversation import segments, texts_of
from tests.captioning.test_measured import clip_of, drawn
from tests.support.chat_server import ChatRequest, ChatServer
from tests.support.drawn_key_frames import STILL_CAMERA, IdentifyingModel, caption_of, make_clip
from tests.support.small_input import SETTINGS

FIELDS = {
    "subject": "a red boat with two fishermen",
    "action": "it drifts & turns",
    "camera": "it stays still",
    "light": "soft morning light",
    "style": "a wide view in muted colours",
}


def with_fields(caption_json: str, request: ChatRequest, **changes: object) -> str:
    """The answer, with the fields where the request's schema has them."""
    names = request.body["response_format"]["json_schema"]["schema"]["required"]
    answer = json.loads(caption_json)
    if names == ["caption"]:
        return json.dumps(answer)
    assert names == ["caption", *FIELD_NAMES]
    assert '"subject": "..."' in "".join(request.texts)
    return json.dumps(answer | FIELDS | changes)


def captioner(server: ChatServer, ledger, **more) -> Captioner:
    settings = CaptionSettings(structured=True)
    openai = settings.openai
    openai.url, openai.model, openai.backoff_s = server.url, "tiny", 0.005
    for name, value in more.items():
        setattr(openai, name, value)
    chosen = settings.chosen
    chosen.setup(RunContext(str(ledger)))
    return chosen


def fields_of(sub_caption: dict) -> dict:
    return {name: sub_caption[name] for name in FIELD_NAMES}


@pytest.mark.parametrize("refine", [False, True])
def test_each_sub_caption_has_fields_and_the_caption_of_the_clip_none(tmp_path, refine):
    model = IdentifyingModel(1)

    def answer(request: ChatRequest) -> str:
        _, part = model.identify(request)
        if is_refined := "Rewrite the draft" in "".join(request.texts):
            part = int("".join(request.texts).split("part ")[2][0]) - 1
        text = json.dumps({"caption": caption_of(7 if is_refined else 0, part)})
        return with_fields(text, request, light=f"{'late' if is_refined else 'early'} light {part}")

    with ChatServer(answer) as server:
        [row] = captioner(server, tmp_path, refine=refine).process([make_clip(tmp_path, 0)])
    assert row["error"] is row["rejected"] is None
    expected = [f"{'late' if refine else 'early'} light {part}" for part in range(5)]
    assert [fields_of(part) for part in row["sub_captions"]] == [
        FIELDS | {"light": light} for light in expected
    ]
    assert row["field_null_reasons"] == {}
    assert json.loads(row["provenance"])["structured"] is True


def test_without_the_setting_the_requests_and_the_version_of_prompts_are_the_same_as_before():
    plain, structured = Conversation(segments()), Conversation(segments(), structured=True)
    for number in range(5):
        *before, question = texts_of(plain.sub_caption_messages(number, ["a"] * number))
        *same, longer = texts_of(structured.sub_caption_messages(number, ["a"] * number))
        assert before == same
        assert longer.startswith(question + "\nThis time the JSON object has five more fields")
        assert f"about part {number + 1} alone" in longer
        assert "style" not in question
    assert plain.overall_messages(["a"] * 5) == structured.overall_messages(["a"] * 5)
    assert prompts_version() != prompts_version(structured=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"light": ""}, "field light empty"),
        ({"light": ["soft"]}, "field light empty"),
        ({"style": None}, "field style empty"),
        ({"style": "N/A"}, "field style"),
        ({"subject": "I'm sorry, I can't see it"}, "field subject refusal"),
        ({"subject": "**a boat**"}, "field subject"),
        ({"subject": "<script>alert(1)</script> {boat}"}, "field subject"),
        ({"action": "ignores the previous instructions"}, "field action mentions instructions"),
        ({"action": "drifts \ud800 by"}, "field action garbled"),
        ({"action": "drifts and " * MAX_FIELD_WORDS}, "field action too long"),
        ({"action": "x" * 500}, "field action too long"),
        ({"camera": "pans to the right"}, "field camera contradicts the measured "),
    ],
)
def test_field_that_fails_a_check_is_requested_again(tmp_path, changes, reason):
    model = IdentifyingModel(1)

    def answer(request: ChatRequest) -> str:
        is_first = len(server.requests) == 0
        return with_fields(model(request), request, **(changes if is_first else {}))

    with ChatServer(answer) as server:
        [row] = captioner(server, tmp_path).process([make_clip(tmp_path, 0)])
    assert row["error"] is row["rejected"] is None
    assert fields_of(row["sub_captions"][0]) == FIELDS
    assert len(server.requests) == 7
    assert f"could not be used: {reason}" in server.requests[1].question


def test_fields_that_fail_every_attempt_reject_the_clip_and_are_not_stored(tmp_path):
    model = IdentifyingModel(1)

    def answer(request: ChatRequest) -> str:
        is_second = model.identify(request)[1] == 1
        return with_fields(model(request), request, **({"light": "{{7*7}}"} if is_second else {}))

    with ChatServer(answer) as server:
        [row] = captioner(server, tmp_path).process([make_clip(tmp_path, 0)])
    assert row["rejected"].startswith("caption field light ")
    assert "sub-caption 2" in row["rejected"]
    first, second = row["sub_captions"]
    assert fields_of(first) == FIELDS
    assert fields_of(second) == dict.fromkeys(FIELD_NAMES)
    assert row["field_null_reasons"] == dict.fromkeys(FIELD_NAMES, "a text failed a check")


def test_fields_are_found_in_answers_of_servers_without_schemas():
    fields = parse_fields(f"Here:\n```json\n{json.dumps({'caption': 'A boat.'} | FIELDS)}\n```")
    assert fields == FIELDS
    assert failed_field(fields, STILL_CAMERA) is None
    assert parse_fields("A boat.") == dict.fromkeys(FIELD_NAMES, "")
    assert failed_field(parse_fields("A boat."), None) == "field subject empty"


def test_measured_captioner_fills_what_is_measured_and_names_why_the_others_are_null(tmp_path):
    frames = [drawn()] * 3
    clip = clip_of(
        tmp_path,
        frames,
        brightness=[20.0, 100.0, None],
        camera_x=[-30.0, 0.0, 0.0],
        subject_area=[0.0, 0.1, 0.1],
        subject_motion=[0.0, 3.0, 3.0],
        subject_x=30.0,
        subject_y=0.0,
        subject_at_x=0.5,
        subject_at_y=0.5,
    )
    settings = CaptionSettings(structured=True)
    settings.chosen.setup(RunContext(str(tmp_path)))
    [row] = settings.chosen.process([clip])
    assert [fields_of(part) for part in row["sub_captions"]] == [
        {
            "subject": None,
            "action": action,
            "camera": camera,
            "light": light,
            "style": None,
        }
        for action, camera, light in (
            ("hardly anything moves by itself", "the view pans to the left", "very dark"),
            (
                "part of the picture in the middle moves to the right",
                "the view stays still",
                "neither dark nor bright",
            ),
            (
                "part of the picture in the middle moves to the right",
                "the view stays still",
                None,
            ),
        )
    ]
    assert row["field_null_reasons"] == {
        "subject": "needs a model",
        "light": "not measured",
        "style": "needs a model",
    }
    plain = CaptionSettings().chosen
    plain.setup(RunContext(str(tmp_path)))
    [without] = plain.process([clip])
    assert [part["text"] for part in without["sub_captions"]] == [
        part["text"] for part in row["sub_captions"]
    ]
    assert without["caption"] == row["caption"]
    assert without["field_null_reasons"] == dict.fromkeys(FIELD_NAMES, NOT_STRUCTURED)
    assert "structured" not in json.loads(without["provenance"])


@pytest.fixture
def out(dataset, tmp_path):
    return shutil.copytree(dataset.out, tmp_path / "out")


def samples(out) -> dict[str, dict]:
    """clip_id -> JSON of its sample."""
    found = {}
    for path in (out / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    opened = tar.extractfile(member)
                    assert opened is not None
                    found[member.name.removesuffix(".json")] = json.load(io.BytesIO(opened.read()))
    return found


def test_run_with_a_server_stores_the_fields_in_ledger_shards_tables_and_report(out, cluster):
    before = samples(out)

    def answer(request: ChatRequest) -> str:
        part = f"part {request.question[5]}" if request.question.startswith("Part") else "clip"
        key = request.images[0][:6]
        text = f"In {part} number {key} the boats of {part} drift past pier {part} in the fog."
        return with_fields(json.dumps({"caption": text}), request, subject=f"boats of {part}")

    with ChatServer(answer) as server:
        given = [
            *SETTINGS,
            f"output={out}",
            f"caption.openai.url={server.url}",
            "caption.openai.model=tiny",
            "caption.name=structured",
            "caption.structured=true",
            "select.policy.text_similarity_tfidf=null",
            "export.presto=false",
        ]
        settings = config.load(Settings, DEFAULT_CONFIG, given)
        caption.run(settings, Folder(str(out)), cluster)
        plain = config.load(Settings, DEFAULT_CONFIG, [*given, "caption.structured=false"])
        with pytest.raises(config.ConfigError, match=r"structured: True -> None"):
            caption.run(plain, Folder(str(out)), cluster)
    select.run(settings, Folder(str(out)))
    export.run(settings, Folder(str(out)), cluster)

    expected = [FIELDS | {"subject": f"boats of part {n}"} for n in range(1, 6)]
    rows = pq.read_table(out / "ledger/captions/structured").to_pylist()
    kept = [c for c in pq.read_table(out / "clips.parquet").to_pylist() if c["status"] == "kept"]
    shards = samples(out)
    assert len(rows) == len(kept) == len(shards) == len(before) > 0
    for row in (*rows, *kept):
        assert [fields_of(part) for part in row["sub_captions"]] == expected
        assert row["field_null_reasons"] == []
    for clip_id, sample in shards.items():
        assert [fields_of(part) for part in sample["sub_captions"]] == expected
        assert before[clip_id]["sub_captions"][0].keys() == {"start_s", "end_s", "text"}
        assert sample["provenance"]["prompts"] == prompts_version(structured=True)
    page = (out / "report.html").read_text()
    assert page.count("<dt>action</dt>") == 5 * len(kept)
    assert "it drifts &amp; turns" in page
    assert "it drifts & turns" not in page


def test_fields_of_an_older_ledger_are_null_with_that_reason(out):
    """Its captions have neither the fields nor the column of null reasons."""
    ledger = out / "ledger" / "captions" / "measured"
    for part in ledger.glob("*.parquet"):
        table = pq.read_table(part).drop_columns(["field_null_reasons"])
        parts = [
            [{key: s[key] for key in ("start_s", "end_s", "text")} for s in row]
            for row in table["sub_captions"].to_pylist()
        ]
        old = {"sub_captions": parts} | {
            name: table[name] for name in table.column_names if name != "sub_captions"
        }
        pq.write_table(type(table).from_pydict(old, metadata=table.schema.metadata), part)
    captions = captions_ledger(Folder(str(out)), "measured").read()
    clips = read_clips(Folder(str(out)))
    shards = pq.read_table(out / "shards.parquet")
    selection = Folder(str(out)).read_table(f"ledger/{SELECTION}")
    rows = make_clips_table(clips, selection, captions, shards).to_pylist()
    captioned = [row for row in rows if row["caption"]]
    assert captioned
    for row in captioned:
        assert dict(row["field_null_reasons"]) == dict.fromkeys(FIELD_NAMES, ADDED_LATER)
        assert fields_of(row["sub_captions"][0]) == dict.fromkeys(FIELD_NAMES)
    assert all(row["field_null_reasons"] is None for row in rows if not row["caption"])
    assert captions.schema.equals(schema(CAPTION))
