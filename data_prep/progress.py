"""What the user sees while documents become tokens, and the rates of it.

    12.3MB [00:01, 35.1MB/s, documents=801, tokens/s=16.9M]

On a terminal a bar; elsewhere nothing but notes and the closing line.
"""

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts documents, bytes of text and tokens of this run."""

    def __init__(self, *, show: bool | None = None) -> None:
        """
        Args:
            show: whether to draw the bar; by default on terminals.
        """
        self.documents = self.tokens = self.text_bytes = 0
        self._begun = time.perf_counter()
        hidden = not (sys.stderr.isatty() if show is None else show)
        self._bar = tqdm(unit="B", unit_scale=True, disable=hidden, dynamic_ncols=True, mininterval=0.2)

    def add(self, documents: int, text_bytes: int, tokens: int) -> None:
        """One group has been written."""
        self.documents += documents
        self.text_bytes += text_bytes
        self.tokens += tokens
        if not self._bar.disable:
            rate = tqdm.format_sizeof(self.tokens / self.seconds)
            self._bar.set_postfix({"documents": f"{self.documents:,}", "tokens/s": rate}, refresh=False)
            self._bar.update(text_bytes)

    def note(self, message: str) -> None:
        """A line that stays, on standard error."""
        tqdm.write(f"note: {message}", file=sys.stderr)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return max(time.perf_counter() - self._begun, 1e-9)

    @property
    def rates(self) -> dict[str, float]:
        """Of this run alone: what an earlier one did before it was stopped does not count."""
        return {
            "seconds": round(self.seconds, 3),
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "tokens_per_second": round(self.tokens / self.seconds),
            "megabytes_per_second": round(self.text_bytes / self.seconds / 1e6, 2),
        }

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
