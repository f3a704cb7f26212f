"""The diagnosis of a chaos run that does not settle."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.diagnosis import diagnosis, last_warnings


def test_only_the_last_warnings_are_shown(tmp_path: Path) -> None:
    """The last warnings and errors of a log are found, and each is shortened."""
    log = tmp_path / "kafka.log"
    lines = [f"2026-01-01 {level} Log: line {n}" for n in range(9) for level in ("INFO", "WARN")]
    log.write_text("\n".join([*lines, '{"event": "waiting", "level": "error", "reason": "' + "x" * 999 + '"}', "{}"]))
    found = last_warnings(log)
    assert found[:2] == ["2026-01-01 WARN Log: line 7", "2026-01-01 WARN Log: line 8"]
    assert found[2].startswith('{"event": "waiting"')
    assert len(found[2]) < 300


def test_a_diagnosis_works_without_kafka(tmp_path: Path) -> None:
    """A diagnosis has a line for each group, even if the group's coordinator does not respond."""
    lines = diagnosis("127.0.0.1:1", {"a": "group-a", "b": "group-b"}, 3, [], wait_s=0.5)
    assert [line.partition(":")[0] for line in lines] == ["group-a", "group-b"]
    assert all("does not answer" in line and "positions unknown" in line for line in lines)
