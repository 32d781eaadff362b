"""Checkpoints: bit-exact round trips, every kind of damage found, nothing lost when a writer dies or a disk fills."""

import errno
import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fastvae import checkpoint, files
from fastvae.checkpoint import Checkpoint, list_checkpoints, load_latest, read, save, write
from fastvae.errors import CheckpointError

SEED = 1312_6114
HISTORY = [0.1, 1 / 3, -104.8, 5e-324, 1.7976931348623157e308, -0.0, float("inf"), float("-inf")]


def example(step=1):
    rng = np.random.default_rng([SEED, step])
    tensors = {
        "encoder.0.W": rng.standard_normal((7, 3), dtype=np.float32),
        "encoder.0.b": np.zeros(3, dtype=np.float32),
        "optimizer.0.encoder.0.W": rng.standard_normal((7, 3)),
        "order": rng.permutation(5),
    }
    return Checkpoint(tensors, {"step": step, "history": HISTORY, "network": {"hidden_dims": [500]}, "seed": 2**63})


def assert_same(result, expected):
    assert list(result.tensors) == list(expected.tensors)
    for name, ref in expected.tensors.items():
        comp = result.tensors[name]
        assert (comp.dtype, comp.shape) == (ref.dtype, ref.shape)
        assert comp.tobytes() == ref.tobytes()
        assert comp.flags.c_contiguous
        assert comp.flags.writeable
    assert repr(result.metadata) == repr(expected.metadata)


def fail_on_damage(path, error):
    pytest.fail(f"{path} was called damaged: {error}")


def names(folder):
    return sorted(os.listdir(folder))


def steps(folder):
    return [int(path.name[11:23]) for path in list_checkpoints(folder)]


# Round trip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,), (1, 1), (13,), (2, 3, 4)])
def test_round_trip_shapes(tmp_path, dtype, shape):
    ref = np.random.default_rng(SEED).integers(-9, 9, shape).astype(dtype).reshape(shape)
    expected = Checkpoint({"x": ref}, {})
    write(tmp_path / "a.safetensors", expected)
    assert_same(read(tmp_path / "a.safetensors"), expected)


@pytest.mark.parametrize(("bits", "dtype"), [(np.uint32, np.float32), (np.uint64, np.float64)])
def test_round_trip_keeps_every_bit(tmp_path, bits, dtype):
    rng = np.random.default_rng(SEED)
    info = np.finfo(dtype)
    mantissa, width = info.nmant, info.bits
    exponent = ((1 << (width - 1 - mantissa)) - 1) << mantissa
    special = [0, 1, 1 << (width - 1), exponent, exponent | 1, exponent | (1 << (mantissa - 1)) | 0x1234, 2**width - 1]
    payload = np.concatenate([np.array(special, bits), rng.integers(0, 2**width, 1000, dtype=bits)])
    expected = Checkpoint({"x": payload.view(dtype)}, {})
    write(tmp_path / "a.safetensors", expected)
    assert_same(read(tmp_path / "a.safetensors"), expected)


def test_round_trip_metadata(tmp_path):
    rng = np.random.default_rng(SEED)
    floats = rng.integers(0, 2**64, 1000, dtype=np.uint64).view(np.float64).tolist()
    metadata = {
        "history": [*HISTORY, float("nan"), *floats],
        "big": 2**200,
        "none": None,
        "flags": [True, False],
        "text": 'quotes "header_sha256":"' + "0" * 64 + '" é \u2028 \x00 \n \ud800',
        "nested": {"": {"deep": [[], {}]}},
    }
    expected = Checkpoint({'"header_sha256":"' + "0" * 64 + '"': np.ones(2, np.float32)}, metadata)
    write(tmp_path / "a.safetensors", expected)
    assert_same(read(tmp_path / "a.safetensors"), expected)


def test_no_tensors_and_a_tuple(tmp_path):
    write(tmp_path / "a.safetensors", Checkpoint({}, {"hidden_dims": (500, 200)}))
    result = read(tmp_path / "a.safetensors")
    assert result.tensors == {}
    assert result.metadata == {"hidden_dims": [500, 200]}


