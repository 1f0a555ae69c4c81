"""Ways for a caption server to answer badly, each with what must become of the clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.support.chat_server import ChatServer, parse_request

GOOD = "A woman in a green coat walks along the wet street and stops at a bakery."
UNSAFE = "\ud800\x00\x1b[2J\u202e"
# What is sent -> a reply
MakeReply = Callable[[], web.StreamResponse]


@dataclass(frozen=True)
class BadAnswer:
    """Sent to every attempt, it has `outcome`: captioned; rejected, failed or stopped, and why."""

    name: str
    outcome: str
    reply: MakeReply
    aborts: bool = False  # the connection, in the middle of the reply


def chat(
    text: Any, finish: str | None = "stop", usage: Any = None, more: Any = None, **message: Any
) -> str:
    """The JSON of a chat reply."""
    choice = {"message": {"content": text} | message, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage, "model": "tiny"} | (more or {}))


def caption(text: str, **more: Any) -> str:
    return chat(json.dumps({"caption": text}), **more)


def raw(body: str | bytes, status: int = 200, **headers: str) -> MakeReply:
    data = body.encode() if isinstance(body, str) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: web.Response(
        body=data, status=status, headers={"Content-Type": "application/json"} | named
    )


def _rejected(kind: str, *replies: str) -> list[BadAnswer]:
    return [
        BadAnswer(f"{kind} {number}", f"rejected caption {kind}: ", raw(reply))
        for number, reply in enumerate(replies, 1)
    ]


TEXT = json.dumps({"caption": GOOD})
BAD_ANSWERS = [
    *_rejected(
        "cut off",
        chat(TEXT, finish="length"),
        chat(TEXT, finish="max_tokens"),
        chat(TEXT, finish=None, usage={"completion_tokens": 400}),
        caption(GOOD[:-20], finish=None),
        caption(f"{GOOD} She looks at the"),
        chat(TEXT, finish="abort"),
    ),
    *_rejected(
        "empty",
        *(chat(""), chat(None), chat("[" * 3000), chat(TEXT[:-4]), chat(TEXT + TEXT)),
        *(chat('{"caption": ' + "[" * 3000), chat("{" * 3000)),
    ),
    *_rejected("garbled", caption(f"{GOOD} {UNSAFE}"), chat(GOOD + UNSAFE)),
    *_rejected("repetition", caption(" ".join([GOOD] * 6)), caption(GOOD + " it is so" * 9 + ".")),
    *_rejected(
        "reasoning",
        chat(f"<think>She walks.</think>{TEXT}"),
        chat(f"She walks, I think.</think>{TEXT}"),
        caption(f"Let me describe the clip. {GOOD}"),
        chat(None, reasoning_content="First, I need to look at the frames."),
        chat("", reasoning="First, I need to look at the frames."),
        caption(f"analysisShe walks.assistantfinal{GOOD}"),
    ),
    *_rejected(
        "control tokens",
        caption(f"{GOOD}<|im_end|>"),
        caption(f"[INST]{GOOD}[/INST]"),
        chat(f"<|start|>assistant<|message|>{GOOD}"),
        chat(f"<image>{GOOD}</s>"),
    ),
    *_rejected("escapes", caption(f"{GOOD}\\nShe stops."), caption(f"&quot;{GOOD}&quot;")),
    *_rejected(
        "refusal",
        caption("I cannot view these images, so I am not able to say what is in them."),
        chat("Please provide the image so that the clip can be described in a sentence."),
        chat(None, refusal="I can't help with that."),
        chat(TEXT, finish="content_filter"),
    ),
    *_rejected(
        "markup",
        caption(f"<script>alert(1)</script> {GOOD}"),
        caption('=HYPERLINK("http://example.com", "A woman walks along the street")'),
        caption(f"{GOOD} $(touch x) and ../../etc/passwd"),
        caption(f"| a | b |\n|---|---|\n| {GOOD} | c |"),
        caption(f"{GOOD} [More](https://example.com)."),
    ),
    *_rejected("wrong language", caption("Eine Frau geht die nasse Straße entlang zur Bäckerei.")),
    *_rejected("too short", caption("A woman walks.")),
    *_rejected(
        "too long",
        chat(json.dumps({"caption": "A long street. " * 250_000})),  # 3.7 MB
        chat("x" * 20_000),
        caption(" ".join(map(str, range(900))) + "."),
    ),
    BadAnswer(
        "huge usage", "captioned", raw(caption(GOOD).replace("null", '{"prompt_tokens": 1e999}'))
    ),
    BadAnswer("wrong usage", "captioned", raw(caption(GOOD, usage=[UNSAFE]))),
    BadAnswer("dated model", "captioned", raw(caption(GOOD, more={"model": "tiny-2026-01-01"}))),
    BadAnswer("unsafe model", "captioned", raw(caption(GOOD, more={"model": UNSAFE * 999}))),
    BadAnswer("no JSON", "failed answers 200", raw("<html>Bad gateway</html>")),
    BadAnswer("wrong shape", "failed answers 200", raw('{"choices": [[]]}')),
    BadAnswer("content of parts", "failed answers 200", raw(chat([{"text": GOOD}]))),
    BadAnswer("deep JSON", "failed answers 200", raw("[" * 50_000)),
    BadAnswer("not UTF-8", "failed answers 200", raw(b"\xff\xfe\x00")),
    BadAnswer(
        "gzip bomb", "failed answers 200", raw(b"\x1f\x8b" + b"\0" * 99, Content_Encoding="gzip")
    ),
    BadAnswer("unsafe error", "failed answers 500", raw(UNSAFE.encode("utf-8", "replace"), 500)),
    BadAnswer("large error", "failed answers 500", raw("x" * (8 << 20), 500)),
    BadAnswer("refused request", "failed answers 422", raw("{}", 422)),
    BadAnswer("long wait", "stopped answers 429", raw("{}", 429, Retry_After="1e308")),
    BadAnswer("wait is no number", "stopped answers 503", raw("{}", 503, Retry_After="nan")),
    BadAnswer("wait is negative", "stopped answers 429", raw("{}", 429, Retry_After="-1")),
    BadAnswer(
        "wait until 9999",
        "stopped answers 503",
        raw("{}", 503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
    ),
    BadAnswer("partial reply", "stopped does not answer", raw(caption(GOOD)), aborts=True),
    BadAnswer("wrong key", "stopped answers 401", raw("{}", 401)),
    BadAnswer("redirect", "stopped answers 307", raw("", 307, Location="http://127.0.0.1:9/v1")),
]


@dataclass
class BadServer(ChatServer):
    """Answers as `choose_answer` has it for the number of a request, well where that is None."""

    choose_answer: Callable[[int], BadAnswer | None] = lambda number: None

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        number, self._received = self._received, self._received + 1
        parsed = parse_request(await request.json())
        bad = self.choose_answer(number)
        self.requests.append(parsed)
        if bad is None:
            return raw(caption(json.loads(self.answer(parsed))["caption"]))()
        if bad.aborts:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            request.transport.abort()  # type: ignore[union-attr]
            return response
        return bad.reply()
