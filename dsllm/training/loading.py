"""A trained model and its tokenizer, whatever ZeRO stage wrote them, without an accelerator or a launcher."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from dsllm.errors import CheckpointError
from dsllm.models import build_model
from dsllm.models.language_model import LanguageModel
from dsllm.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from dsllm.training.backend import import_deepspeed
from dsllm.training.checkpoints import Checkpoint, find_checkpoint
from dsllm.training.run_folder import check_same_tokenizer


def load_model(path: str | Path) -> LanguageModel:
    """The model of a checkpoint, or of the newest complete one of a run, in fp32 on the CPU and in eval mode.

    Raises `CheckpointError` if there is none, or if its weights do not fit its configuration. Checkpoints are
    DeepSpeed's pickles: load only those of your own runs.
    """
    checkpoint = find_checkpoint(Path(path))
    model = build_model(checkpoint.config().model)
    try:
        model.load_state_dict(_weights(checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: its weights do not fit its config.yaml: {error}") from None
    return model.eval()


def load_tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint's model: from its data folder, or by its name once that has gone.

    Raises `UserError` if neither gives it, or if the data folder now holds other tokens.
    """
    data = Path(checkpoint.config().data.paths[0])
    tokenizer = tokenizer_of(data) if data.exists() else load_tokenizer(checkpoint.origin.tokenizer.name)
    check_same_tokenizer(checkpoint, tokenizer.info)
    return tokenizer


def _weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    if checkpoint.origin.zero_stage == 0:
        states = checkpoint.path / "mp_rank_00_model_states.pt"
        module = torch.load(states, map_location="cpu", weights_only=False)["module"]
        return {name: tensor.float() for name, tensor in module.items()}
    # Joins the ranks' parts of the fp32 master weights.
    import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It talks while it works, and an evaluation's output is read by scripts.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