def test_file_is_plain_safetensors(tmp_path):
    expected = example()
    write(tmp_path / "a.safetensors", expected)
    comp = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert comp.keys() == expected.tensors.keys()
    for name, ref in expected.tensors.items():
        np.testing.assert_array_equal(comp[name], ref)


@pytest.mark.parametrize(
    ("tensor", "error", "match"),
    [
        (np.zeros(3, np.float16), TypeError, "float16"),
        (np.zeros(3, ">f4"), TypeError, ">f4"),
        (np.zeros(3, object), TypeError, "object"),
        ([1.0], TypeError, "list"),
        (np.float32(1), TypeError, "float32"),
        (np.zeros((3, 4), np.float32).T, ValueError, "C-contiguous"),
        (np.zeros(9, np.float32)[::2], ValueError, "C-contiguous"),
    ],
)
def test_refuses_tensors_that_it_cannot_hold(tmp_path, tensor, error, match):
    with pytest.raises(error, match=match):
        save(tmp_path, Checkpoint({"w": tensor}, {}), step=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["__metadata__", 3])
def test_refuses_tensor_names(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be named"):
        write(tmp_path / "a.safetensors", Checkpoint({name: np.zeros(1)}, {}))


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"a": [0, {1: 2}]}, r"metadata\['a'\]\[1\] has the key 1"),
        ({"a": {"b": np.float32(1)}}, r"metadata\['a'\]\['b'\] is a float32"),
        ({"a": b"x"}, r"metadata\['a'\] is a bytes"),
        ([1], "metadata must be a dict"),
    ],
)
def test_refuses_metadata_that_json_would_change(tmp_path, metadata, match):
    with pytest.raises(TypeError, match=match):
        write(tmp_path / "a.safetensors", Checkpoint({}, metadata))
    assert names(tmp_path) == []


def test_refuses_metadata_too_long_to_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MAX_HEADER", 5000)
    with pytest.raises(CheckpointError, match="shorten the history"):
        write(tmp_path / "a.safetensors", Checkpoint({}, {"history": [0.1] * 2000}))


# Damage ---------------------------------------------------------------------------------------------------------------


def assert_rejected(path, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read checkpoint {path}: ")
    assert "\n" not in message
    assert ";" in message


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, Checkpoint({"W": np.ones((2, 1), np.float32), "none": np.zeros((0, 2))}, {"history": HISTORY[:2]}))
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as handle:
        for position, value in enumerate(content):
            for bit in range(8):
                os.pwrite(handle.fileno(), bytes([value ^ 1 << bit]), position)
                assert_rejected(path)
            os.pwrite(handle.fileno(), bytes([value]), position)
    read(path)


def test_random_bytes_are_found(tmp_path):
    rng = np.random.default_rng(SEED)
    path = tmp_path / "a.safetensors"
    write(path, example())
    content = path.read_bytes()
    for position in rng.permutation(len(content))[:1000]:
        damaged = bytearray(content)
        damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        assert_rejected(path)


def test_truncation_at_every_byte_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, example())
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        assert_rejected(path, "empty" if size == 0 else None)


