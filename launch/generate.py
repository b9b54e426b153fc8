"""Continue a text with a run's model.

python launch/generate.py RUN_OR_CHECKPOINT --prompt "Let x be" [--max_new_tokens 100] [--temperature 0.8]
"""

from pathlib import Path

import torch

from dsllm.command_line import CommandLine, positive
from dsllm.errors import UserError, user_errors_exit
from dsllm.machine import default_device
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model, load_tokenizer_of


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max_new_tokens", type=positive, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--top_k", type=int, help="sample from the k likeliest tokens")
    parser.add_argument("--top_p", type=float, help="sample from the fewest tokens whose probabilities reach p")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    arguments = parser.parse_args()
    with user_errors_exit("stopped"):
        checkpoint = find_checkpoint(arguments.run)
        tokenizer = load_tokenizer_of(checkpoint)
        prompt = torch.as_tensor(tokenizer.encode(arguments.prompt).astype("int64"))
        if not len(prompt):
            raise UserError("--prompt: holds no token; give some text to continue")
        device = default_device()
        tokens = (
            load_model(checkpoint.path)
            .to(device)
            .generate(
                prompt[None].to(device),
                max_new_tokens=arguments.max_new_tokens,
                temperature=arguments.temperature,
                top_k=arguments.top_k,
                top_p=arguments.top_p,
                seed=arguments.seed,
                stop_token=tokenizer.end_of_text,
                known=tokenizer.size,
            )
        )
        print(tokenizer.decode(tokens[0].tolist()))


if __name__ == "__main__":
    main()
