"""The gates of the convolution-attention model, each a function that takes a model and asserts; and the mutants."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from dsllm.models.conv_attention import ConvAttention
from dsllm.models.resampling import Merge, Spread
from tests.models.conv_reach import reach

VOCABULARY = 37
BASE = {"n_head": 2, "n_embd": 20, "context": 200, "vocab_size": VOCABULARY}

CONFIGS: dict[str, dict[str, object]] = {
    "plain": {"strides": [], "widths": [16], "encoder": [], "middle": 2, "decoder": []},
    "stride 3": {"strides": [3], "widths": [12, 16], "encoder": [1], "middle": 1, "decoder": [0]},
    "stride 3, six taps": (
        {"strides": [3], "widths": [12, 16], "encoder": [0], "middle": 1, "decoder": [1]}
        | {"taps": [6], "expansion": 2}
    ),
    "strides 2 and 3, windows": (
        {"strides": [2, 3], "widths": [12, 16, 20], "encoder": [0, 1], "middle": 1, "decoder": [0, 0]}
        | {"taps": [4, 3], "windows": [5, 3, None]}
    ),
    "read from level 0 alone": (
        {"strides": [4, 2], "widths": [12, 16, 20], "encoder": [0, 0], "middle": 0, "decoder": [1, 0]}
        | {"read_out": [0], "expansion": 2}
    ),
    "strides 4, 4, 4": (
        {"strides": [4, 4, 4], "widths": [12, 16, 20, 24], "encoder": [0, 1, 1], "middle": 2, "decoder": [0, 1, 1]}
    ),
    "strides 2, 2, 2, twice the taps": (
        {"strides": [2, 2, 2], "widths": [12, 16, 20, 24], "encoder": [0, 0, 1], "middle": 1, "decoder": [0, 1, 0]}
        | {"taps": [4, 4, 4], "read_out": [0, 2, 3]}
    ),
}
"""No level to three, one and two strides of taps, odd strides, windows, wider convolutions, read-outs left out."""


def build(seed: int = 0, noise: float = 0.1, **settings: object) -> ConvAttention:
    """A model in eval mode whose parameters all have noise on them: branches that begin at zero would hide leaks."""
    torch.manual_seed(seed)
    model = ConvAttention(ConvAttention.Config(**{**BASE, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


class Leaky(Merge):
    """The leak of the origin: the window g·s … g·s + s - 1, whose last token comes s - 1 after the clock g·s."""

    def windows(self, x, *rest):
        ahead = self.stride - 1
        return super().windows(F.pad(x[:, ahead:], (0, 0, 0, ahead)), *rest)


class MergesDocuments(Merge):
    """Reads over the beginning of a document."""

    def forward(self, x, rotation, mask, cache, level, document_ids):
        return super().forward(x, rotation, mask, cache, level, None)


class SpreadsDocuments(Spread):
    """Gives a document what comes from the one before."""

    def forward(self, e, h, rotation, mask, cache, level, document_ids):
        return super().forward(e, h, rotation, mask, cache, level, None)


class ReadsDocuments(ConvAttention):
    """Reads out the vectors of the document before."""

    def _held(self, read, level, stride):
        return super()._held(read, level._replace(document_ids=None), stride)


def leaking(model: ConvAttention) -> ConvAttention:
    """The same model, its windows unshifted."""
    for merge in model.merges:
        merge.__class__ = Leaky
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def other(ids: torch.Tensor, seed: int = 2) -> torch.Tensor:
    """Another token in every place."""
    return (
        ids + 1 + torch.randint_like(ids, VOCABULARY - 1, generator=torch.Generator().manual_seed(seed))
    ) % VOCABULARY


# G1 to G3: the future.


def felt(model: ConvAttention, ids: torch.Tensor, states: Callable) -> torch.Tensor:
    """Which tokens of ids (T,) a random projection of each state feels: (n, T). `states` gives (B, n, ·) of ids (B, T).

    Row i of a batch of n equal rows gives the gradient of state i alone, so that one backward pass does for all.
    """
    n = states(ids[None]).shape[1]
    batch = ids.expand(n, -1)
    embedded = model.wte(batch).detach().requires_grad_()
    hook = model.wte.register_forward_hook(lambda *_: embedded)
    try:
        found = states(batch)
    finally:
        hook.remove()
    own = found.diagonal().T  # (n, ·): state i of row i
    projection = torch.randn(own.shape, dtype=own.dtype, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((own * projection).sum(), embedded)  # (n, T, E)
    return gradient.abs().sum(-1) > 0


def gate_1(model: ConvAttention, T: int) -> None:
    """Gradients are exactly zero for later tokens, and not for any that the formulas let through."""
    model = model.double()
    ids = tokens(T)
    h, logits = reach(model.config, T)
    found = felt(model, ids, lambda ids: model(ids).logits)
    assert not found.triu(1).any(), f"logits feel a later token, first at {found.triu(1).nonzero()[0].tolist()}"
    assert found.equal(logits), f"logits do not feel {(found ^ logits).nonzero()[0].tolist()}"
    for level, expected in enumerate(h):
        assert felt(model, ids, lambda ids, level=level: model.vectors(ids, level)).equal(expected), f"level {level}"


@torch.no_grad()
def gate_2(model: ConvAttention, T: int, changes: range | None = None, forward: Callable | None = None) -> None:
    """A changed token changes the logits at its place, and not one bit of those before it."""
    forward = model if forward is None else forward
    changes = range(T) if changes is None else changes
    ids = tokens(T).expand(len(changes), -1)
    changed = ids.clone()
    for row, t in enumerate(changes):
        changed[row, t] = (ids[row, t] + 1) % VOCABULARY
    # Equal shapes: a row's place in its batch may decide the order of a sum.
    before, after = forward(ids).logits, forward(changed).logits
    differs = (before != after).any(-1)  # (changes, T)
    for row, t in enumerate(changes):
        assert not differs[row, :t].any(), f"changing token {t} changes logits before it"
        assert differs[row, t], f"changing token {t} does not change its logits"


@torch.no_grad()
def gate_3(model: ConvAttention, lengths: range, tolerance: float) -> None:
    """A text cut at n has the logits of the first n tokens of the whole, within `tolerance` of their size."""
    ids = tokens(2, lengths[-1] + 1)
    whole = model(ids).logits
    for n in lengths:
        error = (model(ids[:, :n]).logits - whole[:, :n]).abs().max() / whole.abs().max().clamp(min=1)
        assert error <= tolerance, f"cut at {n}: {error:.1e}"


# G4: generation.


@torch.no_grad()
def by_pieces(model: ConvAttention, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Logits (B, T, V) of ids given to a cache in pieces; each level has run as often as its clock has struck."""
    cache, seen, found = model.new_cache(), 0, []
    for piece in ids.split(lengths, dim=1):
        found.append(model.hidden(piece, cache=cache))
        seen += piece.shape[1]
        assert list(cache.runs) == [-(-seen // span) for span in model.spans], f"runs after {seen} tokens"
    return model.head(torch.cat(found, dim=1))


def gate_4(model: ConvAttention, T: int, pieces: list[list[int]]) -> None:
    """However a text is cut, its logits are those of one forward pass, in fp64 within 1e-10."""
    model, ids = model.double(), tokens(3, T)
    with torch.no_grad():
        whole = model(ids).logits
    for lengths in pieces:
        last = sum(lengths)
        error = (by_pieces(model, ids[:, :last], lengths) - whole[:, :last]).abs().max()
        assert error <= 1e-10, f"in pieces of {lengths}: {error:.1e}"


# G5 and G7: what training finds.


def train(model: ConvAttention, sample: Callable[[], torch.Tensor], steps: int, lr: float) -> None:
    """AdamW on sample() (B, T + 1), the learning rate falling to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    model.train()
    for _ in range(steps):
        ids = sample()
        optimizer.zero_grad(set_to_none=True)
        model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def losses(model: ConvAttention, ids: torch.Tensor) -> torch.Tensor:
    """Nats of every target of ids (B, T + 1): (B, T)."""
    parts = [F.cross_entropy(model(b[:, :-1]).logits.mT.float(), b[:, 1:], reduction="none") for b in ids.split(64)]
    return torch.cat(parts)


def gap_to_entropy(model: ConvAttention, steps: int, lr: float, T: int = 64) -> tuple[float, float]:
    """How far above the entropy the loss ends on fresh tokens of 32 symbols, Zipf-distributed; and its standard error.

    Each token's loss is compared with its own -log p, so that the luck of the draw cancels and the error is small.
    """
    generator = torch.Generator().manual_seed(4)
    p = 1 / torch.arange(1, 33, dtype=torch.float64) ** 1.2
    p = (p / p.sum()).float()

    def sample(rows: int = 16) -> torch.Tensor:
        return p.multinomial(rows * (T + 1), replacement=True, generator=generator).view(rows, T + 1)

    train(model, sample, steps, lr)
    ids = sample(1024)
    above = losses(model, ids) + p.log()[ids[:, 1:]]
    return above.mean().item(), above.std().item() / above.numel() ** 0.5


def gate_5(model: ConvAttention, steps: int, lr: float) -> None:
    """What cannot be known is not known: the loss ends at the entropy, not below."""
    gap, sigma = gap_to_entropy(model, steps, lr)
    assert gap > -3 * sigma, f"{-gap:.4f} nats below the entropy, standard error {sigma:.4f}"
    assert gap < 0.01, f"{gap:.4f} nats above the entropy: it has not learnt the source"


def source_text(files: int) -> torch.Tensor:
    """Bytes of the first modules of Python's standard library."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))[:files]
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8).long()


def ratio_of_phases(model: ConvAttention, steps: int, lr: float, T: int = 128) -> float:
    """The highest by the lowest mean loss of the phases t mod S_L on text kept back, after training at any offset."""
    text, generator = source_text(60), torch.Generator().manual_seed(5)
    kept_back = len(text) // 3

    def cut(begins: torch.Tensor) -> torch.Tensor:
        return text[begins[:, None] + torch.arange(T + 1)]

    train(model, lambda: cut(torch.randint(kept_back, len(text) - T, (16,), generator=generator)), steps, lr)
    span = model.spans[-1]
    nats = losses(model, cut(torch.randint(0, kept_back - T, (1024,), generator=generator)))
    # The first tokens have little before them, which is nothing of the phase's doing.
    phases = nats[:, span : T - T % span].view(len(nats), -1, span).mean(dim=(0, 1))
    return (phases.max() / phases.min()).item()


def gate_7(model: ConvAttention, steps: int, lr: float) -> None:
    """No phase knows more than another."""
    ratio = ratio_of_phases(model, steps, lr)
    assert ratio < 1.3, f"the worst phase's loss is {ratio:.2f} times the best's"


# G8: several documents in a row.


def packed(T: int, seed: int = 6) -> torch.Tensor:
    """Document ids (rows, T): a boundary at every place, then rows of documents of 1 to 9 tokens."""
    boundaries = torch.where(torch.arange(T) < torch.arange(1, T)[:, None], 7, 3)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (16, T), generator=generator)
    short = torch.stack([torch.repeat_interleave(torch.arange(T), row)[:T] for row in lengths])
    return torch.cat((boundaries, short))


