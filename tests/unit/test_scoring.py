"""The evidence that keyword search computes from the passages that it finds."""

from __future__ import annotations

from rtfm.knowledge.archive.search_rows import Corpus
from rtfm.knowledge.scoring import LexicalScorer, Nearness, evidence

CORPUS = Corpus(passages=1_300, terms=130_000)


def found(lexical: LexicalScorer, *words: str) -> Nearness:
    """Return a passage of usual length that contains each of ``words`` once."""
    points = lexical.points(dict.fromkeys(words, 1), 100)
    return Nearness(score=0.5, meaning=None, points=points, words=len(words))


def test_a_symbol_alone_counts_as_much_as_two_words_that_agree() -> None:
    """If a question has a single word, its points count double, so that an error code in one message is enough."""
    lexical = LexicalScorer.of(["okapix"], {"okapix": 1}, CORPUS)
    only = found(lexical, "okapix")
    assert evidence([only], lexical) == 2 * only.points


def test_one_word_of_many_counts_once_and_two_count_double() -> None:
    """If a question has several words, a passage with one of them counts once, and a passage with two counts double."""
    lexical = LexicalScorer.of(["bread", "knead", "oven"], {"bread": 3, "knead": 3, "oven": 3}, CORPUS)
    one, two = found(lexical, "bread"), found(lexical, "bread", "oven")
    assert evidence([one], lexical) == one.points
    assert evidence([one, two], lexical) == 2 * two.points
