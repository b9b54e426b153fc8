"""What the base class does for every model: generation, checkpointing of activations, optimizer groups, checks."""

import pytest
import torch
from torch import nn

from dsllm.config import ModelConfig
from dsllm.errors import ConfigError, UserError
from dsllm.models import MODELS, build_model
from dsllm.models.conv_attention_config import ConvAttentionConfig
from dsllm.models.gpt2 import GPT2, GPT2Config
from dsllm.models.head import TiedHead
from dsllm.models.language_model import LanguageModel
from dsllm.section import validate
from tests.models.conftest import moved


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"seed": 5}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 6}],
    ids=["greedy", "sampled", "narrowed"],
)
@pytest.mark.parametrize("prompt", [1, 5, 16, 17])
def test_the_cache_changes_no_token_even_past_the_context(small, ids, positions, settings, prompt):
    model = small(positions=positions)
    cached = model.generate(ids[:, :prompt], 40, **settings)
    assert cached.shape == (2, prompt + 40)
    assert cached[:, :prompt].equal(ids[:, :prompt])
    assert model.generate(ids[:, :prompt], 40, use_cache=False, **settings).equal(cached)


def test_the_cache_is_used_token_by_token(small, ids):
    model, lengths = small(), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model.generate(ids[:, :4], 16, seed=0)
    # 4 to 16 tokens: a prefill, then one by one; the 17th makes the window move by half a context.
    assert lengths == [4, *[1] * 12, 9, 1, 1]


def test_greedy_tokens_are_the_likeliest_of_the_full_forward(small, ids):
    model = small()
    tokens = model.generate(ids[:, :3], 13, temperature=0)
    assert model(tokens[:, :-1]).logits.argmax(-1)[:, 2:].equal(tokens[:, 3:])


def test_rows_of_the_vocabulary_that_are_no_tokens_are_never_chosen(small, ids):
    model = small()
    plain = model.generate(ids[:, :3], 13, temperature=0)[:, 3:]
    bound = int(plain.max())  # greedy text holds it
    assert int(model.generate(ids[:, :3], 13, temperature=0, known=bound)[:, 3:].max()) < bound
    assert model.generate(ids[:, :3], 13, temperature=0, known=model.vocab_size)[:, 3:].equal(plain)


def test_a_row_repeats_its_stop_token_and_all_end_together(small, ids):
    model = small()
    free = model.generate(ids[:, :4], 12, seed=2)[:, 4:]
    stop = int(free[0, 3])
    is_stop = free == stop
    after = is_stop.cumsum(dim=1) - is_stop.int() > 0
    length = int((~after).sum(dim=1).max())
    expected = free.masked_fill(after, stop)[:, :length]
    assert model.generate(ids[:, :4], 12, seed=2, stop_token=stop)[:, 4:].equal(expected)
    assert after.any() and not after.all(dim=0).all()


def test_generation_ends_at_once_when_every_row_has_stopped(small, ids):
    model = small()
    first = int(model.generate(ids[:1, :4], 1, temperature=0)[0, 4])
    assert model.generate(ids[:1, :4], 12, temperature=0, stop_token=first).shape == (1, 5)


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_mode_gradients_and_random_state_alone(small, ids, training):
    model = small().train(training)
    modes = []
    model.norm.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    before = torch.get_rng_state()
    model.generate(ids[:, :4], 3, seed=0)
    assert model.training is model.norm.training is training
    assert set(modes) == {(False, False)}
    assert torch.get_rng_state().equal(before)


def test_the_mode_comes_back_after_an_error(small, ids):
    model = small().train()
    model.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(ids[:, :4], 3)
    assert model.training


def test_no_new_tokens_give_the_prompt_back(small, ids):
    assert small().generate(ids, 0).equal(ids)


@pytest.mark.parametrize(
    "prompt, settings, message",
    [
        (
            torch.zeros(1, 0, dtype=torch.int64),
            {},
            r"a prompt of shape \(1, 0\): give \(B, T\) with at least one token",
        ),
        (torch.zeros(3, dtype=torch.int64), {}, r"a prompt of shape \(3,\)"),
        (torch.tensor([[1, 61]]), {}, "token 61: the model knows 0 to 60; use its own tokenizer"),
        (torch.tensor([[-1, 6]]), {}, "token -1"),
        (torch.tensor([[1]]), {"max_new_tokens": -1}, "max_new_tokens = -1"),
        (torch.tensor([[1]]), {"top_k": 0}, "top_k = 0"),
    ],
)
def test_a_wrong_prompt_or_setting_is_named(small, prompt, settings, message):
    with pytest.raises(UserError, match=message):
        small().generate(prompt, **{"max_new_tokens": 2, **settings})


def test_a_sequence_longer_than_learned_positions_is_named(small, ids):
    model = small(positions="learned")
    assert not model.config.any_length
    with pytest.raises(UserError, match=r"a sequence of 17 tokens: model.context = 16; cut it"):
        model(ids)


@torch.no_grad()
def test_a_longer_sequence_is_read_as_by_a_model_of_that_context(small, progressive, ids):
    conv = {"name": "conv_attention", "n_head": 2, "n_embd": 16, "strides": [4], "widths": [16, 32], "vocab_size": 61}
    conv |= {"encoder": [1], "middle": 1, "decoder": [1]}

    def convolving(context):
        config, _ = validate(ConvAttentionConfig, {**conv, "context": context}, "model")
        torch.manual_seed(0)
        return moved(build_model(config))

    for build in (
        lambda context: small(context=context, window=5),
        lambda context: progressive(context=context),
        convolving,
    ):
        shorter, longer = build(8), build(17)
        assert shorter.config.any_length
        for documents in (None, torch.tensor([[0] * 10 + [1] * 7, [0] * 17])):
            read = [model(ids, document_ids=documents).logits for model in (shorter, longer)]
            torch.testing.assert_close(*read, rtol=0, atol=0)


