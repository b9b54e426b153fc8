"""Every command that a page of docs/ shows works as it stands there, in the order of the page."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launching import REPOSITORY, environment, train

PAGES = ["evaluate.md", "plan.md", "pretrained.md"]
LINKS = re.compile(r"\]\(([^)#:]+)\)")


def commands(page: str) -> list[list[str]]:
    """The words of each command; those that need a hub, `sh hub`, are left out."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def place(data_folder: Path, pretrained: Path, recipe: Path, growing: Path, tmp_path_factory) -> Path:
    """A folder with what the pages take for granted: data/mine, models/gpt2 and two runs."""
    place = tmp_path_factory.mktemp("docs")
    for name in ("launch", "ds_configs"):
        (place / name).symlink_to(REPOSITORY / name)
    shutil.copytree(data_folder, place / "data" / "mine")
    shutil.copytree(pretrained, place / "models" / "gpt2")
    train(recipe, place / "runs" / "mine")
    train(growing, place / "runs" / "mine_diverging")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_its_commands_work(page, place):
    shutil.rmtree(place / "exported", ignore_errors=True)
    for words in commands(page):
        small = ["--train.micro_batch_size=4", "--train.global_batch_size=8"] if "launch/train.py" in words else []
        done = subprocess.run(
            [*words, *small],
            cwd=place,
            env={**environment(), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"


@pytest.mark.parametrize("page", sorted(path.name for path in (REPOSITORY / "docs").glob("*.md")))
def test_its_links_lead_to_files(page):
    for target in LINKS.findall((REPOSITORY / "docs" / page).read_text(encoding="utf-8")):
        assert (REPOSITORY / "docs" / target).exists(), target
