"""Which split a document belongs to: a pure function of its text.

    splits 0.8, 0.1, 0.1      the text's hash, as a number in [0, 1):  0.31 → train, 0.85 → val, 0.97 → test

So it depends on no order, no number of workers and no size of shards; more text moves no document from one split to
another, and copies of a document never lie on both sides.
"""

from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate
from math import isclose

from pydantic import JsonValue

from dsllm.errors import DataError

NAMES = ("train", "val", "test")
HASH_BYTES = 8


class SplitRule:
    """Shares of the splits, by BLAKE2b of the UTF-8 text.

    Raises:
        DataError: shares that are not three, are negative or do not add up to 1.
    """

    def __init__(self, shares: tuple[float, ...]) -> None:
        cure = "give train, val and test as in --splits 0.8,0.1,0.1"
        shown = ",".join(f"{share:g}" for share in shares)
        if len(shares) != len(NAMES):
            raise DataError(f"--splits {shown}: {len(shares)} shares, not {len(NAMES)}; {cure}")
        if not all(0 <= share <= 1 for share in shares):
            raise DataError(f"--splits {shown}: a share lies between 0 and 1; {cure}")
        if not isclose(sum(shares), 1, abs_tol=1e-6):
            raise DataError(f"--splits {shown}: the shares add up to {sum(shares):g}, not to 1; {cure}")
        self.shares = shares
        last = max(i for i, share in enumerate(shares) if share > 0)
        # Above every number below 1, so that rounding leaves no gap behind the last split that has a share.
        self._bounds = [*accumulate(shares[:last]), 1.0]

    @property
    def record(self) -> dict[str, JsonValue]:
        """What a manifest says about it."""
        return {"hash": "BLAKE2b-64 of the UTF-8 text / 2^64", **dict(zip(NAMES, self.shares, strict=True))}

    def split_of(self, text: bytes) -> str:
        """The split of a document, by its text in UTF-8."""
        number = int.from_bytes(blake2b(text, digest_size=HASH_BYTES).digest(), "big") / 2.0 ** (8 * HASH_BYTES)
        return NAMES[min(bisect_right(self._bounds, number), len(self._bounds) - 1)]
