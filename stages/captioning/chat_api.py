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

MAX_REPLY_BYTES = 4 << 20


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
        text = reply["choices"][0]["message"]["content"]
        usage = reply.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Completion(text or "", *tokens) if isinstance(text, str | None) else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def parse_retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 where it holds neither."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
