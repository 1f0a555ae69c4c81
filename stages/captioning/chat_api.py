"""Addresses, requests and replies of OpenAI's chat API. This file sends nothing."""

from __future__ import annotations

import json
import time
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from curation.config import ConfigError
from curation.texts import sanitize_text
from stages.captioning.conversation import Completion, PromptImage

MAX_LIST_BYTES = 1 << 20  # of the list of models
MAX_ERROR_BYTES = 4096  # of a reply that is no answer
MAX_RETRY_AFTER_S = 3600.0  # a longer wait is taken for a mistake
MAX_TOKENS_COUNTED = 1 << 40  # a larger number of a reply is taken for a mistake


def max_reply_bytes(max_tokens: int) -> int:
    """Returns the limit of one answer: 64 bytes per token, because JSON may write a character as
    six."""
    return (64 << 10) + 64 * max_tokens


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would send the API key to an address not asked for."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None  # `open` then raises HTTPError

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def check_url(url: str, api_key_env: str) -> None:
    """Raises ConfigError unless it is an address without secrets: it is shown and saved."""
    expected = "caption.openai.url: expected the server's, http://HOST:8000/v1"
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        complete = False
    if "@" in url or "?" in url or "#" in url:
        raise ConfigError(
            f"{expected}, without name, password or query; a key is taken from the environment "
            f"variable {api_key_env} (caption.openai.api_key_env)"
        )
    if not complete or not url.isprintable() or " " in url:
        raise ConfigError(f"{expected}; found {url!r:.80}")


def auth_headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def redirect_error(url: str, status: int, location: str | None) -> str:
    """An error that names the redirect's address, without secrets and unprintable characters."""
    try:
        parts = urlsplit(urljoin(url, location or ""))
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        location, target = None, ""
    for path in ("/models", "/chat/completions"):
        target = target.removesuffix(path)
    target = sanitize_text(target.encode("ascii", "backslashreplace").decode(), 200)
    if not location or not target:
        return f"{url} answers {status}, a redirect without a valid address"
    return (
        f"{url} answers {status}, a redirect to {target}; redirects are not followed, because the "
        "API key and the key frames would go there: if you trust that address, set "
        "caption.openai.url to it"
    )


def image_part(image: PromptImage) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image.url}}


def parse_completion(body: bytes) -> Completion | None:
    """The completion in a reply; None where the body is not a reply of the chat API."""
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str | None):
        return None
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Completion(
        text or "",
        _token_count(counts.get("prompt_tokens")),
        _token_count(counts.get("completion_tokens")),
        _name(choice.get("finish_reason")),
        _name(reply.get("model")),
        None if text else _reason_for_no_text(message),
    )


def _reason_for_no_text(message: dict[str, Any]) -> str | None:
    if refusal := _name(message.get("refusal")):
        return f"refusal: {sanitize_text(refusal, 60)}"
    if message.get("reasoning_content") or message.get("reasoning"):
        return "reasoning: without an answer"
    return None


def _name(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _token_count(value: object) -> int:
    """Returns the number; 0 if it is not a whole number of plausible size, such as 1e999."""
    return value if isinstance(value, int) and 0 <= value <= MAX_TOKENS_COUNTED else 0


def parse_retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date.

    0 where it holds neither, and where it is negative or longer than MAX_RETRY_AFTER_S.
    """
    if not header or len(header) > 100:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError, OSError):
            return 0.0
    return seconds if 0 <= seconds <= MAX_RETRY_AFTER_S else 0.0  # NaN is neither
