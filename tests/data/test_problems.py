"""Samples of problems: one each, whole, with what is to be said beside the tokens."""

import numpy as np
import pytest

from data_prep.cli import main
from dsllm.data.batches import BatchLoader, evaluation_batches
from dsllm.data.blend import Blend
from dsllm.data.dataset import TokenDataset
from dsllm.data.indexed import IndexedPair
from dsllm.data.problems import ProblemDataset, open_samples
from dsllm.errors import DataError

CONTEXT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("problems") / "perm"
    lengths = ["--lengths", "2-5", "--beyond", "6-7", "--documents", "40", "--held_out", "6"]
    main(["reasoning", "--task", "perm_chain", *lengths, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    out = tmp_path_factory.mktemp("text")
    (out / "a.txt").write_text("some text " * 400)
    main(
        [
            "tokenize",
            "--source",
            str(out / "a.txt"),
            "--tokenizer",
            "bytes",
            "--splits",
            "1,0,0",
            "--out",
            str(out / "d"),
        ]
    )
    return out / "d"


def test_a_folder_of_problems_is_opened_as_such_and_text_as_text(folder, text):
    assert isinstance(open_samples(folder, "val", CONTEXT), ProblemDataset)
    assert isinstance(open_samples(text, "train", CONTEXT), TokenDataset)


def test_a_sample_is_a_problem_padded_and_its_labels_stand_at_its_tokens(folder):
    data = ProblemDataset(folder, "train", CONTEXT)
    tokens, labels, depths = (IndexedPair(folder / f"train_00000{of}") for of in ("", ".labels", ".depths"))
    assert len(data) == len(tokens) == 40
    for i in range(len(data)):
        size = len(tokens.document(i))
        row, (wanted, chain) = data.sample(i), data.labels(i)
        assert row.shape == (CONTEXT + 1,) and wanted.shape == chain.shape == (CONTEXT,)
        assert (row[:size] == tokens.document(i)).all() and (row[size:] == data.tokenizer.end_of_text).all()
        assert (wanted[:size] == labels.document(i)).all() and (wanted[size:] == -100).all()
        assert (chain[:size] == depths.document(i)).all() and (chain[size:] == 0).all()
        assert data.document_ids(i).tolist() == [0] * size + [1] * (CONTEXT - size)
    with pytest.raises(IndexError):
        data.sample(40)


def test_batches_carry_labels_as_targets_and_every_problem_comes_once_an_epoch(folder):
    data = ProblemDataset(folder, "train", CONTEXT)
    options = {"seed": 3, "global_batch_size": 8, "rank": 0, "world_size": 1}
    loader = BatchLoader(data, micro_batch_size=4, mask_documents=True, **options)
    seen = [loader.batch(start) for start in range(0, 40, 8)]
    assert seen[0].tokens.shape == (2, 4, CONTEXT + 1) and seen[0].targets.shape == (2, 4, CONTEXT)
    assert (seen[0].targets == seen[0].labels).all() and seen[0].document_ids.max() == 1
    rows = [
        (*tokens, *labels)
        for batch in seen
        for tokens, labels in zip(batch.tokens.reshape(8, -1), batch.labels.reshape(8, -1), strict=True)
    ]
    assert sorted(rows) == sorted((*data.sample(i), *data.labels(i)[0]) for i in range(40))


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 8), (1, 2), (2, 2), (4, 1)])
def test_every_label_of_a_global_batch_weighs_the_same_however_it_is_divided(world_size, micro_batch_size, folder):
    data = ProblemDataset(folder, "train", CONTEXT)
    options = {"seed": 3, "global_batch_size": 8, "micro_batch_size": micro_batch_size, "world_size": world_size}
    batches = [BatchLoader(data, rank=rank, **options).batch(16) for rank in range(world_size)]
    counts = [(micro != -100).sum() for batch in batches for micro in batch.labels]
    weights = [weight for batch in batches for weight in batch.weights]
    # What a label adds to the mean over micro batches and ranks of the weighted means: one of all labels.
    shares = [weight / count / len(weights) for weight, count in zip(weights, counts, strict=True)]
    assert shares == pytest.approx([1 / sum(counts)] * len(shares))


def test_of_text_the_next_token_is_the_target(text):
    data = TokenDataset(text, "train", CONTEXT)
    loader = BatchLoader(data, seed=0, global_batch_size=2, micro_batch_size=2, rank=0, world_size=1)
    batch = loader.batch(0)
    assert batch.labels is None and (batch.targets == batch.tokens[..., 1:]).all()


def test_evaluation_has_the_depths_and_nothing_is_asked_of_padding(folder):
    data = ProblemDataset(folder, "beyond", CONTEXT)
    batches = list(evaluation_batches(data, samples=None, micro_batch_size=8, rank=0, world_size=1))
    assert [batch.valid.sum() for batch in batches] == [8, 4]
    assert (batches[1].targets[4:] == -100).all() and (batches[1].targets[:4] != -100).any()
    assert sorted({int(d) for batch in batches for d in batch.depths[batch.valid].max(1)}) == [6, 7]


def test_a_blend_of_problems_has_labels_and_one_with_text_is_refused(folder, text):
    train = ProblemDataset(folder, "train", CONTEXT)
    blend = Blend([train, ProblemDataset(folder, "val", CONTEXT)], [1, 1])
    assert blend.labelled and all((a == b).all() for a, b in zip(blend.labels(3), train.labels(3), strict=True))
    with pytest.raises(DataError, match="problems with labels and plain text in one blend"):
        Blend([train, TokenDataset(text, "train", CONTEXT)], [1, 1])


def test_a_context_that_cannot_hold_a_problem_is_refused_in_words(folder):
    with pytest.raises(DataError, match=r"of up to 8 tokens in split beyond, model\.context = 7; take at least 8"):
        ProblemDataset(folder, "beyond", 7)
    assert len(ProblemDataset(folder, "beyond", 8)) == 12


def test_a_label_outside_the_vocabulary_is_named(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    labels = np.fromfile(tmp_path / "val_00000.labels.bin", "<i4")
    labels[labels >= 0] = 4000
    labels.tofile(tmp_path / "val_00000.labels.bin")
    with pytest.raises(DataError, match="label 4000 in problem 0 of split val"):
        ProblemDataset(tmp_path, "val", CONTEXT).labels(0)
