"""The parts of a chat message that are terms."""

from rtfm.knowledge.words import MAX_TERM_LENGTH, terms


def test_a_blob_is_no_word() -> None:
    """If a text without a space is longer than MAX_TERM_LENGTH, it is not a term, because nobody types it again."""
    assert terms("x" * (MAX_TERM_LENGTH + 1)) == []


def test_mentions_and_custom_emoji_are_no_words() -> None:
    """Ids in Discord's mentions and custom emoji are not terms."""
    assert terms("<@123> <@!4> <#5> <:party:6> kernel") == ["kernel"]


def test_chat_words_and_stop_words_are_left_out() -> None:
    """Chat words and stop words are not terms, because nearly every question contains some."""
    assert terms("hi, does anyone know how to do this? thanks") == []


def test_paths_versions_and_error_codes_stay_whole_and_give_their_parts() -> None:
    """Paths, versions and error codes are terms as a whole and in parts; a question may contain the whole or a part."""
    found = terms("see /etc/fstab: E1234, v2.10.3 and apt-get.")
    assert {"/etc/fstab", "etc", "fstab", "e1234", "v2.10.3", "apt-get", "apt"} <= set(found)


def test_forms_of_a_word_are_one_term() -> None:
    """Inflected forms of a word are one term, so that a question about mounting finds a message with mount."""
    assert len({terms(word)[0] for word in ("mount", "mounts", "mounting", "mounted")}) == 1
    assert terms("drives") == terms("drive")


def test_other_scripts_are_words_too() -> None:
    """Words in other scripts are terms."""
    assert terms("Überraschung здравствуйте 日本語") == ["überraschung", "здравствуйте", "日本語"]
