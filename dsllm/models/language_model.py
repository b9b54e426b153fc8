"""What every language model here can do, and the little that a new one has to say.

A model computes hidden states and gives a head; training, evaluation and generation are written once, on top:

    class Bigram(LanguageModel):
        def __init__(self, config):
            super().__init__(config)
            self.wte = nn.Embedding(self.vocab_size, config.n_embd)
            self.head = TiedHead(self.wte)

        def hidden(self, input_ids, document_ids=None, cache=None):
            return self.wte(input_ids)                                  # (B, T, E)

        def new_cache(self):
            return ...                                                  # whatever `hidden` fills and reads

        def forward_flops_per_token(self, context):
            return 2 * self.vocab_size * self.config.n_embd             # the head is its only matrix product

A model that also says how each single parameter begins, by `initial`, is never built whole: the trainer makes it
tensor by tensor, and at ZeRO-3 lets go of each before it makes the next.

The cache is opaque here: keys and values of each executed layer in GPT-2, other things in other models. How often a
block is used, by which parameters and at which rate is the model's own affair.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsllm.config import ModelConfig
from dsllm.errors import ConfigError, UserError
from dsllm.models.drafting import LookUp
from dsllm.models.head import Head
from dsllm.models.sampling import Sampler, window_start


class Output(NamedTuple):
    """What a forward pass gives: logits (B, T, V), or the loss if there were targets."""

    logits: Tensor | None
    loss: Tensor | None


def seeded(seed: int, name: str) -> torch.Generator:
    """Randomness for one parameter, the same wherever and after whatever it is made."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class LanguageModel(nn.Module):
    """Base class of all models. A subclass names its `Config`, sets `self.head` and defines the three methods above."""

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    head: Head
    """`head(hidden)` gives logits, `head(hidden, targets)` the mean loss; see `head.TiedHead`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("model.vocab_size: not known yet; set it, or take the size of the data's tokenizer")
        self.config = config
        self.vocab_size: int = config.vocab_size
        self._recomputed: frozenset[int] = frozenset()
        self._compiles = False

    # What a model says.

    def hidden(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: Any = None) -> Tensor:
        """Final hidden states (B, T, E) of input_ids (B, T); position t may depend on input_ids[:, : t + 1] alone.

        With document_ids (B, T), equal within a document whose tokens lie together, on those of its own document alone.
        With a cache, input_ids continue the tokens that it has seen, and it sees them too.
        """
        raise NotImplementedError

    def new_cache(self) -> Any:
        """An empty cache for up to `config.context` tokens of a batch of any size."""
        raise NotImplementedError

    def rewind(self, cache: Any, length: int) -> bool:
        """Let a cache forget all but the first `length` tokens that it has seen; false, and nothing done, if it cannot.

        Generation guesses tokens ahead with caches that can.
        """
        return False

    def forward_flops_per_token(self, context: int) -> int:
        """Floating-point operations, forward, per token of a sequence of `context` tokens, the head included.

        Matrix products only, a multiply-add counting two; attention counted as if it were not causal.
        """
        raise NotImplementedError

    def initial(self, name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill a parameter, named as in `named_parameters`, with its initial value, in place.

        A model that defines it for all its parameters and has no buffers can be built on the meta device.
        """
        raise NotImplementedError

    @property
    def n_blocks(self) -> int:
        """Calls of `run_block` in a forward pass: blocks as executed, so that one used twice counts twice."""
        return self.config.n_layer

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay pulls on it: yes for matrices and embeddings, no for biases and norms."""
        return parameter.dim() >= 2

    def set_step(self, step: int) -> None:
        """Called before training step number `step`, from 1, and before evaluations after it."""

    @property
    def spans(self) -> tuple[int, ...]:
        """Tokens per vector of each of the model's levels, the outermost first; a plain transformer has one level."""
        return (1,)

    @property
    def run_levels(self) -> Sequence[int]:
        """The level of each call of `run_block` in a forward pass, in their order."""
        return (0,) * self.n_blocks

    def vectors(self, input_ids: Tensor, level: int = -1) -> Tensor:
        """States (B, ceil(T / S), width) of the level `spans[level]` = S; vector g depends on tokens 0 … g · S alone.

        input_ids (B, T), T up to the context. Of a plain transformer these are its final hidden states.
        """
        return self.hidden(input_ids)

    # What follows from it.

    @torch.no_grad()
    def initialise(self) -> None:
        """Give every parameter its `initial` value, from torch's random state; those on the meta device have none."""
        for name, parameter in self.named_parameters():
            if not parameter.is_meta:
                self.initial(name, parameter)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None, document_ids: Tensor | None = None) -> Output:
        """Logits of the next token at every position; with targets, the mean loss alone, which needs no full logits.

        input_ids, targets and document_ids are (B, T) int64; targets[:, t] is the token after input_ids[:, t], or -100
        for no loss there. The loss is in nats per target, fp32. Raises `UserError` if T is more than the
        context, unless `config.any_length`.
        """
        if input_ids.shape[1] > self.config.context and not self.config.any_length:
            raise UserError(
                f"a sequence of {input_ids.shape[1]} tokens: model.context = {self.config.context}; "
                f"cut it, or build the model with more"
            )
        hidden = self.hidden(input_ids, document_ids)
        if targets is None:
            return Output(self.head(hidden), None)
        return Output(None, self.head(hidden, targets))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups `{"name", "params", "weight_decay"}` that hold each trainable parameter exactly once."""
        decay: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():  # names a tied parameter once
            if parameter.requires_grad:
                (decay if self.decays(name, parameter) else rest).append(parameter)
        groups = [
            {"name": "decay", "params": decay, "weight_decay": weight_decay},
            {"name": "no_decay", "params": rest, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def count_parameters(self, *, embeddings: bool = True) -> int:
        """Parameters, tied ones once; without those of embeddings if asked. Count before ZeRO-3 takes them apart."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if embeddings:
            return total
        tables = {module.weight for module in self.modules() if isinstance(module, nn.Embedding)}
        return total - sum(table.numel() for table in tables)

    def flops_per_token(self, context: int) -> int:
        """Training FLOPs per token: forward, and twice that backward. What checkpointing recomputes is not counted."""
        return 3 * self.forward_flops_per_token(context)

    def checkpoint_activations(
        self, policy: Literal["none", "all"] | int | Sequence[int] | Mapping[Literal["levels"], Sequence[int]]
    ) -> None:
        """Choose the blocks whose activations the backward pass computes anew instead of keeping them.

        "none", "all", a number k for every k-th (0, k, 2k …), a list of blocks, counted from 0 as they are executed, or
        {"levels": [0, 1]} for the blocks of some levels. Loss and gradients stay the same, bit for bit. Raises
        `ConfigError` for another policy, or a block or level that the model has not.
        """
        n = self.n_blocks
        chosen: Sequence[int]
        if isinstance(policy, int) and policy > 0:
            chosen = range(0, n, policy)
        elif policy in ("none", "all"):
            chosen = range(n if policy == "all" else 0)
        elif isinstance(policy, Sequence) and not isinstance(policy, str):
            chosen = policy
        elif isinstance(policy, Mapping) and list(policy) == ["levels"]:
            chosen = [block for block, level in enumerate(self.run_levels) if level in policy["levels"]]
            for level in policy["levels"]:
                if not 0 <= level < len(self.spans):
                    has = f"has 0 to {len(self.spans) - 1}" if len(self.spans) > 1 else "has level 0 alone"
                    raise ConfigError(f"train.activation_checkpointing: no level {level}; the model {has}")
        else:
            raise ConfigError(
                f"train.activation_checkpointing = {policy}: take none, all, a number from 1, a list of blocks, or "
                f"levels: and a list of levels"
            )
        missing = [index for index in chosen if not 0 <= index < n]
        if missing:
            raise ConfigError(
                f"train.activation_checkpointing: no block {missing[0]}; the model executes 0 to {n - 1}; name those, "
                f"or levels: and a list of levels"
            )
        self._recomputed = frozenset(chosen)

    def compile_parts(self) -> None:
        """Compile every block's `forward` and the head's loss by torch.compile, each when it first runs.

        Block by block, not whole: blocks of one kind share their code, so that it is ready sooner, and what DeepSpeed
        hooks onto a block stays outside. For training: a cache of keys would be compiled anew for every token.
        """
        self._compiles = True
        self.head.compile_loss()

    def run_block(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        """`block(*inputs)` as the forward pass's block number `index`, recomputed later if that was chosen."""
        if self._compiles and "forward" not in vars(block):
            block.forward = torch.compile(block.forward, dynamic=False)
        if index in self._recomputed and torch.is_grad_enabled():
            # Reentrant checkpointing loses the gradients of adapters on a frozen base.
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            out = block(*inputs)
        return out

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        stop_token: int | None = None,
        known: int | None = None,
        use_cache: bool = True,
        draft: bool = True,
    ) -> Tensor:
        """Continue input_ids (B, T), all of one length: (B, T + n) with n up to `max_new_tokens`.

        Only tokens below `known`, the tokenizer's size, are chosen: a vocabulary has rows beyond it that mean nothing.
        A row that has produced `stop_token` repeats it, and all end when each row has. Past its context the model sees
        the newest tokens by `window_start`. `use_cache` and `draft`, which in fp32 checks several guessed tokens of
        a single row at once (see `drafting`), change the speed, not the tokens (but for rounding at ties).
        See `Sampler` for the choice of tokens. The model is in eval mode meanwhile. Raises `UserError` for an empty
        prompt, a token outside the vocabulary, or settings that make no sense.
        """
        self._check_prompt(input_ids, max_new_tokens)
        sampler = Sampler(temperature, top_k, top_p, seed, input_ids.device)
        was_training = self.training
        self.eval()
        try:
            return self._continue(input_ids, max_new_tokens, sampler, stop_token, known, use_cache, draft)
        finally:
            self.train(was_training)

    def _continue(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        sampler: Sampler,
        stop_token: int | None,
        known: int | None,
        use_cache: bool,
        draft: bool,
    ) -> Tensor:
        stopped = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        cache, cache_start = None, -1
        score = self.head.for_generation(max_new_tokens)
        exact = next(self.parameters()).dtype == torch.float32  # in half precision ties are common
        drafts = draft and exact and use_cache and len(tokens) == 1 and self.rewind(self.new_cache(), 0)
        text = LookUp(tokens[0].tolist() if drafts else [])
        end = tokens.shape[1] + max_new_tokens
        while tokens.shape[1] < end:
            length = tokens.shape[1]
            start = window_start(length, self.config.context)
            if use_cache and start == cache_start:
                unseen = tokens[:, -1:]
            else:
                unseen = tokens[:, start:]
                cache, cache_start = (self.new_cache() if use_cache else None), start
            room = min(end - 1, start + self.config.context) - length
            guess = text.guess(room) if drafts else []
            if guess:
                unseen = torch.cat((unseen, unseen.new_tensor([guess])), dim=1)
            states = self.hidden(unseen, cache=cache)[:, -1 - len(guess) :]  # (B, 1 + G, E), and B or 1 + G is 1
            for place, logits in enumerate(score(states.flatten(0, 1))[:, :known].split(len(tokens))):
                chosen = sampler(logits)
                if stop_token is not None:
                    chosen = chosen.masked_fill(stopped, stop_token)
                    stopped = chosen == stop_token
                tokens = torch.cat((tokens, chosen[:, None]), dim=1)
                if stop_token is not None and stopped.all():
                    return tokens
                if drafts:
                    text.append(int(chosen))
                    if guess[place : place + 1] != [int(chosen)]:
                        break  # what follows was scored after a token that did not come
            if guess:
                text.learn(len(guess), right=tokens.shape[1] - length - 1)
                self.rewind(cache, tokens.shape[1] - 1 - start)
        return tokens

    def _check_prompt(self, input_ids: Tensor, max_new_tokens: int) -> None:
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens = {max_new_tokens}: take 0 or more")
        if input_ids.dim() != 2 or not input_ids.numel():
            raise UserError(f"a prompt of shape {tuple(input_ids.shape)}: give (B, T) with at least one token a row")
        low, high = (int(bound) for bound in input_ids.aminmax())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise UserError(f"token {wrong}: the model knows 0 to {self.vocab_size - 1}; use its own tokenizer")