@torch.no_grad()
def gate_8(model: ConvAttention, T: int) -> None:
    """Changing every token of a document changes all its logits, and not one bit of another's."""
    document_ids = packed(T)
    ids = tokens(T).expand(len(document_ids), -1)
    before = model(ids, document_ids=document_ids).logits
    for parity in (0, 1):
        mine = _ordinal(document_ids) % 2 == parity
        differs = (model(ids.where(~mine, other(ids)), document_ids=document_ids).logits != before).any(-1)
        assert not (differs & ~mine).any(), f"another document is felt at {(differs & ~mine).nonzero()[0].tolist()}"
        assert differs[mine].all()


def gate_8_gradients(model: ConvAttention, T: int) -> None:
    """Gradients are exactly zero outside the document, and not within."""
    model, ids, document_ids = model.double(), tokens(T), packed(T)
    whole = model.config.windows is None
    for row in document_ids[[*range(0, T - 1, 5), T - 1, T]]:
        found = felt(model, ids, lambda ids, row=row: model(ids, document_ids=row.expand_as(ids)).logits)
        allowed = (row[:, None] == row).tril()
        assert not (found & ~allowed).any(), f"felt at {(found & ~allowed).nonzero()[0].tolist()}"
        assert found.equal(allowed) if whole else found.diagonal().all()


def _ordinal(document_ids: torch.Tensor) -> torch.Tensor:
    """0 for the first document of each row, 1 for the second, and so on."""
    return F.pad(document_ids.diff(dim=1) != 0, (1, 0)).cumsum(dim=1)
