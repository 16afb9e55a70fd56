"""Find the one token of each word that answers for a label, or say which words have one."""

from collections.abc import Callable, Hashable, Mapping
from difflib import get_close_matches
from typing import Any


def word_ids(
    tokenizer: Any, words: Mapping[str, Hashable], around: Callable[[str], tuple[str, int]]
) -> dict[str, int]:
    """Return the id of each word, as the tokenizer writes it where the mask is.

    Args:
        around: from a word to the template with the word in place of the mask, and where in that
            text the word begins: whether a space precedes it decides which token it is.

    Raises:
        ValueError: a word is no token, several, or part of one; two words are the same token.
    """
    found: dict[int, str] = {}
    for word in words:
        pieces = _pieces(tokenizer, word, around)
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
            what = " ".join(tokenizer.convert_ids_to_tokens(pieces)) or "no token of its own"
            near = _alternatives(tokenizer, word, around)
            raise ValueError(
                f"word {word!r} must be one token where the mask is, and is {what}; "
                + (f"words like it that are one: {', '.join(near)}" if near else "choose another")
            )
        if pieces[0] in found:
            raise ValueError(
                f"words {found[pieces[0]]!r} and {word!r} are the same token "
                f"{tokenizer.convert_ids_to_tokens(pieces[0])!r}: leave one out"
            )
        found[pieces[0]] = word
    return {word: token for token, word in found.items()}


def _pieces(tokenizer: Any, word: str, around: Callable[[str], tuple[str, int]]) -> list[int]:
    """Return the tokens that make up ``word`` in the template and nothing else."""
    text, begin = around(word)
    end = begin + len(word)
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = []
    for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if first < end and last > begin:
            if last > end or text[first:begin].strip():
                return []  # one token of the word and of what is next to it
            ids.append(token)
    return ids


def _alternatives(
    tokenizer: Any, word: str, around: Callable[[str], tuple[str, int]], count: int = 5
) -> list[str]:
    """Return words of similar spelling that are one token."""
    texts = (tokenizer.convert_tokens_to_string([token]).strip() for token in tokenizer.get_vocab())
    vocabulary = {text for text in texts if text.isalpha() and len(text) > 2}
    near = get_close_matches(word, vocabulary - {word}, n=4 * count, cutoff=0.5)
    return [each for each in near if len(_pieces(tokenizer, each, around)) == 1][:count]
