"""How long a prefill and a decoded token take, of several models in turns, as `generate` does both."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from dsllm.machine import default_device
from dsllm.models.language_model import LanguageModel
from dsllm.training.loading import load_model

TURN, TURNS = 16, 4
"""Tokens that a model decodes behind a prefill before it is the next one's turn, and how many turns it has."""


@torch.no_grad()
def measure_inference(folders: Mapping[str, Path]) -> dict[str, tuple[float, float]]:
    """By name: milliseconds of a prefill of half a context, and the median per token decoded after it, batch 1."""
    device = default_device()
    loaded = {name: load_model(folder).to(device) for name, folder in folders.items()}
    models = {name: model for name, model in loaded.items() if model.config.context > 1}
    for model in models.values():  # what the first call alone does
        _Decoding(model, device).decode(1)
    turns = [{name: _Decoding(model, device) for name, model in models.items()} for _ in range(TURNS)]
    for decodings in turns:
        for decoding in decodings.values():
            decoding.decode(min(TURN, decoding.model.config.context - decoding.prefix))
    return {
        name: (
            1000 * statistics.median(of[name].prefill for of in turns),
            1000 * statistics.median(seconds for of in turns for seconds in of[name].seconds),
        )
        for name in models
    }


class _Decoding:
    """A model in the midst of a text."""

    def __init__(self, model: LanguageModel, device: torch.device):
        self.model, self.device = model, device
        self.prefix = model.config.context // 2
        ids = torch.randint(model.vocab_size, (1, self.prefix), generator=torch.Generator().manual_seed(0)).to(device)
        begun = self._now()
        self._cache = model.new_cache()
        model.hidden(ids, cache=self._cache)
        self.prefill = self._now() - begun
        self._score, self._token = model.head.for_generation(), ids[:, -1:]
        self.seconds: list[float] = []

    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            begun = self._now()
            hidden = self.model.hidden(self._token, cache=self._cache)[:, -1]
            self._token = self._score(hidden).argmax(-1, keepdim=True)
            self.seconds.append(self._now() - begun)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
