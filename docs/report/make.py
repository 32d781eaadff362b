"""The pictures of this folder: two runs on MNIST, their reports in headless Chromium.

Run from the repository's root, with fastvae, selenium, Pillow and chromium-driver installed, and FASTVAE_DATA naming
the folder of MNIST: ``PYTHONPATH=tests python docs/report/make.py [FOLDER OF THE RUNS]``. It takes two minutes.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import browser
from PIL import Image

FOLDER = Path(__file__).parent
RUNS = {"mnist-2": "2", "mnist-10": "10"}  # name -> latent dimensions
# name -> page, window, colours, script to run first
SHOTS = {
    "desktop-light": ("mnist-10/report.html", (1280, 1500), "light", ""),
    "desktop-dark": ("mnist-2/report.html", (1280, 1500), "dark", ""),
    "phone": (
        "mnist-2/report.html",
        (390, 844),
        "light",
        "fastvaeExplorer.set([0.6, -0.9]); location.hash = 'explorer'",
    ),
    "comparison": ("comparison.html", (1280, 1250), "light", ""),
}


def main(work: Path) -> None:
    """Train, write the pages, take the pictures."""
    fastvae = str(Path(sys.executable).with_name("fastvae"))
    for name, latent_dim in RUNS.items():
        if not (work / name).exists():
            options = ["--latent-dim", latent_dim, "--hidden", "500", "--epochs", "10", "--out", name]
            subprocess.run([fastvae, "train", "--data", "mnist", *options], cwd=work, check=True)
        subprocess.run([fastvae, "report", name], cwd=work, check=True)
    subprocess.run([fastvae, "report", *RUNS], cwd=work, check=True)
    with browser.started() as driver:
        for name, (page, size, scheme, script) in SHOTS.items():
            browser.show(driver, work / page, size=size, scheme=scheme)
            driver.execute_script("document.documentElement.style.scrollBehavior = 'auto';" + script)
            browser.next_frame(driver)
            picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            picture.quantize(256, Image.Quantize.FASTOCTREE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder))
