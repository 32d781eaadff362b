"""The pictures of this folder: two runs on MNIST, their reports in headless Chromium.

Run from the repository's root, with fastvae, selenium, Pillow and chromium-driver installed, and FASTVAE_DATA naming
the folder of MNIST: ``python docs/report/make.py``. It takes two minutes.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FOLDER = Path(__file__).parent
RUNS = {"mnist-2": ("--latent-dim", "2"), "mnist-10": ("--latent-dim", "10")}
# name -> page, window, dark, script to run first
SHOTS = {
    "desktop-light": ("mnist-10/report.html", (1280, 1500), False, ""),
    "desktop-dark": ("mnist-2/report.html", (1280, 1500), True, ""),
    "phone": ("mnist-2/report.html", (390, 844), False, "fastvaeExplorer.set([0.6, -0.9]); location.hash = 'explorer'"),
    "comparison": ("comparison.html", (1280, 1250), False, ""),
}


def main(work: Path) -> None:
    """Train, write the pages, take the pictures."""
    fastvae = str(Path(sys.executable).with_name("fastvae"))
    for name, options in RUNS.items():
        if not (work / name).exists():
            command = [
                fastvae,
                "train",
                "--data",
                "mnist",
                *options,
                "--hidden",
                "500",
                "--epochs",
                "10",
                "--out",
                name,
            ]
            subprocess.run(command, cwd=work, check=True)
        subprocess.run([fastvae, "report", name], cwd=work, check=True)
    subprocess.run([fastvae, "report", *RUNS], cwd=work, check=True)
    for name, (page, size, is_dark, script) in SHOTS.items():
        picture = Image.open(io.BytesIO(shot(work / page, size, is_dark, script))).convert("RGB")
        picture.quantize(128, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


def shot(page: Path, size: tuple[int, int], is_dark: bool, script: str) -> bytes:
    """Return what a window of a size shows of a page, as PNG."""
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    profile = tempfile.TemporaryDirectory()
    flags = [
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "hide-scrollbars",
    ]
    for flag in (*flags, "disable-quic", "disable-component-update", "disable-sync", f"user-data-dir={profile.name}"):
        options.add_argument(f"--{flag}")
    with profile, webdriver.Chrome(options, Service("/usr/bin/chromedriver")) as browser:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(page.resolve().as_uri())
        browser.execute_script("document.documentElement.style.scrollBehavior = 'auto';" + script)
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return browser.get_screenshot_as_png()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder))
