"""The driver, with Ray's calls replayed: how many rows it sends in a call."""

import pytest

from benchmarks.driver import ReplayedRay, rows_per_s


@pytest.mark.parametrize(("kind", "most_calls"), [("one clip", 2000), ("header", 700)])
def test_rows_that_take_little_time_are_sent_several_in_a_call(monkeypatch, kind, most_calls):
    sent = []
    run = ReplayedRay.run

    def count_rows(self, rows):
        sent.append(len(rows))
        return run(self, rows)

    monkeypatch.setattr(ReplayedRay, "run", count_rows)
    for module in ("pool", "nodes"):
        ray = __import__(f"curation.runner.{module}", fromlist=["ray"]).ray
        monkeypatch.setattr(f"curation.runner.{module}.ray", ray)  # put back at the end
    assert rows_per_s(2000, 50, kind) > 0  # raises where a row is missing
    assert sum(sent) == 2000
    assert len(sent) <= most_calls
    if kind == "one clip":
        assert max(sent) == 1
