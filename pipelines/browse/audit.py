"""Audit: measures how often the policy is right, by a sample of clips that people mark.

    python -m pipelines.browse.audit OUT            opens the page to mark the sample
    python -m pipelines.browse.audit OUT --report   prints precision and recall

OUT is a folder or a URL. The sample depends on the seed, the size and the selection; marks are in
`ledger/reviews`, so an audit can be continued, and two people can mark the same sample. The page
shows no decision, score or caption: docs/browse.md. It needs the extra `browse` of the package.
  --size N       number of clips (100): half kept, half rejected, divided among the rules
  --seed S       draws another sample (0)
  --port N       port of the page; without it, a free one
  --reviewer N   name that is stored in marks; without it, the login name
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from curation.cli import Arguments, NoSettings, run_command
from curation.storage import Folder
from pipelines.browse.__main__ import OPTIONS, serve
from pipelines.browse.audit_marks import AuditSample, AuditSettings
from pipelines.browse.output import Output
from stages.report.audit import format_audit

REPORT = "--report"
SIZE, MAX_SIZE = 100, 10_000  # clips of a sample


def work(given: Arguments[NoSettings]) -> None:
    seed = given.whole_number("--seed", 0)
    size = given.whole_number("--size", SIZE, MAX_SIZE)
    settings = AuditSettings(seed, size)
    if REPORT not in given.options:
        serve(given, settings)
        return
    output = Output.read(Folder(given.values[0]))
    sample = AuditSample.draw(output, settings)
    print(f"sample of {len(sample.clip_ids)} clips, seed {seed}; 95 % intervals")
    print(format_audit(*sample.results(output)))


def main(argv: Sequence[str]) -> None:
    given = (REPORT, "--size N", "--seed S", *OPTIONS)
    run_command(__doc__, work, argv, arguments="OUT", options=given)


if __name__ == "__main__":
    main(sys.argv[1:])
