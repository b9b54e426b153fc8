"""The sizes of a convolution-attention model, as transformers keeps them: config.json of an exported folder."""

from typing import Any

from transformers import PretrainedConfig


class ConvAttentionConfig(PretrainedConfig):
    """What `dsllm.models.levels` needs to know, each fact resolved, by the names that it has there."""

    model_type = "dsllm_conv_attention"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "context",
    }

    def __init__(
        self,
        vocab_size: int = 320,
        n_embd: int = 192,
        n_head: int = 6,
        context: int = 256,
        expansion: int = 1,
        strides: list[int] | None = None,
        widths: list[int] | None = None,
        spans: list[int] | None = None,
        convolution_taps: list[int] | None = None,
        attention_windows: list[int | None] | None = None,
        levels_read: list[int] | None = None,
        runs: list[list[Any]] | None = None,
        **kwargs: Any,
    ):
        self.vocab_size, self.n_embd, self.n_head = vocab_size, n_embd, n_head
        self.context, self.expansion = context, expansion
        self.strides, self.widths, self.spans = strides or [], widths or [n_embd], spans or [1]
        self.convolution_taps = convolution_taps or []
        self.attention_windows = attention_windows or [None] * len(self.widths)
        self.levels_read = levels_read or [0]
        self.runs = runs or []
        self.n_layer = len(self.runs)
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)
