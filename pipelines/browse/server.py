"""The HTTP server of the local page. Clips are named by their ids; no request names a file."""

from __future__ import annotations

import json
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow.compute as pc
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from curation.errors import UserError
from curation.funnel import count_values
from curation.images import DamagedFrame, read_verified
from curation.json_text import parse_object, replace_non_finite
from curation.policy import Policy
from curation.records import SCORES
from curation.stage import PlanError, Row
from curation.storage import Folder
from curation.texts import clean_outside_text
from pipelines.browse import preview
from pipelines.browse.audit_marks import AuditSample, AuditSettings
from pipelines.browse.guard import Guard
from pipelines.browse.media import BadRange, Unplayable, open_clip, parse_range
from pipelines.browse.output import (
    CHANGES,
    MAX_PAGE,
    SORTED_BY,
    Output,
    QueryError,
    review_key,
)
from pipelines.browse.preview import Preview, Superseded, parse_policy, policy_as_json
from pipelines.reviews import (
    BAD,
    FLAG,
    GOOD,
    MARK,
    MAX_FLAG_CHARS,
    Review,
    ReviewError,
    correction_of,
    write_review,
)
from pipelines.status import MALFORMED, read_status, status_lines
from stages.report.statistics import MEASUREMENTS, bin_edges

PAGE_FILES = {"/": "index.html", "/browse.js": "browse.js", "/browse.css": "browse.css"}
PAGE_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
DESCRIPTIONS = {c.name: c.what for c in SCORES}
BINS = 40  # of a histogram, about


