"""Take the picture of TensorBoard that docs/first_run.md shows, of a run that is there.

python docs/pictures.py runs/demo_progressive        # of `make demo`; needs Chromium and playwright
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "pictures" / "tensorboard.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run / "tensorboard"), "--port", "0"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        address = next(line.split()[3] for line in server.stdout or () if "TensorBoard" in line and "http://" in line)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(f"{address}#custom_scalars", wait_until="networkidle")
            page.locator("svg path.line").first.wait_for(state="attached")
            page.wait_for_timeout(2000)  # curves are drawn one after the other
            PICTURE.parent.mkdir(exist_ok=True)
            page.screenshot(path=PICTURE)
            browser.close()
        server.terminate()
    print(PICTURE)


if __name__ == "__main__":
    main()
