"""Text of users, tools and environments never becomes a control token.

A tokenizer reads ``<|im_end|>`` as one token wherever it stands, so that whoever
writes it into a message could end a turn or open another. Before a message is
rendered, every such string in it is broken by a random number that nobody who writes
messages can know; after rendering, the text is taken apart at these numbers, and both
halves are encoded as ordinary text. What the template itself writes stays whole. Text
without such strings is encoded in one piece, as if nothing of this was there.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from rllib_llm_async.envs.tool_calls import encodable


class ControlTokens:
    """The strings that a tokenizer reads as one token, and text that holds them.

    Args:
        tokenizer: A `transformers` tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        #: Id of every control token by its string. Runs of whitespace are tokens of
        #: their own in some vocabularies, but control nothing.
        self.ids: dict[str, int] = {
            token.content: token_id
            for token_id, token in added.items()
            if len(token.content.strip()) > 1
        }
        self._id_set = frozenset(self.ids.values())
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # Digits survive a template's `upper`, `trim` and `tojson`.
        self._break = f"_{secrets.randbelow(10**18):018d}_"
        backend = getattr(tokenizer, "backend_tokenizer", None)
        #: Whether text may become a control token that does not look like one.
        self._matches_normalized = getattr(
            backend, "normalizer", None
        ) is not None and any(
            added[token_id].normalized for token_id in self.ids.values()
        )
        self._anchor = self._find_anchor(added)

    def break_up(self, text: str) -> str:
        """``text`` with a number inside every control token, for `encode` to find.

        Lone surrogates, which no tokenizer takes, become question marks.
        """
        if not text.isascii():
            text = encodable(text)
        if self._matches_normalized and not self._id_set.isdisjoint(self._plain(text)):
            return self._break.join(text)
        pieces, start = [], 0
        while found := self._pattern.search(text, start):
            middle = (found.start() + found.end()) // 2
            # Half a control token may hold a shorter one.
            pieces.append(self.break_up(text[start:middle]))
            start = middle
        return self._break.join([*pieces, text[start:]]) if pieces else text

    def break_up_in(self, value: Any) -> Any:
        """`break_up` for every string of JSON-like data, keys included."""
        if isinstance(value, str):
            return self.break_up(value)
        if isinstance(value, dict):
            return {
                self.break_up(str(key)): self.break_up_in(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.break_up_in(inner) for inner in value]
        return value

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text; control tokens only where none is broken."""
        first, *others = text.split(self._break)
        ids = self._plain(first)
        for piece in others:
            ids += self._continued(piece)
        return ids

    def split(self, text: str) -> list[str]:
        """Text and control tokens by turns, text first and last."""
        parts, position = [], 0
        for found in self._pattern.finditer(text):
            parts += [text[position : found.start()], found.group()]
            position = found.end()
        return [*parts, text[position:]]

    def _find_anchor(self, added: dict[int, Any]) -> str:
        """A control token behind which a text does not begin anew.

        Some tokenizers put a space before the beginning of a text, which the second
        half of a control token is not. Empty for all others.
        """
        for token, token_id in self.ids.items():
            if not (added[token_id].rstrip or added[token_id].normalized):
                needed = self._plain(f"{token}a")[1:] != self._plain("a")
                return token if needed else ""
        return ""

    def _continued(self, piece: str) -> list[int]:
        if self._anchor:
            first, *ids = self._plain(self._anchor + piece)
            if first == self.ids[self._anchor]:
                return ids
        return self._plain(piece)

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
