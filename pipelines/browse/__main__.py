"""Browse: a local page to play, filter and flag the clips of an output, and to try thresholds.

    python -m pipelines.browse OUT
    python -m pipelines.browse OUT B        compares OUT with another output

OUT and B are folders or URLs. The page is served to this machine alone (127.0.0.1); open the
address that the command prints, which holds a token. Flags and corrected captions are written to
`ledger/reviews`: docs/browse.md. It needs the extra `browse` of the package.
  --port N       port of the page; without it, a free one
  --reviewer N   name that is stored in reviews; without it, the login name
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from curation.cli import Arguments, NoSettings, UsageError, print_to_stderr, run_command
from curation.stage import PlanError
from curation.storage import Folder

if TYPE_CHECKING:
    from pipelines.browse.audit_marks import AuditSettings

OPTIONS = ("--port N", "--reviewer NAME")


def reviewer_of(options: dict[str, str]) -> str:
    """The name that is given, or that of the login."""
    if name := options.get("--reviewer"):
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in a container
        return ""


def serve(given: Arguments[NoSettings], audit: AuditSettings | None = None) -> None:
    """Serves the page until Ctrl-C. Raises PlanError, UsageError."""
    try:
        from pipelines.browse.server import Page, bind, make_server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise PlanError(
            f"{error.name} is not installed\n  fix: pip install 'longtake[browse]'"
        ) from None
    port = given.whole_number("--port", 0, 65535)
    folders = [Folder(name) for name in given.values]
    other = folders[1] if len(folders) > 1 else None
    page = Page(folders[0], other, reviewer_of(given.option_values), audit, print_to_stderr)
    try:
        address = bind(port)
    except OSError as error:
        raise UsageError(f"--port {port} can't be used: {error.strerror}") from None
    print(f"open {address.url}\nCtrl-C ends it", flush=True)
    make_server(page, address).run(sockets=[address.socket])


def main(argv: Sequence[str]) -> None:
    run_command(__doc__, serve, argv, arguments="OUT [B]", options=OPTIONS)


if __name__ == "__main__":
    main(sys.argv[1:])
