"""Vectors of texts: every token counts, the company of other texts does not, and too long a text is cut."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from dsllm.embedding import Embedder
from dsllm.errors import UserError
from dsllm.models import build_model
from dsllm.models.conv_attention import ConvAttentionConfig
from dsllm.models.gpt2 import GPT2Config
from dsllm.models.language_model import LanguageModel
from dsllm.models.progressive import ProgressiveConfig
from dsllm.tokenizer import load_tokenizer

SIZES = {"n_head": 2, "n_embd": 16, "context": 64, "vocab_size": 257}
CONFIGS = {
    "gpt2": GPT2Config(**SIZES, n_layer=2),
    "gpt2, learned positions": GPT2Config(**SIZES, n_layer=2, positions="learned"),
    "progressive": ProgressiveConfig(**SIZES, n_layer=2, uses=2),
    "convolution attention": ConvAttentionConfig(
        **SIZES, strides=(4, 4), widths=(12, 16, 20), encoder=(0, 1), middle=1, decoder=(1, 0)
    ),
}
TEXT = "A group is abelian if its elements commute."


@cache
def model_of(name: str) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # branches that begin at zero would hide what they do
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embedders() -> list:
    """Each model with each level and pool."""
    levels = [(name, level) for name in CONFIGS for level in range(3 if name == "convolution attention" else 1)]
    return [
        pytest.param(name, level, pool, id=f"{name}, level {level}, {pool}")
        for name, level in levels
        for pool in ("mean", "last")
    ]


EACH = pytest.mark.parametrize("name, level, pool", embedders())


def build(name: str, level: int = -1, pool: str = "mean", **options: int) -> Embedder:
    return Embedder(model_of(name), load_tokenizer("bytes"), level, pool, **options)


@EACH
def test_a_text_is_one_vector_of_length_one_in_its_own_row(name, level, pool):
    embedder = build(name, level, pool)
    vectors = embedder([TEXT, "short", "x" * 200, TEXT])
    assert vectors.dtype == np.float32 and vectors.shape[0] == 4
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert vectors[3] == pytest.approx(vectors[0], abs=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2 < np.abs(vectors[0] - vectors[2]).max()


@EACH
@pytest.mark.parametrize("length", [1, 4, 17, 33])
def test_changing_any_token_changes_the_vector(name, level, pool, length):
    embedder = build(name, level, pool)
    tokens = np.frombuffer((TEXT * 2).encode(), np.uint8)[:length]
    changed = [np.where(np.arange(length) == place, tokens ^ 3, tokens) for place in range(length)]
    differences = np.abs(embedder.embed(changed) - embedder.embed([tokens])).max(axis=1)
    assert differences.min() > 1e-5


@EACH
def test_a_text_in_a_batch_has_the_vector_that_it_has_alone(name, level, pool):
    embedder = build(name, level, pool, batch_tokens=300)
    texts = [(TEXT * 4)[:length] for length in (1, 3, 4, 5, 16, 17, 31, 40, 63, 64, 65, 150)]
    alone = np.concatenate([embedder([text]) for text in texts])
    assert embedder(texts) == pytest.approx(alone, abs=1e-5)


@EACH
def test_what_the_other_texts_of_a_batch_say_changes_no_bit(name, level, pool):
    embedder = build(name, level, pool)
    one, other = embedder([TEXT, "some words"]), embedder([TEXT, "other ways"])
    assert np.array_equal(one[0], other[0]) and not np.array_equal(one[1], other[1])


@pytest.mark.parametrize("level, span", [(0, 1), (1, 4), (2, 16)])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32])
def test_end_of_text_before_it_moves_the_last_token_of_a_text_to_the_clock_of_a_vector(level, span, length):
    mean, last = (build("convolution attention", level, pool) for pool in ("mean", "last"))
    tokens = np.arange(length) + 60
    newest = -(-length // span)
    ids = torch.full((1, span * newest + 1), mean.tokenizer.end_of_text)
    ids[0, -length:] = torch.from_numpy(tokens)
    with torch.no_grad():
        states = mean.model.vectors(ids, level)[0]
    assert len(states) == newest + 1 and ids[0, 0] == mean.tokenizer.end_of_text
    expected = torch.nn.functional.normalize(torch.stack([states[1:].mean(0), states[-1]]))
    found = np.concatenate([mean.embed([tokens]), last.embed([tokens])])
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_text_that_is_longer_than_the_context_is_the_mean_of_its_chunks_by_their_lengths():
    embedder = build("convolution attention", 2)
    assert embedder.most_tokens == 48
    tokens = np.arange(100) + 60
    assert [len(chunk) for chunk in embedder.chunks(tokens)] == [34, 33, 33]
    assert len(embedder.chunks(tokens[:48])) == 1 and len(embedder.chunks(tokens[:49])) == 2
    with torch.no_grad():
        means = [embedder._pooled([chunk], torch.tensor([len(chunk)]))[0] for chunk in embedder.chunks(tokens)]
    expected = torch.nn.functional.normalize(34 * means[0] + 33 * means[1] + 33 * means[2], dim=0)
    assert embedder.embed([tokens])[0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_forward_pass_holds_no_more_tokens_than_asked_unless_one_text_does():
    embedder, seen = build("gpt2", batch_tokens=40), []
    hook = embedder.model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2]))
    embedder(["x" * length for length in (3, 50, 4, 9, 9)])
    hook.remove()
    assert sum(rows for rows, _ in seen) == 5
    assert all(rows * tokens <= 40 or rows == 1 for rows, tokens in seen)
    assert len(seen) < 5


@pytest.mark.parametrize(
    "name, level, pool, message",
    [
        ("gpt2", 1, "mean", "level = 1: this model has level 0 alone; take one of them, or -1"),
        ("convolution attention", 3, "mean", "level = 3: this model has levels 0 to 2"),
        ("convolution attention", -4, "mean", "level = -4"),
        ("gpt2", 0, "max", "pool = max: take one of mean, last"),
    ],
)
def test_a_level_or_pool_that_is_not_there_is_named(name, level, pool, message):
    with pytest.raises(UserError, match=message):
        build(name, level, pool)


def test_a_level_with_one_vector_in_the_whole_context_is_refused():
    config = CONFIGS["convolution attention"].model_copy(update={"context": 16})
    model = build_model(config)
    with pytest.raises(UserError, match="level = -1: a vector of it stands for 16 tokens, so a context of 16 has but"):
        Embedder(model, load_tokenizer("bytes"))
    assert Embedder(model, load_tokenizer("bytes"), 1).most_tokens == 12


@pytest.mark.parametrize(
    "texts, message", [([], "no text"), (["a", ""], "text 2 of 2: empty"), ([" \n"], "text 1 of 1")]
)
def test_an_empty_text_is_named(texts, message):
    with pytest.raises(UserError, match=message):
        build("gpt2")(texts)
