"""Guesses of what comes next, from the text itself, so that a model can check several tokens in one step.

Prompt lookup: the last three tokens, or two, have often stood in the text before, and what followed them then follows
again (Saxena 2023, "Prompt lookup decoding"; the check is that of speculative decoding, 2211.17192, section 2.1, with a
draft that is certain of itself). A step of one row reads all weights whether it brings one token or eight, so that
tokens that are confirmed cost next to nothing. Texts that repeat themselves gain: code, tables, names, greedy loops.
"""

from collections.abc import Sequence

LONGEST = 16
GRAMS = (3, 2)


class LookUp:
    """The text so far, and where in it each of its last tokens' predecessors has stood before.

    `count`, the tokens that are guessed at once, doubles when all of them came and falls to one more than came.
    """

    def __init__(self, tokens: Sequence[int]):
        self.count = 4
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """The text goes on with `token`."""
        place = len(self._text)
        for n in GRAMS:
            if place >= n:
                self._after[tuple(self._text[-n:])] = place
        self._text.append(token)

    def guess(self, room: int) -> list[int]:
        """Up to `room` tokens that may come next; none if the last two have not stood together before."""
        for n in GRAMS:
            place = self._after.get(tuple(self._text[-n:]))
            if place is not None:
                break
        else:
            return []
        found: list[int] = []
        for index in range(place, place + min(room, self.count)):
            # Past the text's end the guess goes on from itself: a loop that is shorter than the guess.
            found.append(self._text[index] if index < len(self._text) else found[index - len(self._text)])
        return found

    def learn(self, guessed: int, right: int) -> None:
        """Of the `guessed` tokens the first `right` came."""
        self.count = min(LONGEST, 2 * guessed if right == guessed else right + 1)
