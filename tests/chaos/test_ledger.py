"""A ledger survives the kill of its writer."""

from __future__ import annotations

from pathlib import Path

from inferfleet.local.chaos.ledger import Intent, Ledger, read_ledger


def test_a_line_that_a_kill_has_cut_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    first.write(Intent(number=1))
    first.close()
    with path.open("ab") as cut:
        cut.write(b'{"event":"intent","num')
    assert list(read_ledger(path)) == [Intent(number=1)]

    second = Ledger(path)
    second.write(Intent(number=2))
    second.close()
    assert list(read_ledger(path)) == [Intent(number=1), Intent(number=2)]