@pytest.mark.parametrize("extra", [b"\0", b"more"])
def test_appended_bytes_are_found(tmp_path, extra):
    path = tmp_path / "a.safetensors"
    write(path, example())
    with path.open("ab") as handle:
        handle.write(extra)
    assert_rejected(path, "its header describes")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04K\x01.",
        b"PK\x03\x04" + b"\0" * 100,
        b"{}",
        b"\xff" * 8,
        struct.pack("<Q", 2**62) + b"{" * 100,
        struct.pack("<Q", 99_999_999) + b"{}",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2) + b"{}",
    ],
)
def test_other_files_are_rejected(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert_rejected(path, "not a safetensors file|not a checkpoint of fastvae")


def test_foreign_safetensors_is_rejected(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, path)
    assert_rejected(path, "not a checkpoint of fastvae")


def test_missing_file_and_folder_are_rejected(tmp_path):
    assert_rejected(tmp_path / "none.safetensors", "no such file")
    assert_rejected(tmp_path, "not a regular file")


def test_unreadable_file_is_rejected(tmp_path, monkeypatch):
    save(tmp_path, example(), step=1)

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert_rejected(tmp_path / "checkpoint-000000000001.safetensors", "Permission denied")


def forge(path, tensors, **changes):
    """Write a sealed file, computed apart from the module, with some metadata fields replaced or (None) left out."""
    hashes = {name: hashlib.sha256(tensor.tobytes()).hexdigest() for name, tensor in tensors.items()}
    fields = {"format": "fastvae", "format_version": "1", "metadata": "{}", "sha256": json.dumps(hashes)} | changes
    fields = {key: value for key, value in fields.items() if value is not None}
    content = safetensors.numpy.save(tensors, metadata=fields | {"header_sha256": "0" * 64})
    end = 8 + struct.unpack("<Q", content[:8])[0]
    unsealed = b'"header_sha256":"' + b"0" * 64
    sealed = b'"header_sha256":"' + hashlib.sha256(content[:end]).hexdigest().encode()
    path.write_bytes(content[:end].replace(unsealed, sealed) + content[end:])


TENSORS = {"w": np.arange(3, dtype=np.float32), "b": np.zeros((), np.float64)}


def test_format_is_as_documented(tmp_path):
    forge(tmp_path / "a.safetensors", TENSORS, metadata='{"step": 3, "elbo": NaN}')
    assert_same(read(tmp_path / "a.safetensors"), Checkpoint(dict(TENSORS), {"step": 3, "elbo": float("nan")}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format_version": "2"}, "newer fastvae.*; upgrade fastvae"),
        ({"format_version": "0"}, "unknown format"),
        ({"format_version": "one"}, "malformed"),
        ({"format_version": None}, "malformed"),
        ({"format": "pt"}, "unknown format 'pt'"),
        ({"metadata": None}, "malformed"),
        ({"metadata": "{"}, "malformed"),
        ({"metadata": "[]"}, "malformed"),
        ({"sha256": None}, "malformed"),
        ({"sha256": "[]"}, "malformed"),
        ({"sha256": json.dumps({"w": hashlib.sha256(TENSORS["w"].tobytes()).hexdigest()})}, "'b' has no SHA-256"),
        ({"sha256": json.dumps(dict.fromkeys(["w", "b", "c"], "0" * 64))}, "'c'"),
        ({"sha256": json.dumps(dict.fromkeys(["w", "b"], "0" * 64))}, "tensor 'w' do not match"),
    ],
)
def test_sealed_but_wrong_content_is_rejected(tmp_path, changes, match):
    forge(tmp_path / "a.safetensors", TENSORS, **changes)
    assert_rejected(tmp_path / "a.safetensors", match)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint64, np.bool_])
def test_other_dtypes_are_rejected(tmp_path, dtype):
    forge(tmp_path / "a.safetensors", {"w": np.zeros(3, dtype)})
    assert_rejected(tmp_path / "a.safetensors", "tensor 'w' of .* is none of F32, F64, I64")


# Folder: names, order, pruning ----------------------------------------------------------------------------------------


def test_save_names_order_and_prune(tmp_path):
    folder = tmp_path / "new" / "run"
    for step in (9, 10, 100, 10**12 - 1, 10**12):
        path = save(folder, example(step), step=step, keep=3)
        assert path == folder / f"checkpoint-{step:012d}.safetensors"
        latest, comp = load_latest(folder, fail_on_damage)
        assert latest == path
        assert_same(comp, example(step))
    assert names(folder) == [
        "checkpoint-000000000100.safetensors",
        "checkpoint-1000000000000.safetensors",
        "checkpoint-999999999999.safetensors",
    ]
    assert [int(path.stem[11:]) for path in list_checkpoints(folder)] == [100, 10**12 - 1, 10**12]


def test_other_files_are_left_alone(tmp_path):
    others = ["best.safetensors", "checkpoint-1.safetensors", "checkpoint-000000000001.safetensors.bak", "history.csv"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "checkpoint-000000000000.safetensors").mkdir()
    for step in (1, 2):
        save(tmp_path, example(), step=step, keep=1)
    assert names(tmp_path) == sorted(
        [*others, "checkpoint-000000000000.safetensors", "checkpoint-000000000002.safetensors"]
    )
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize(("step", "keep", "error"), [(-1, 3, ValueError), (1, 0, ValueError), (1.5, 3, TypeError)])
def test_bad_arguments(tmp_path, step, keep, error):
    with pytest.raises(error):
        save(tmp_path / "run", example(), step=step, keep=keep)
    assert not (tmp_path / "run").exists()


