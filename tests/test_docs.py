"""What a page of docs/ shows works as it stands there: commands in the order of the page, configurations, Python.

```sh          run here, from a folder with data/mine, models/gpt2, runs/mine and runs/mine_diverging
```sh setup    targets of the Makefile, and what stands around them
```sh serves   runs until it is ended: it has to say where it listens
```sh hosts    needs several hosts: tests/multihost runs them
```sh slurm    needs a cluster: tests/slurm runs them
```sh hub      needs a model hub, which no test has
```yaml        sections of a configuration
```json        a configuration of DeepSpeed
```python      a file by itself, or, if its first line names a file, `# smooth.py`, that file beside the page's commands
"""

import functools
import http.server
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsllm import config
from dsllm.config import RunConfig
from dsllm.training.ds_config import complete_ds_config
from dsllm.yaml_file import parse_yaml
from tests.browsing import browser, needs_chromium, opened
from tests.forked import forked
from tests.launching import REPOSITORY, environment, train

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+ ?\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
KINDS = {"sh", "sh setup", "sh serves", "sh hosts", "sh slurm", "sh hub", "yaml", "python", "json"}
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
TRAINS = re.compile(r"launch/train\.py|(?<!launch/)\b\w+\.py --config")
SETTING = re.compile(r"[A-Z_]+=")
"""Before a command, for its environment."""
SMALL = [
    "--train.micro_batch_size=4",
    "--train.global_batch_size=8",
    "--train.eval_samples=8",
    "--train.test_samples=8",
]
"""A page shows sizes for accelerators; a test has two cores."""
SHORT = {"installed:sympy,mpmath,networkx": "installed:mpmath"}


def blocks(page: str) -> list[tuple[str, str]]:
    """Kind and text of each block of a page."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def commands(page: str, kind: str) -> Iterator[list[str]]:
    """The words of each command in the page's blocks of a kind."""
    for found, text in blocks(page):
        if found == kind:
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield words


def shows(*kinds: str) -> list[str]:
    return [page for page in PAGES if any(kind in kinds for kind, _ in blocks(page))]


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


def execute(words: list[str], place: Path) -> None:
    """A command as the page has it; of Python and DeepSpeed a fork, which has imported everything."""
    words = [SHORT.get(word, word) for word in words]
    small = SMALL if TRAINS.search(" ".join(words)) else []
    first = next(index for index, word in enumerate(words) if not SETTING.match(word))
    settings = dict(word.split("=", 1) for word in words[:first])
    program, rest = words[first], words[first + 1 :]
    if program == "deepspeed":
        ranks = int(rest[rest.index("--num_gpus") + 1]) if "--num_gpus" in rest else 2
        script = next(index for index, word in enumerate(rest) if word.endswith(".py"))
        forked([*rest[script:], *small], ranks, folder=place, settings=settings)
    elif program == "python":
        forked([*rest, *small], folder=place, settings=settings)
    else:
        done = subprocess.run(
            [program, *rest],
            cwd=place,
            env={**environment(), **OFFLINE, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("page", shows("sh"))
def test_its_commands_work(page, place):
    shutil.rmtree(place / "exported", ignore_errors=True)
    for kind, text in blocks(page):
        if kind == "python" and text.startswith("# "):
            (place / text.split()[1]).write_text(text)
    for words in commands(page, "sh"):
        execute(words, place)


@pytest.mark.parametrize("page", shows("sh setup"))
def test_what_sets_up_is_in_the_makefile(page):
    for words in commands(page, "sh setup"):
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        else:
            assert words[0] in ("git", "cd", "source", ".", "pip"), words


@pytest.mark.slow
@pytest.mark.parametrize("page", shows("sh serves"))
def test_what_serves_says_where(page, place):
    for words in commands(page, "sh serves"):
        with subprocess.Popen(
            words, cwd=place, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as server:
            deadline = threading.Timer(60, server.kill)  # which ends its output
            deadline.start()
            assert any("http://" in line for line in server.stdout or ())
            deadline.cancel()
            server.kill()


@pytest.mark.parametrize("page", shows("yaml"))
def test_its_configurations_are_valid(page):
    for kind, text in blocks(page):
        if kind == "yaml":
            RunConfig.from_values({"run_dir": "runs/x", "data": {"path": "data/mine"}} | parse_yaml(text))


@pytest.mark.parametrize("page", shows("json"))
def test_its_deepspeed_configurations_are_taken(page, tmp_path):
    for kind, text in blocks(page):
        if kind == "json":
            (tmp_path / "ds.json").write_text(text)
            complete_ds_config(config.TrainConfig(ds_config=tmp_path / "ds.json"), 1, "bf16", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("page", shows("python"))
def test_its_python_runs(page, place):
    for kind, text in blocks(page):
        if kind == "python" and not text.startswith("# "):
            (place / "page.py").write_text(text)
            forked(["page.py"], folder=place)


@pytest.mark.parametrize("page", PAGES)
def test_its_blocks_are_of_a_kind_that_is_tested(page):
    assert {kind for kind, _ in blocks(page)} <= KINDS


@pytest.mark.parametrize("page", [*PAGES, "../README.md", "../CONTRIBUTING.md"])
def test_its_links_lead_to_files(page):
    for target in LINK.findall((DOCS / page).read_text(encoding="utf-8")):
        assert ((DOCS / page).parent / target).exists(), target


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[str]:
    """The address of the site, built so that a warning is a failure."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    serves = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    threading.Thread(target=serves.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serves.server_port}/"
    serves.shutdown()


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_the_site_is_whole_on_a_screen_and_a_telephone_and_asks_no_other_host(site):
    paths = ["", *(page.removesuffix(".md") + "/" for page in PAGES if page != "index.md"), "reference/dsllm/"]
    with browser() as chromium, opened(chromium) as page:
        for path in paths:
            page.goto(site + path)
            assert page.locator("h1").count() == 1
            assert not page.evaluate("[...document.images].some(image => !image.complete || !image.naturalWidth)")
            for width in (1400, 390):
                page.set_viewport_size({"width": width, "height": 900})
                # Once it has settled: sidebars slide.
                page.wait_for_function("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.slow
def test_the_reference_has_every_key_of_the_configuration(site):
    text = urllib.request.urlopen(f"{site}reference/dsllm/").read().decode()
    for section in ("ModelConfig", "DataConfig", "TrainConfig", "GrowthConfig", "LoRAConfig", "MonitorConfig"):
        for key in getattr(config, section).model_fields:
            assert f'id="dsllm.config.{section}.{key}"' in text