def test_targets_give_the_loss_alone_and_its_absence_the_logits(small, ids):
    model = small()
    logits, no_loss = model(ids[:, :-1])
    no_logits, loss = model(ids[:, :-1], targets=ids[:, 1:])
    assert no_loss is None and no_logits is None
    assert logits.shape == (2, 16, 61) and loss.shape == ()


@pytest.mark.parametrize(
    "policy, recomputed", [("none", []), ("all", [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 2]), ([1], [1]), ((), [])]
)
def test_checkpointed_blocks_run_twice_with_the_same_loss_and_gradients(small, ids, policy, recomputed):
    model, runs = small(), []
    loss = model(ids[:, :-1], targets=ids[:, 1:]).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    model.checkpoint_activations(policy)
    again = model(ids[:, :-1], targets=ids[:, 1:]).loss
    gradients = torch.autograd.grad(again, list(model.parameters()))
    assert sorted(runs) == sorted([0, 1, 2, *recomputed])
    assert again.equal(loss)
    assert all(a.equal(b) for a, b in zip(gradients, expected, strict=True))


def test_checkpointed_blocks_keep_fewer_activations(small, ids):
    def kept(policy):
        model, sizes = small(), {}
        model.checkpoint_activations(policy)

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(ids[:, :-1], targets=ids[:, 1:])
        return sum(sizes.values()) - sum(p.numel() * 4 for p in set(model.parameters()))

    none, half, every = kept("none"), kept(2), kept("all")
    assert every < half < none and every < none / 3


def test_a_frozen_base_still_trains_what_lies_inside_checkpointed_blocks(small, ids):
    model = small().requires_grad_(False)
    inner = model.blocks[1].mlp.down.weight.requires_grad_()
    model.checkpoint_activations("all")
    model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
    assert inner.grad.any()


@pytest.mark.parametrize(
    "policy, message",
    [
        ("some", "train.activation_checkpointing = some: take none, all, a number from 1, a list of blocks"),
        (0, "activation_checkpointing = 0"),
        ([0, 3], "train.activation_checkpointing: no block 3; the model executes 0 to 2"),
        ([-1], "no block -1"),
        ({"levels": [0, 2]}, "train.activation_checkpointing: no level 2; the model has level 0 alone"),
    ],
)
def test_a_wrong_checkpointing_policy_is_named(small, policy, message):
    with pytest.raises(ConfigError, match=message):
        small().checkpoint_activations(policy)


def test_each_trainable_parameter_is_in_one_group_and_only_matrices_decay(small):
    model = small(positions="learned")
    frozen = model.blocks[0].mlp.up.weight.requires_grad_(False)
    decay, rest = model.parameter_groups(0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    grouped = [*decay["params"], *rest["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()} - {id(frozen)}
    assert {p.dim() for p in decay["params"]} == {2} and {p.dim() for p in rest["params"]} == {1}


def test_a_group_without_parameters_is_left_out(small):
    model = small().requires_grad_(False)
    model.wte.weight.requires_grad_()
    assert [group["name"] for group in model.parameter_groups(0.1)] == ["decay"]


def test_an_open_vocabulary_is_named():
    with pytest.raises(ConfigError, match=r"model.vocab_size: not known yet; set it"):
        build_model(GPT2Config())


def test_a_model_is_built_by_its_name_also_from_the_general_section():
    model = build_model(ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=10))
    assert isinstance(model, GPT2) and model.config.positions == "rotary"


class Bigram(LanguageModel):
    """Next token from the last alone: all that a model must define, and a cache that counts instead of keeping keys."""

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(self.vocab_size, config.n_embd)
        self.mix = nn.Linear(config.n_embd, config.n_embd)
        self.head = TiedHead(self.wte)

    n_blocks = 2

    def hidden(self, input_ids, document_ids=None, cache=None):
        x = self.wte(input_ids)
        for use in range(self.n_blocks):  # one block used twice
            x = x + self.run_block(use, self.mix, x)
        if cache is not None:
            cache.append(input_ids.shape[1])
        return x

    def new_cache(self):
        return []

    def forward_flops_per_token(self, context):
        return 2 * (self.vocab_size + 2 * self.config.n_embd) * self.config.n_embd


def test_a_model_of_ones_own_has_everything_from_three_methods(ids):
    torch.manual_seed(0)
    model = Bigram(ModelConfig(n_embd=8, context=16, vocab_size=61))
    assert model.generate(ids, 20, seed=0).equal(model.generate(ids, 20, seed=0, use_cache=False))
    loss = model(ids[:, :-1], targets=ids[:, 1:]).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    model.checkpoint_activations([1])
    again = torch.autograd.grad(model(ids[:, :-1], targets=ids[:, 1:]).loss, list(model.parameters()))
    assert all(a.equal(b) for a, b in zip(again, expected, strict=True))
    assert sum(len(group["params"]) for group in model.parameter_groups(0.1)) == 3


def test_a_registered_model_is_built_by_its_name():
    name = "bigram-of-the-tests"
    MODELS.register(name)(Bigram)
    assert isinstance(build_model(ModelConfig(name=name, vocab_size=10)), Bigram)