def damage(path, how):
    if how == "empty":
        os.truncate(path, 0)
    elif how == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    else:
        position = {"header": 20, "tensor": path.stat().st_size - 1}[how]
        content = bytearray(path.read_bytes())
        content[position] ^= 4
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["empty", "truncated", "header", "tensor"])
def test_load_latest_names_the_damaged_and_takes_the_newest_valid(tmp_path, how):
    paths = [save(tmp_path, example(step), step=step, keep=5) for step in range(1, 6)]
    for path in paths[2:]:
        damage(path, how)
    seen = []
    latest, comp = load_latest(tmp_path, lambda path, error: seen.append((path, str(error))))
    assert latest == paths[1]
    assert_same(comp, example(2))
    assert [path for path, _ in seen] == paths[:1:-1]
    assert all(str(path) in message for path, message in seen)

    damage(paths[0], how)
    damage(paths[1], how)
    with pytest.raises(CheckpointError, match="no valid checkpoint") as caught:
        load_latest(tmp_path, lambda path, error: None)
    assert all(path.name in str(caught.value) for path in paths)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("how", ["empty", "truncated", "header"])
def test_damaged_files_do_not_crowd_out_valid_ones(tmp_path, how):
    for step in range(1, 6):
        save(tmp_path, example(step), step=step, keep=5)
    for path in list_checkpoints(tmp_path)[2:]:
        damage(path, how)
    save(tmp_path, example(6), step=6, keep=3)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    save(tmp_path, example(7), step=7, keep=3)
    assert steps(tmp_path) == [2, 3, 4, 5, 6, 7]
    save(tmp_path, example(8), step=8, keep=3)
    assert steps(tmp_path) == [6, 7, 8]


def test_checkpoints_of_a_newer_fastvae_are_neither_skipped_nor_removed(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, example(step), step=step)
    newer = tmp_path / "checkpoint-000000000004.safetensors"
    forge(newer, TENSORS, format_version="2")

    with pytest.raises(CheckpointError, match=r"was written by a newer fastvae.*upgrade"):
        load_latest(tmp_path, fail_on_damage)
    for step in (5, 6):
        save(tmp_path, example(step), step=step, keep=1)
    assert steps(tmp_path) == [4, 6]


def test_prune_never_takes_the_file_just_saved(tmp_path):
    for step in (100, 200, 300):
        save(tmp_path, example(step), step=step)
    damage(tmp_path / "checkpoint-000000000300.safetensors", "tensor")
    damage(tmp_path / "checkpoint-000000000200.safetensors", "tensor")
    path = save(tmp_path, example(150), step=150, keep=1)
    assert steps(tmp_path) == [150, 200, 300]
    assert load_latest(tmp_path, lambda path, error: None)[0] == path


