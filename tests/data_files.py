"""Writers of small data files."""

import gzip
import struct

import numpy as np
import scipy.io

IDX_CODES = {"u1": 0x08, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array, sizes=None):
    """Return an array as IDX; `sizes` makes the header say something else than the truth."""
    sizes = array.shape if sizes is None else sizes
    header = struct.pack(f">2xBB{len(sizes)}I", IDX_CODES[array.dtype.str[1:]], len(sizes), *sizes)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder, rng, n_train=12, n_test=5, zipped=True):
    """Write two small images files under the names of MNIST and return the arrays (N, 28, 28)."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for stem, n in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        content = idx_bytes(images)
        name = f"{stem}-images-idx3-ubyte"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
        arrays.append(images)
    return arrays


def write_freyface(folder, rng, n_frames=400):
    """Write a small file under the name of Frey Face, 393 of whose frames become test rows; return them (N, 560)."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = rng.integers(0, 256, (n_frames, 560), dtype=np.uint8)
    scipy.io.savemat(folder / "frey_rawface.mat", {"ff": frames.T})
    return frames
