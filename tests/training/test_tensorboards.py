"""TensorBoard, opened in a real browser on a run that grows, shows what people look for where they look for it."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.browsing import browser, needs_chromium, opened, seen
from tests.launching import environment, train


@pytest.fixture(scope="module")
def address(growing, tmp_path_factory) -> Iterator[str]:
    """Where TensorBoard serves a run that grew."""
    run_dir = tmp_path_factory.mktemp("shown") / "run"
    train(growing, run_dir, monitor__tensorboard="true", growth__watch_every=1)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", run_dir / "tensorboard", "--port", "0"]
    server = subprocess.Popen(
        [*map(str, command), "--host", "127.0.0.1"],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert server.stdout is not None
    deadline = threading.Timer(60, server.kill)  # which ends its output
    deadline.start()
    said = []
    try:
        for line in server.stdout:
            said.append(line)
            if "http://" in line and "TensorBoard" in line:
                deadline.cancel()
                yield line.split()[3]
                break
        else:
            pytest.fail("".join(said))
    finally:
        deadline.cancel()
        server.kill()
        server.wait()


@pytest.mark.slow
@needs_chromium
def test_each_tab_shows_the_run(address):
    with browser() as chromium, opened(chromium) as page:
        look(page, address)


def look(page, address: str) -> None:
    page.goto(f"{address}#custom_scalars")
    for title in ("loss, nats per token", "the same by tokens", "learning rate", "tokens per second", "memory of rank"):
        assert seen(page, title).bounding_box()["y"] < 1000  # on the first screen
    seen(page, "divergence of copies")
    page.locator("svg path.line").nth(7).wait_for(state="attached")  # curves, not only their titles

    page.goto(f"{address}#timeseries")
    for group in ("train", "train_by_tokens", "val", "growth", "layers"):
        seen(page, group, exact=True)

    page.goto(f"{address}#images")
    seen(page, "layers/divergence")
    page.locator("img[src*=individualImage]").filter(visible=True).first.wait_for()

    page.goto(f"{address}#text")
    for text in ("continuations/1", "continuation", "growth/receipt", "2 → 4 distinct blocks"):
        seen(page, text)

    page.goto(f"{address}#hparams")
    for name in ("growth.factor", "last/val_loss"):
        seen(page, name)