class Page:
    """The handlers, and the present state of the output."""

    def __init__(
        self,
        folder: Folder,
        other: Folder | None,
        reviewer: str,
        audit: AuditSettings | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        """Raises PlanError where there is no output."""
        self._folder, self._other, self._reviewer = folder, other, reviewer
        self._audit, self._report = audit, report
        self._reading = threading.Lock()
        self._read()

    def _read(self) -> None:
        output = Output.read(self._folder, self._other)
        sample = None if self._audit is None else AuditSample.draw(output, self._audit)
        self._output, self._preview, self._sample = output, Preview(output), sample

    def routes(self) -> list[Route]:
        return [
            *(Route(path, self.page_file) for path in PAGE_FILES),
            Route("/api/output", self.output),
            Route("/api/run", self.run_status),
            Route("/api/clips", self.clips, methods=["POST"]),
            Route("/api/clips/{clip_id}", self.clip),
            Route("/api/histogram/{score}", self.histogram),
            Route("/api/preview", self.preview, methods=["POST"]),
            Route("/api/reviews", self.review, methods=["POST"]),
            Route("/api/audit", self.audit),
            Route("/api/audit/results", self.audit_results),
            Route("/media/{clip_id}", self.media),
            Route("/frames/{clip_id}/{number:int}", self.frame),
        ]

    # ---- the page and the output ----

    def page_file(self, request: Request) -> Response:
        name = PAGE_FILES[request.url.path]
        text = files(__package__).joinpath(name).read_text("utf-8")
        return Response(text, media_type=PAGE_TYPES[name.rpartition(".")[2]])

    def output(self, _: Request) -> Response:
        """What the page needs before the first clip. Reads the tables again."""
        with self._reading:
            self._read()
        output = self._output
        found: Row = {
            "name": self._folder.url,
            "reviewer": self._reviewer,
            "audit": None if self._audit is None else asdict(self._audit),
            "total": output.clips.num_rows,
            "statuses": count_values(output.clips["status"]),
            "sorted_by": SORTED_BY,
            "scores": [_score(output, name) for name in MEASUREMENTS],
            "other": None,
        }
        if self._audit is None:  # an audit is blind
            found["rules"] = count_values(output.clips["rule"].drop_null())
            found["policy"] = policy_as_json(output.policy)
            found["reject_flagged"] = output.rejects_flagged
        if self._other is not None:
            found["other"] = _difference(output, self._other.url)
        return _answer(found)

    def run_status(self, _: Request) -> Response:
        """A line about a run that writes to the output; null without one."""
        try:
            status = read_status(self._folder)
            lines, is_well = status_lines(status, time.time())
        except (PlanError, *MALFORMED):
            return _answer({"running": None})
        is_running = is_well and status["state"] == "running"
        return _answer({"running": lines[0] if is_running else None})

    # ---- clips ----

    def _refuse_in_audit(self) -> None:
        if self._audit is not None:
            raise QueryError("an audit shows no decisions: open the output with longtake browse")

    async def clips(self, request: Request) -> Response:
        query = _object(await request.body())
        return await run_in_threadpool(self._clips, query)

    def _clips(self, query: Row) -> Response:
        self._refuse_in_audit()
        output = self._output
        mask = None
        if (wanted := query.get("preview")) is not None:
            if not isinstance(wanted, dict):
                raise QueryError("preview: expected a policy and a change")
            mask = self._mask(wanted)
        rows = output.select(query, mask)
        offset, limit = _count(query, "offset", 0), min(_count(query, "limit", 50), MAX_PAGE)
        page = rows[offset : offset + limit]
        return _answer({"total": len(rows), "rows": output.listed(page, query.get("sort"))})

    def _mask(self, wanted: Row) -> np.ndarray:
        """Returns (n,) bool: the clips that a policy gains or loses by its rules."""
        kept = pc.equal(self._output.clips["status"], "kept").to_numpy()
        policy = parse_policy(wanted.get("policy"))
        after = self._preview.by_rules(policy, bool(wanted.get("reject_flagged"))).is_kept
        return after & ~kept if wanted.get("change") == "gained" else kept & ~after

    def clip(self, request: Request) -> Response:
        output, clip_id = self._output, request.path_params["clip_id"]
        row = output.details(clip_id)
        spans = row["segments"] or row["sub_captions"] or []
        found: Row = {
            name: row[name] for name in ("clip_id", "duration_s", "width", "height", "fps")
        }
        found["segments"] = [
            {
                "start_s": part["start_s"],
                "end_s": part["end_s"],
                "key_frame_s": part.get("key_frame_s"),
                "has_frame": bool(part.get("key_frame")),
            }
            for part in spans
        ]
        try:
            media = open_clip(output, clip_id)
            found["media"] = {"start_s": media.start_s, "length_s": row["end_s"] - row["start_s"]}
        except Unplayable as error:
            found["media"] = {"error": str(error)}
        if self._audit is None:
            found |= self._decisions(row)
        return _answer(found)

    def _decisions(self, row: Row) -> Row:
        """What an audit does not show."""
        output, clip_id = self._output, row["clip_id"]
        correction, flag = output.correction(clip_id), output.flag(clip_id)
        texts = correction or row
        why = dict(row["null_reasons"] or {})
        found = {
            name: row[name] for name in ("video", "start_s", "end_s", "status", "split", "shard")
        }
        found |= {
            "reasons": row["reasons"] or [],
            "flag": flag and {"value": flag["value"], "reviewer": flag["reviewer"]},
            "caption": texts["caption"],
            "captions": [part["text"] for part in texts["sub_captions"] or []],
            "captioner": f"corrected by {correction['reviewer']}"
            if correction
            else row["captioner"],
            "is_corrected": correction is not None,
            "scores": [
                {"name": name, "value": row.get(name), "why": why.get(name)}
                for name in MEASUREMENTS
            ],
        }
        if output.other is not None:
            found["other"] = _other_row(output, clip_id)
        return found

    def histogram(self, request: Request) -> Response:
        """Edges of the bins, and the clips in each by status."""
        self._refuse_in_audit()
        score = request.path_params["score"]
        if score not in MEASUREMENTS:
            raise QueryError("no score of this name")
        clips = self._output.clips
        values = clips[score].cast("float64").to_numpy()
        kept = pc.equal(clips["status"], "kept").to_numpy()
        is_measured = np.isfinite(values)
        edges = bin_edges(values[is_measured], BINS)
        if not len(edges):
            return _answer({"edges": [], "kept": [], "others": []})
        counts = [
            np.histogram(values[is_measured & part], edges)[0].tolist() for part in (kept, ~kept)
        ]
        return _answer({"edges": edges.tolist(), "kept": counts[0], "others": counts[1]})

    # ---- another policy ----

    async def preview(self, request: Request) -> Response:
        query = _object(await request.body())
        return await run_in_threadpool(self._funnel, query)

    def _funnel(self, query: Row) -> Response:
        self._refuse_in_audit()
        policy, flagged = parse_policy(query.get("policy")), bool(query.get("reject_flagged"))
        apply = self._preview.by_selection if query.get("exact") else self._preview.by_rules
        selection = apply(policy, flagged)
        output = self._output
        before = pc.equal(output.clips["status"], "kept").to_numpy()
        hours = pc.fill_null(output.clips["duration_s"], 0.0).to_numpy() / 3600
        return _answer(
            {
                "is_exact": selection.is_exact,
                "funnel": preview.funnel_rows(selection.table),
                "kept_before": int(before.sum()),
                **preview.changes(before, selection.is_kept, hours),
                "settings": _settings(output, policy, flagged),
            }
        )

    # ---- reviews ----

    async def review(self, request: Request) -> Response:
        given = _object(await request.body())
        return await run_in_threadpool(self._write, given)

    def _write(self, given: Row) -> Response:
        output = self._output
        clip_id, reviewer = given.get("clip_id"), given.get("reviewer")
        if not isinstance(clip_id, str) or not isinstance(reviewer, str):
            raise QueryError("expected clip_id and reviewer")
        output.row(clip_id)
        review = self._review(given, clip_id, reviewer)
        row = write_review(self._folder, review, self._report)
        output.reviews[review_key(row)] = row
        return _answer({"written": row["number"]})

    def _review(self, given: Row, clip_id: str, reviewer: str) -> Review:
        kind, value = given.get("kind"), given.get("value")
        if kind == FLAG and (value is None or isinstance(value, str)):
            text = value and " ".join(clean_outside_text(value, MAX_FLAG_CHARS).split())
            return Review(clip_id, FLAG, reviewer, text)
        if kind == MARK and value in (GOOD, BAD, None):
            return Review(clip_id, MARK, reviewer, value)
        if kind == "caption":
            written = self._output.captions_of(clip_id)
            if written is None:
                raise ReviewError("the clip has no captions to correct")
            caption, texts = given.get("caption") or "", given.get("captions") or []
            if not isinstance(caption, str) or not _are_texts(texts):
                raise QueryError("captions: expected texts")
            return correction_of(written, caption, texts, reviewer, bool(given.get("withdraw")))
        raise QueryError("expected a flag, a caption or a mark")

    # ---- the audit ----

    def audit(self, request: Request) -> Response:
        """The sample in its order, with the reviewer's marks."""
        sample = self._of_audit()
        reviewer = request.query_params.get("reviewer", "")
        marks = sample.marks(self._output, reviewer)
        return _answer({"clips": [{"clip_id": i, "mark": marks.get(i)} for i in sample.clip_ids]})

    def audit_results(self, _: Request) -> Response:
        sample = self._of_audit()
        found, pairs = sample.results(self._output)
        return _answer(
            {
                "reviewers": {name: asdict(of_one) for name, of_one in found.items()},
                "pairs": [{"reviewers": pair, **asdict(of)} for pair, of in pairs.items()],
            }
        )

    def _of_audit(self) -> AuditSample:
        if self._sample is None:
            raise QueryError("this is no audit: longtake audit OUT")
        return self._sample

    # ---- bytes ----

    def media(self, request: Request) -> Response:
        media = open_clip(self._output, request.path_params["clip_id"])
        header = request.headers.get("range", "bytes=0-")
        headers = {"accept-ranges": "bytes"}
        try:
            first, last = parse_range(header, media.size)
        except BadRange:
            headers["content-range"] = f"bytes */{media.size}"
            return Response(status_code=416, headers=headers)
        if request.method == "HEAD":
            headers["content-length"] = str(media.size)
            return Response(media_type=media.type, headers=headers)
        headers["content-range"] = f"bytes {first}-{last}/{media.size}"
        data = media.read(first, last - first + 1)
        return Response(data, 206, headers, media.type)

    def frame(self, request: Request) -> Response:
        name, sha256 = self._output.key_frame(
            request.path_params["clip_id"], request.path_params["number"]
        )
        data = read_verified((self._folder / "ledger").read, name, sha256)
        return Response(data, media_type="image/jpeg")


def _score(output: Output, name: str) -> Row:
    column = output.clips[name]
    return {
        "name": name,
        "what": DESCRIPTIONS.get(name, ""),
        "measured": len(column) - column.null_count,
    }


def _difference(output: Output, url: str) -> Row:
    found = output.difference
    counts = {name: int(output.changed[name].sum()) for name in CHANGES}
    changes = {"gained": found.gained, "lost": found.lost}
    return {
        "name": url,
        "kept": found.kept,
        "counts": counts,
        "changes": {name: [asdict(c) for c in of] for name, of in changes.items()},
    }


def _other_row(output: Output, clip_id: str) -> Row | None:
    """The clip in the other output; None where that has none of this id."""
    assert output.other is not None
    row = pc.index(output.other["clip_id"], clip_id).as_py()
    if row < 0:
        return None
    found = output.other.slice(row, 1).to_pylist()[0]
    texts = [part["text"] for part in found["sub_captions"] or []]
    return {
        "status": found["status"],
        "rule": found["rule"],
        "caption": found["caption"],
        "captions": texts,
    }


def _settings(output: Output, policy: Policy, reject_flagged: bool) -> list[str]:
    """The settings of `longtake select` that differ from those of the last selection."""
    old, new = policy_as_json(output.policy), policy_as_json(policy)
    found = [f"select.policy.{k}={_as_yaml(v)}" for k, v in new.items() if old.get(k) != v]
    found += [f"select.policy.{k}=null" for k in old if k not in new]
    if reject_flagged != output.rejects_flagged:
        found.append(f"select.reject_flagged={json.dumps(reject_flagged)}")
    return found


def _as_yaml(rule: Row) -> str:
    text = ", ".join(f"{name}: {json.dumps(value)}" for name, value in rule.items())
    return shlex.quote(f"{{{text}}}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _count(query: Row, name: str, default: int) -> int:
    value = query.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise QueryError(f"{name}: expected a whole number")
    return value


def _object(body: bytes) -> Row:
    try:
        found = parse_object(body)
        json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError of a lone surrogate
        return found
    except ValueError as error:
        raise QueryError(f"the request is no JSON object in UTF-8: {error}") from None


def _answer(content: Any, status: int = 200) -> Response:
    # JSON escapes a lone surrogate of a file's name
    text = json.dumps(replace_non_finite(content), allow_nan=False)
    return Response(text, status, media_type="application/json")


def _failure(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        return _answer({"error": str(error) or "not found"}, status)

    return answer


def make_app(page: Page, token: str, port: int) -> Any:
    """The ASGI application, guarded."""
    handlers: dict[Any, Any] = {
        QueryError: _failure(400),
        ReviewError: _failure(400),
        DamagedFrame: _failure(404),
        Unplayable: _failure(404),
        FileNotFoundError: lambda *_: _answer({"error": "no such file"}, 404),
        Superseded: _failure(409),
        UserError: _failure(409),  # of the storage, the lock or a selection
    }
    return Guard(Starlette(routes=page.routes(), exception_handlers=handlers), token, port)


@dataclass(frozen=True)
class Address:
    socket: socket.socket
    token: str

    @property
    def port(self) -> int:
        return self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"


def bind(port: int) -> Address:
    """A socket of this machine alone, with a new token. port: 0: a free one. Raises OSError."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()  # a request before the server has started waits
    return Address(listener, secrets.token_urlsafe(24))


def make_server(page: Page, address: Address) -> uvicorn.Server:
    """A server that `run(sockets=[address.socket])` starts."""
    config = uvicorn.Config(
        make_app(page, address.token, address.port),
        log_level="warning",
        access_log=False,  # addresses hold the token
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=64 << 10,
    )
    return uvicorn.Server(config)
