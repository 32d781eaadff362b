"""The examples below every command's help."""

from __future__ import annotations

import click

__all__ = ["EXAMPLES", "add_examples"]

EXAMPLES = {
    "": ("fastvae train --latent-dim 2 --epochs 50 --out runs/digits", "fastvae evaluate runs/digits"),
    "train": (
        "fastvae train --data mnist --latent-dim 20 --hidden 500 --epochs 10 --out runs/mnist",
        "fastvae train --out runs/mnist --resume --epochs 20",
        "fastvae train --config run.toml --print-config",
    ),
    "evaluate": (
        "fastvae evaluate runs/mnist --n-draws 10 --json",
        "fastvae evaluate runs/mnist --estimator importance --n-draws 1000",
    ),
    "sample": ("fastvae sample runs/mnist -n 64 --out samples.png",),
    "reconstruct": ("fastvae reconstruct runs/mnist --split test --out reconstructions.png",),
    "encode": ("fastvae encode runs/mnist --split train --out codes.npy",),
    "denoise": ("fastvae denoise runs/mnist --kind salt-pepper --amount 0.2 --out denoised.png",),
    "impute": ("fastvae impute runs/mnist --missing lower --n-chains 4 --out imputed.png",),
    "manifold": ("fastvae manifold runs/digits -n 20 --out manifold.png",),
    "traverse": ("fastvae traverse runs/mnist --row 3 --dimension 0 --dimension 4 --out traversals.png",),
    "interpolate": ("fastvae interpolate runs/mnist --rows 0 7 --out interpolation.png",),
    "report": ("fastvae report runs/mnist", "fastvae report runs/mnist runs/digits --out comparison.html"),
    "export": ("fastvae export runs/mnist --format torch --out weights.safetensors",),
    "import": ("fastvae import weights.safetensors --image-shape 28 28 --out imported.safetensors",),
    "data": ("fastvae data", "fastvae data fetch mnist"),
    "data list": ("fastvae data list --json",),
    "data fetch": ("fastvae data fetch freyface --data-dir ~/data",),
    "info": ("fastvae info",),
    "config": ("fastvae config runs/mnist > run.toml",),
    "completion": (
        "source <(fastvae completion bash)",
        "fastvae completion zsh > ~/.zfunc/_fastvae",
        "fastvae completion fish > ~/.config/fish/completions/fastvae.fish",
    ),
    "bench": (
        "fastvae bench --case mnist --engine fastvae --engine jax",
        "fastvae bench --sweep threads --json sweep.json",
    ),
    "bench report": ("fastvae bench report mnist.json sweep.json --html report.html",),
    "bench gpu": ("fastvae bench gpu --help",),
    "reproduce": ("fastvae reproduce fig2 --dataset mnist --latent-dim 20 --samples 1e6",),
    "reproduce fig2": ("fastvae reproduce fig2 --dataset mnist --latent-dim 20 --samples 1e6",),
    "reproduce fig3": ("fastvae reproduce fig3 --algorithm aevb --n-train 1000 --samples 1e6",),
    "reproduce fig4": ("fastvae reproduce fig4 --dataset freyface",),
    "reproduce fig5": ("fastvae reproduce fig5 --latent-dim 20",),
    "reproduce baselines": ("fastvae reproduce baselines --dataset mnist",),
    "reproduce variance": ("fastvae reproduce variance --quick",),
    "reproduce speed": ("fastvae reproduce speed --threads 2",),
}


def add_examples(command: click.Command, words: tuple[str, ...] = ()) -> None:
    """Put the examples of a command, and of all below it, at the end of their help."""
    examples = EXAMPLES.get(" ".join(words), ())
    if examples:
        command.epilog = "\n".join(
            ["\b", "Example:" if len(examples) == 1 else "Examples:", *(f"  {e}" for e in examples)]
        )
    for name, child in command.commands.items() if isinstance(command, click.Group) else ():
        add_examples(child, (*words, name))
