"""The positions that the judge reads from __consumer_offsets, in order of their effects, and their finished maps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.streams.position import encode_map
from tests.judge.finished import FinishedOffsets
from tests.judge.positions import PositionCommit, positions_of
from tests.judge.segments import Unreadable, read_partition
from tests.judging import ANSWER, OFFSETS, QUERIES, KeptRun, marker

WHERE = (ANSWER, QUERIES, 0)


@pytest.fixture
def run(tmp_path: Path) -> KeptRun:
    """A run without positions."""
    return KeptRun(tmp_path / "run")


def positions(run: KeptRun) -> list[PositionCommit]:
    """Return the positions of the answer group in partition 0 of bot-queries."""
    run.write()
    return positions_of(read_partition(run.folder / "kafka" / f"{OFFSETS}-3")).get(WHERE, [])


def effects(found: list[PositionCommit]) -> list[tuple[int | None, bool]]:
    """Return (offset, whether it took effect) of each position."""
    return [(position.offset, position.is_applied) for position in found]


def end(run: KeptRun, producer: int, *, commit: bool = True) -> None:
    """End the transaction of ``producer``."""
    log = run.logs[OFFSETS, 3]
    log.segment += marker(log.end, commit=commit, producer=producer)
    log.end += 1


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4])
def test_values_of_each_version_are_read(run: KeptRun, version: int) -> None:
    """Offset, metadata, time and producer of a position are read from each version of the format."""
    run.position(ANSWER, QUERIES, 5, "1AQE", version=version, producer=9)
    (found,) = positions(run)
    assert (found.group, found.topic, found.partition, found.offset, found.metadata) == (*WHERE, 5, "1AQE")
    assert found.committed_at_ms == run.now_ms
    assert (found.written.batch.producer_id, found.written.offset, found.is_applied) == (9, 0, True)


def test_keys_of_other_versions_are_no_positions(run: KeptRun) -> None:
    """Records whose keys have other versions are about groups and members, and are not read as positions."""
    run.logs[OFFSETS, 3].append(b"\0\2\0\3abc", b"\0\3", at_ms=1)
    assert positions(run) == []


def test_a_key_that_is_cut_off_is_unreadable(run: KeptRun) -> None:
    """A key that is cut off makes the topic unreadable, and is not skipped."""
    run.logs[OFFSETS, 3].append(b"\0\1\0\x09abc", b"\0\3", at_ms=1)
    with pytest.raises(Unreadable, match="offset 0 is not a position"):
        positions(run)


def test_a_transaction_takes_effect_at_its_marker(run: KeptRun) -> None:
    """A position in a transaction takes effect at the transaction's marker.

    Of two positions in one transaction, the later record counts.
    """
    run.position(ANSWER, QUERIES, 1, ends="open", producer=1)
    run.position(ANSWER, QUERIES, 2, ends="open", producer=1)
    run.position(QUERIES, "other", 9)
    run.position(ANSWER, QUERIES, 3, ends="open", producer=2)
    run.position(ANSWER, QUERIES, 4, ends="abort", producer=3)
    end(run, 1)
    end(run, 2)
    run.position(ANSWER, QUERIES, 5, ends=None)
    run.position(ANSWER, QUERIES, 6, ends="open", producer=1)
    assert effects(positions(run)) == [(1, False), (4, False), (2, True), (3, True), (5, True), (6, False)]


def test_a_newer_position_is_not_replaced_by_an_older_record(run: KeptRun) -> None:
    """A position does not replace the position of a newer record.

    The coordinator ignores a committed position whose record is older than the record of the current position.
    """
    run.position(ANSWER, QUERIES, 1, ends="open", producer=1)
    run.position(ANSWER, QUERIES, 2, ends=None)
    end(run, 1)
    assert effects(positions(run)) == [(2, True), (1, False)]


def test_a_tombstone_removes_the_position_and_pending_ones(run: KeptRun) -> None:
    """A tombstone removes the position, also from open transactions; a later commit sets a position again."""
    run.position(ANSWER, QUERIES, 1)
    run.position(ANSWER, QUERIES, 2, ends="open", producer=1)
    run.position(ANSWER, QUERIES, None, ends=None)
    end(run, 1)
    run.position(ANSWER, QUERIES, 3)
    assert effects(positions(run)) == [(1, True), (2, False), (None, True), (3, True)]


@given(st.sets(st.integers(0, 400)), st.integers(0, 2**40))
def test_the_map_of_a_position_is_read_as_the_processor_writes_it(finished: set[int], offset: int) -> None:
    """The judge reads a finished map as the processor writes it.

    The two programs share a documented format and no code.
    """
    done = {offset + number for number in finished if number}
    end = max(done, default=offset) + 1
    metadata = encode_map([n for n in range(offset, end) if n not in done], end) if done else ""
    found = FinishedOffsets.decode(offset, metadata)
    assert {n for n in range(max(0, offset - 2), end + 3) if found.is_finished(n)} == done | set(
        range(max(0, offset - 2), offset)
    )
    assert (found.position, found.end) == (offset, end if done else offset)
    assert FinishedOffsets.decode(offset, f"{metadata or '1'}.1,2,3") == found


@pytest.mark.parametrize("metadata", ["2AQE", "other", "1AQ", "1A", "1!!!!", "1gA"])
def test_metadata_of_another_form_is_refused(metadata: str) -> None:
    """Metadata with another version, half a pair of runs, invalid base64 or a varint that is cut off is refused."""
    with pytest.raises(ValueError, match="metadata"):
        FinishedOffsets.decode(5, metadata)


_SETS = st.tuples(st.integers(0, 8), st.sets(st.integers(1, 24)))


@given(_SETS, _SETS)
def test_the_first_lost_offset_is_the_lowest_that_is_unfinished_again(
    before: tuple[int, set[int]], after: tuple[int, set[int]]
) -> None:
    """The first lost offset is the lowest one that is finished in the first position and unfinished in the second.

    The test computes the expected offset with sets.
    """
    found, offsets = [], []
    for position, ahead in (before, after):
        done = {position + number for number in ahead}
        end = max(done, default=position) + 1
        found.append(
            FinishedOffsets.decode(
                position, encode_map([n for n in range(position, end) if n not in done], end) if done else ""
            )
        )
        offsets.append(set(range(position)) | done)
    assert found[0].first_lost(found[1]) == min(offsets[0] - offsets[1], default=None)
