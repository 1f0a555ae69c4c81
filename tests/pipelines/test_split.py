import json

import pytest

from pipelines import split
from tests.support.chat_server import ChatRequest, ChatServer
from tests.support.drawn_key_frames import ACTIONS


def parts(idea: str) -> list[str]:
    return [f"In the {idea} of the old town, {action}." for action in ACTIONS]


def model(request: ChatRequest) -> str:
    assert request.images == ()
    assert request.body["response_format"]["json_schema"]["schema"]["required"] == ["sub_captions"]
    idea = request.texts[0].split("<data>")[1].split("</data>")[0]
    return json.dumps({"sub_captions": parts(idea)})


def run(capsys, *args: str) -> tuple[str, str, object]:
    code: object = 0
    try:
        split.main(args)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return printed.out, printed.err, code


def chat(server: ChatServer) -> list[str]:
    settings = {"url": server.url, "model": "tiny", "backoff_s": 0.005}
    return [f"caption.openai.{name}={value}" for name, value in settings.items()]


def test_prompt_becomes_five_texts_that_the_sampler_reads(tmp_path, capsys):
    pytest.importorskip("torch")
    from training.sample import read_prompt

    target = tmp_path / "new" / "captions.json"
    with ChatServer(model) as server:
        out, err, code = run(capsys, str(target), "harbour", *chat(server))
    assert (out, code) == (f"1 of 1 prompts split -> {target}\n", 0)
    assert err.startswith("split  1/1 prompts · 0 failed")
    row = json.loads(target.read_text())
    assert row["cap"] == parts("harbour")
    assert row["prompt"] == "harbour"
    prompt = read_prompt([str(target)], 15.0)
    assert prompt.captions == parts("harbour")
    assert prompt.spans == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15)]


def test_list_gives_a_line_per_different_prompt_in_order_despite_server_errors(tmp_path, capsys):
    prompts = [f"harbour {n}" for n in range(7)]
    (tmp_path / "prompts.txt").write_text("\n".join(["", *prompts, prompts[0], ""]))
    target = tmp_path / "captions.jsonl"
    troubles = ["429", "disconnect", "refusal", "500", "truncated answer"]
    with ChatServer(model, lambda n: troubles[n] if n < len(troubles) else "") as server:
        _, _, code = run(capsys, str(target), str(tmp_path / "prompts.txt"), *chat(server))
    assert code == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["cap"] for row in rows] == [parts(prompt) for prompt in prompts]
    assert len({row["name"] for row in rows}) == 7


def test_prompt_without_valid_texts_is_reported_and_others_are_split(tmp_path, capsys):
    def alike(request: ChatRequest) -> str:
        if "meadow" in request.texts[0]:
            return json.dumps({"sub_captions": parts("meadow")[:1] * 5})
        return model(request)

    (tmp_path / "prompts.txt").write_text("meadow\nharbour\n")
    target = tmp_path / "captions.jsonl"
    with ChatServer(alike) as server:
        out, err, code = run(capsys, str(target), str(tmp_path / "prompts.txt"), *chat(server))
    assert code == 1
    assert out.startswith("1 of 2 prompts split")
    assert err.splitlines()[0].startswith("split  2/2 prompts · 1 failed")
    assert err.splitlines()[1] == "failed: meadow: text 2 copy of sub-caption 1: 100% of the words"
    assert [json.loads(line)["prompt"] for line in target.read_text().splitlines()] == ["harbour"]


def test_answer_with_a_wrong_number_of_texts_is_refused(tmp_path, capsys):
    with ChatServer(lambda _: json.dumps({"sub_captions": parts("harbour")[:3]})) as server:
        _, err, code = run(capsys, str(tmp_path / "a.json"), "harbour", *chat(server))
    assert (err.splitlines()[1], code) == ("failed: harbour: not 5 texts", 1)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.json", "x"], "the captioner `measured` writes captions of videos only; give a"),
        (["a.json", " "], "InputError: no prompt given"),
        (["a.json", "no such.txt"], "InputError: no such.txt: can't be read as prompts"),
        (
            ["a.json", "boat \udcff"],
            "InputError: the prompt is 'boat \\udcff'; expected text in UTF-8",
        ),
        (["s3://b/a.json", "x"], "UsageError: OUT is 's3://b/a.json'; expected the name of a file"),
        ([".", "x"], "UsageError: OUT is '.'; expected the name of a file"),
        (["a.json"], "UsageError: expected OUT PROMPT [CONFIG], found a.json; --help explains"),
        (["a.json", "x", "caption.openai.urk=1"], "did you mean caption.openai.url?"),
    ],
)
def test_mistake_in_the_arguments_is_one_message_without_traceback(capsys, args, message):
    _, _, code = run(capsys, *args)
    assert message in str(code)
