"""A report's files, and the page in a real browser."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

from dsllm.comparison.arms import arms_of
from dsllm.comparison.plots import plots_of
from dsllm.comparison.report import Report, Table
from dsllm.comparison.writing import markdown, page, write_report
from tests.comparison.records import of_another_arm, of_problems

CHROMIUM = shutil.which("chromium")


def test_names_are_shown_as_text_not_as_markup(record):
    arms = arms_of([of_another_arm(record, "<script>|")])
    shown = page(Report("x<y", arms, {}))
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "x&lt;y" in shown
    assert "\\|" in markdown(Report("x", arms, {}))


PROBE = """<!doctype html><body><script>
const widths = [1280, 390], found = {};
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const outside = [...page.querySelectorAll("h1, h2, p, li, figcaption, .scroll, .words td")].filter(
      (part) => part.getBoundingClientRect().right > width + 0.5 || part.getBoundingClientRect().left < 0);
    const spilling = [...page.querySelectorAll("th, td")].filter((cell) => cell.scrollWidth > cell.clientWidth + 1);
    found[width] = {scrolls: root.scrollWidth > root.clientWidth, outside: outside.length, spilling: spilling.length,
      broken: [...page.images].filter((image) => !image.complete || !image.naturalWidth).length,
      images: page.images.length};
    if (!--left) document.title = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_is_cut_off_on_a_screen_or_a_telephone_and_nothing_is_fetched(record, tmp_path):
    runs = [of_problems(record, "a model with a rather long name of its own", 5), of_problems(record, "b", 3)]
    arms = arms_of(runs)
    title = "A comparison whose title is long enough to be broken on a telephone"
    figures = [["arm", *map(str, range(20))], ["scratch_12_grown_schedule", *["0.1234 ± 0.0123"] * 20]]
    settings = [
        ["arm", "settings"],
        ["scratch_12_grown_schedule", "{model: {n_layer: 3}, " + "growth: null, " * 40 + "}"],
    ]
    tables = [Table("By budget", figures, "A note. " * 30), Table("The arms", settings, "", words=True)]
    write_report(tmp_path, Report(title, arms, plots_of(arms), tables))
    (tmp_path / "probe.html").write_text(PROBE)
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    url = f"http://127.0.0.1:{server.server_port}/probe.html"
    command = [CHROMIUM, *quiet, "--window-size=1400,1000", "--timeout=20000", "--dump-dom", url]
    for _ in range(3):  # on a busy machine it may not wait until both widths were looked at
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        if title := re.search(r"<title>(.*)</title>", dom):
            break
    server.shutdown()
    found = json.loads(title[1].replace("&quot;", '"'))
    for width in ("1280", "390"):
        seen = {"scrolls": False, "outside": 0, "spilling": 0, "broken": 0, "images": len(plots_of(arms))}
        assert found[width] == seen, width
    assert {path for path in asked if path != "/favicon.ico"} == {"/probe.html", "/report.html"}