def test_missing_and_empty_folders_have_their_own_messages(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []
    with pytest.raises(CheckpointError, match="none does not exist; "):
        load_latest(tmp_path / "none", fail_on_damage)
    with pytest.raises(CheckpointError, match="holds no checkpoint; "):
        load_latest(tmp_path, fail_on_damage)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot list"):
        load_latest(tmp_path / "file", fail_on_damage)


# Failing disks --------------------------------------------------------------------------------------------------------


def raising(error):
    def call(*_args, **_kwargs):
        raise error

    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free space in {folder} "),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; make {folder} writable "),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; check the disk and that {folder} "),
        (KeyboardInterrupt(), None),
    ],
)
def test_failed_write_loses_nothing(tmp_path, monkeypatch, call, error, match):
    for step in (1, 2, 3):
        save(tmp_path, example(step), step=step)
    before = {path: path.read_bytes() for path in list_checkpoints(tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, call, raising(error))
        with pytest.raises(KeyboardInterrupt if match is None else CheckpointError) as caught:
            save(tmp_path, example(4), step=4, keep=1)
    if match is not None:
        assert match.format(folder=tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == [path.name for path in before]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_write_past_the_size_limit(tmp_path):
    save(tmp_path, example(1), step=1)
    large = Checkpoint({"w": np.ones(1 << 18, np.float32)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large; free space in"):
            save(tmp_path, large, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["checkpoint-000000000001.safetensors"]
    assert_same(load_latest(tmp_path, fail_on_damage)[1], example(1))


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="File exists"):
        save(tmp_path / "file" / "run", example(), step=1)
    with pytest.raises(CheckpointError, match="File exists"):
        save(tmp_path / "file", example(), step=1)
    with pytest.raises(CheckpointError, match="No such file"):
        write(tmp_path / "none" / "a.safetensors", example())
    monkeypatch.setattr(Path, "open", raising(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(CheckpointError, match=r"Permission denied; make .* writable"):
        save(tmp_path / "run", example(), step=1)


def test_failed_prune_keeps_the_new_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, example(1), step=1)
    monkeypatch.setattr(Path, "unlink", raising(PermissionError(errno.EPERM, "Operation not permitted")))
    with pytest.raises(CheckpointError, match="step 2 is saved, but"):
        save(tmp_path, example(2), step=2, keep=1)
    assert_same(load_latest(tmp_path, fail_on_damage)[1], example(2))


def test_filesystem_without_folder_sync(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") or os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", files_only)
    save(tmp_path, example(), step=1)
    assert_same(load_latest(tmp_path, fail_on_damage)[1], example())


def test_stale_files_go_and_those_of_living_writers_stay(tmp_path):
    (tmp_path / ".fastvae-0123456789abcdef.tmp").write_bytes(b"left by a dead writer")
    handle, living = files.open_temporary(tmp_path)
    with handle:
        save(tmp_path, example(), step=1)
        assert names(tmp_path) == [living.name, "checkpoint-000000000001.safetensors"]
    save(tmp_path, example(), step=1)
    assert names(tmp_path) == ["checkpoint-000000000001.safetensors"]


def test_temporary_file_taken_for_stale_is_made_again(tmp_path, monkeypatch):
    flock, taken = files.fcntl.flock, []

    def unlink_the_first(handle, operation):
        flock(handle, operation)
        if not taken:
            taken.append(handle.name)
            os.unlink(handle.name)

    monkeypatch.setattr(files.fcntl, "flock", unlink_the_first)
    save(tmp_path, example(), step=1)
    assert len(taken) == 1
    assert names(tmp_path) == ["checkpoint-000000000001.safetensors"]


# Killed writers -------------------------------------------------------------------------------------------------------

WRITER = """
import os, signal, sys
import numpy as np
from fastvae.checkpoint import Checkpoint, save

folder, step, call, number = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def kill_at(original):
    def call(*args):
        global number
        number -= 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    return call

def save_next():
    global step
    step += 1
    save(folder, Checkpoint({"w": np.full(1 << 17, step, np.float32)}, {"step": step}), step=step, keep=2)
    print(step, flush=True)

save_next()
if call != "random":
    setattr(os, call, kill_at(getattr(os, call)))
while True:
    save_next()
"""
# In the order of a save: before the file is synced, renamed, the folder synced, the old one removed; then anywhere.
MOMENTS = [("fsync", 1), ("replace", 1), ("fsync", 2), ("unlink", 2), *[("random", 0)] * 8]


def test_killed_writer_leaves_a_valid_newest_checkpoint(tmp_path):
    rng = np.random.default_rng(SEED)
    folder = tmp_path / "run"
    folder.mkdir()
    step = 0
    for call, number in MOMENTS:
        command = [sys.executable, "-P", "-c", WRITER, str(folder), str(step), call, str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged = [writer.stdout.readline()]
            if call == "random":
                time.sleep(rng.uniform(0, 0.02))
                writer.kill()
            acknowledged += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        saved = max(int(line) for line in acknowledged if line.endswith("\n"))
        assert saved > step

        assert sum(name.endswith(".tmp") for name in names(folder)) <= 1
        path, comp = load_latest(folder, fail_on_damage)
        step = comp.metadata["step"]
        assert step in (saved, saved + 1)
        assert path.name == f"checkpoint-{step:012d}.safetensors"
        np.testing.assert_array_equal(comp.tensors["w"], np.full(1 << 17, step, np.float32))
        for older in list_checkpoints(folder):
            read(older)
    save(folder, example(step + 1), step=step + 1, keep=2)
    assert steps(folder) == [step, step + 1]
    assert len(names(folder)) == 2
