"""Convolution attention for transformers: the levels as they are trained, and the form in which it wants a model."""

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from dsllm.exchange.configuration_conv_attention import ConvAttentionConfig
from dsllm.models.layers import Block
from dsllm.models.levels import ConvCache, Levels


class ConvAttentionForCausalLM(PreTrainedModel, Levels, GenerationMixin):  # type: ignore[misc]
    """The language model with its head, which is tied to the embedding.

    Its cache is not one of transformers': beside keys and values it holds what the convolutions have yet to read.
    """

    config_class = ConvAttentionConfig
    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "wte.weight"}  # noqa: RUF012
    _no_split_modules = ["Block", "Merge", "Spread"]  # noqa: RUF012

    def __init__(self, config: ConvAttentionConfig):
        super().__init__(config)
        levels = [level for kind, level in config.runs if kind == "block"]
        sizes = [(config.widths[level], config.n_head, config.attention_windows[level]) for level in levels]
        self.make_levels(config.vocab_size, [Block(*size) for size in sizes])
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[operator]

    def run_block(self, index: int, block: nn.Module, *inputs: Any) -> Any:
        """`block(*inputs)`."""
        return block(*inputs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: ConvCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) of input_ids (B, T); they continue what `past_key_values` has seen. Padding is on the right.

        Raises `ValueError` for padding on the left, or for more tokens than the cache holds.
        """
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise ValueError("a mask with padding on the left: pad on the right, or generate texts of one length")
        if past_key_values is None and use_cache and not self.training:
            past_key_values = ConvCache(self.config)
        if past_key_values is not None and past_key_values.length + input_ids.shape[1] > self.config.context:
            raise ValueError(f"more than {self.config.context} tokens: cut the text, or pass use_cache=False")
        hidden = self.norm(self.through_levels(input_ids, cache=past_key_values)[0])
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)  # type: ignore[operator]
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache

    @staticmethod
    def _reorder_cache(cache: ConvCache, rows: Tensor) -> ConvCache:
        """The cache for other rows of the batch, as beam search chooses them."""
        cache.select(rows)
        return cache

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value
