"""Splitting of a long text into parts that the embedding model reads completely."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtfm.knowledge import splitting
from rtfm.knowledge.splitting import MAX_TOKENS, estimate_tokens, split

RNG = random.Random(5)
LONG = {
    "prose": " ".join(
        f"Sentence {number} says that the disk must be mounted before it is read." for number in range(900)
    ),
    "one line": "word " * 10_000,
    "one word": "".join(RNG.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(9_000)),
    "log": "\n".join(
        f"2026-01-02T03:04:{n % 60:02} kernel: [{n}.{n * 7919 % 10**6:06}] sda{n % 9}: error {n:x}" for n in range(900)
    ),
    "Python": Path(splitting.__file__).read_text(encoding="utf-8") * 4,
    "Chinese": "如何挂载磁盘错误系统。" * 400,
    "Arabic": "كيف يمكنني تركيب القرص " * 300,
    "emoji": "😀 🔧 " * 800,
    "upper case": " ".join("".join(RNG.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(9)) for _ in range(900)),
}


@pytest.mark.parametrize("kind", LONG)
def test_the_model_reads_every_part_whole(kind: str, model_dir: Path) -> None:
    """Each part has at most the 256 tokens that the embedding model reads, counted with that model's tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "onnx" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    parts = split(LONG[kind])
    assert max(len(encoded.ids) for encoded in tokenizer.encode_batch(parts)) <= 256
    assert len(parts) < 1 + 3 * sum(map(estimate_tokens, parts)) / MAX_TOKENS


@pytest.mark.parametrize("kind", LONG)
def test_nothing_is_lost_between_parts(kind: str) -> None:
    """The parts together contain all text in order; only white space may differ."""
    assert re.sub(r"\s", "", "".join(split(LONG[kind]))) == re.sub(r"\s", "", LONG[kind])


@given(st.text(alphabet=st.sampled_from("ab1 .\n`é/"), max_size=400), st.integers(30, 80))
def test_any_text_is_cut_without_loss(text: str, limit: int) -> None:
    """Any text is split without loss: parts of code blocks get fences, and nothing else is added."""
    parts = split(text, limit)
    kept = re.sub(r"[\s`]", "", "".join(parts))
    assert kept == re.sub(r"[\s`]", "", text)
    assert len(parts) == 1 or all(estimate_tokens(part) <= limit for part in parts)


def test_a_code_block_that_fits_is_not_cut() -> None:
    """A code block that fits into a part is not cut, but moved to the next part."""
    block = "```sh\n" + "sudo mount /dev/sdb1 /mnt\n" * 12 + "```"
    parts = split("word " * 180 + "\n" + block + "\nand so on " * 60)
    assert sum(block in part for part in parts) == 1


def test_a_longer_code_block_stays_code_in_each_part() -> None:
    """If a code block is longer than a part, it is cut between lines, and each part has fences with its language."""
    lines = [f"sudo mount /dev/sdb{number} /mnt/{number}" for number in range(60)]
    parts = split("Do this:\n```sh\n" + "\n".join(lines) + "\n```\nThen reboot.")
    code = [part for part in parts if "sudo" in part]
    assert len(code) > 2
    assert all(part.count("```") == 2 and "```sh\n" in part for part in code)
    assert [line for part in code for line in part.splitlines() if line.startswith("sudo")] == lines


@pytest.mark.parametrize("letters", [105, 106, 400])
def test_a_code_block_whose_first_line_could_name_a_language_keeps_it_as_code(letters: int) -> None:
    """If the first line of a code block could name a language, but is long, no text of the block is lost.

    If each part's fence repeated the line, no room would be left for the rest of the block.
    """
    first = "a+" * letters
    parts = split(f"```{first}\n" + "sudo mount /dev/sdb1 /mnt\n" * 60 + "```")
    assert "".join(parts).count("sudo mount") == 60
    assert first in re.sub(r"[\s`]", "", "".join(parts))
    assert all(estimate_tokens(part) <= MAX_TOKENS for part in parts)
