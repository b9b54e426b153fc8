"""A trained model and its tokenizer, whatever ZeRO stage wrote them, without an accelerator or a launcher."""

from pathlib import Path

from dsllm.config import ModelConfig
from dsllm.data.files import allow_open_files
from dsllm.models import skeleton
from dsllm.models.language_model import LanguageModel
from dsllm.models.lora import is_adapter
from dsllm.store import TensorStore
from dsllm.tokenizer import Tokenizer, tokenizer_named, tokenizer_of
from dsllm.training.checkpoints import Checkpoint, find_checkpoint
from dsllm.training.run_folder import check_same_tokenizer
from dsllm.training.tensors import check_fits, materialise, stored_values


def load_model(path: str | Path) -> LanguageModel:
    """The model of a checkpoint, or of the newest complete one of a run, in fp32 on the CPU and in eval mode.

    Raises `CheckpointError` if there is none, if a weight is not the one that was written, or if its tensors do not
    fit its configuration.
    """
    checkpoint = find_checkpoint(Path(path))
    model, store = skeleton(checkpoint.config().model), checkpoint.store()
    store.verify(entry for entry in store.entries.values() if entry.kind == "weight")
    materialise(model, stored_values(store, model))
    model.set_step(checkpoint.progress.step)
    return model.eval()


def map_model(section: ModelConfig, store: TensorStore, step: int) -> LanguageModel:
    """The model of a store's tensors at an optimizer step, in eval mode: its parameters are the mapped files.

    So one that is larger than memory can be asked, slowly. Raises `CheckpointError` if the tensors do not fit it.
    """
    model = skeleton(section)
    check_fits(store, model)
    names = list(model.state_dict())
    allow_open_files(len(names))
    mapped = {name: store["weight", name] for name in store.names()}
    model.load_state_dict({name: mapped[store.aliases.get(name, name)] for name in names}, assign=True)
    model.set_step(step)
    return model.eval()


def base_hash(path: str | Path) -> str:
    """The checksum of all that a checkpoint's adapters stand on: by it `dsllm.models.adapters` knows their base."""
    store = find_checkpoint(Path(path)).store()
    return store.digest(name for name in store.names() if not is_adapter(name))


def load_tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint's model: from its data folder, or by its name once that has gone.

    Raises `UserError` if neither gives it, or if the data folder now holds other tokens.
    """
    data = Path(checkpoint.config().data.paths[0])
    tokenizer = tokenizer_of(data) if data.exists() else tokenizer_named(checkpoint.origin.tokenizer.name)
    check_same_tokenizer(checkpoint, tokenizer.info)
    return tokenizer
