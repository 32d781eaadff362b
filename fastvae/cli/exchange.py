"""``fastvae export`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastvae.cli.options import PATH, checkpoint_argument, json_option, open_model, print_json, print_table
from fastvae.cli.rows import out_option
from fastvae.network import ACTIVATIONS, LIKELIHOODS, MEANS

__all__ = ["export", "import_"]

# format -> layout and endings; ONNX has no layout, and goes to a folder
_FORMATS: dict[str, tuple[str, tuple[str, ...]] | None] = {
    "safetensors": ("fastvae", (".safetensors",)),
    "npz": ("fastvae", (".npz",)),
    "torch": ("torch", (".safetensors", ".npz")),
    "pytorch-examples": ("pytorch-examples", (".safetensors", ".npz")),
    "flax": ("flax", (".safetensors", ".npz")),
    "onnx": None,
}


@click.command()
@checkpoint_argument
@click.option(
    "--format", "form", type=click.Choice(tuple(_FORMATS)), default="safetensors", show_default=True, help="For whom."
)
@click.option("--out", type=PATH, required=True, help="File to write, .safetensors or .npz; of onnx a folder.")
@json_option
def export(checkpoint: Path, form: str, out: Path, as_json: bool) -> None:
    """Write the weights of a model for other programs.

    safetensors and npz hold them by fastvae's names; torch, pytorch-examples and flax by those that such modules load.
    onnx is two graphs, encoder.onnx and decoder.onnx.
    """
    kind = _FORMATS[form]
    if kind is not None and out.suffix not in kind[1]:
        raise click.UsageError(f"--out {out} must end in {' or '.join(kind[1])} for --format {form}")
    if kind is not None and not out.parent.is_dir():
        raise click.UsageError(f"the folder of --out {out} does not exist; make it or choose another")
    _, _, model = open_model(checkpoint)
    if kind is None:
        written = list(model.to_onnx(out))
    else:
        model.export(out, layout=kind[0])
        written = [out]
    if as_json:
        print_json({"out": [str(path) for path in written], "format": form})
    else:
        print(*written, sep="\n")


@click.command(name="import")
@click.argument("file", type=PATH)
@click.option("--activation", type=click.Choice(ACTIVATIONS), help="By default what the file says, else its layout's.")
@click.option("--likelihood", type=click.Choice(LIKELIHOODS), help="By default what the decoder's heads say.")
@click.option("--mean", type=click.Choice(MEANS), help="Of the gaussian likelihood; by default what the file says.")
@click.option("--logvar-floor", type=float, help="Of the gaussian likelihood; by default what the file says.")
@click.option("--scale", type=float, help="Factor of rows of bytes; by default what the file says, else as for train.")
@click.option("--image-shape", nargs=2, type=click.IntRange(1), help="Height and width of a row, for pictures.")
@out_option(".safetensors", default="imported.safetensors")
@json_option
def import_(file: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Make a checkpoint of weights that another program trained.

    FILE is a .safetensors or .npz of named arrays, in the layout of `fastvae export --format torch`, pytorch-examples
    (fc1, fc21, ...), flax (encoder/fc1, ...) or fastvae. Pickles are not read.
    """
    from fastvae.checkpoint import write
    from fastvae.interop import from_file
    from fastvae.model import Model
    from fastvae.model_file import to_checkpoint

    model = from_file(Model, file, **{name: value for name, value in options.items() if value is not None})
    write(out, to_checkpoint(model))
    network = model.network_
    values: dict[str, Any] = {
        "data_dim": network.data_dim,
        "latent_dim": network.latent_dim,
        "hidden": list(network.encoder_hidden),
        "decoder_hidden": list(network.decoder_hidden),
        "activation": network.activation,
        "likelihood": network.likelihood,
    }
    if as_json:
        print_json({"out": str(out), **values})
    else:
        shown = {name: ",".join(map(str, v)) or "none" if isinstance(v, list) else v for name, v in values.items()}
        print_table([*shown.items(), ("out", str(out))])
