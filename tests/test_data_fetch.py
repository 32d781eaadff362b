import dataclasses
import errno
import gzip
import hashlib
import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from data_files import idx_bytes

from fastvae.data import fetch, load
from fastvae.data.registry import REGISTRY, content_sha256
from fastvae.errors import DataError

TRAIN, TEST = (file.name for file in REGISTRY["mnist"].files)
CONTENTS = {
    TRAIN: idx_bytes(np.arange(3 * 784, dtype=np.uint16).astype(np.uint8).reshape(3, 28, 28)),
    TEST: idx_bytes(np.ones((2, 28, 28), np.uint8)),
}


class Mirror:
    """A server on the loopback; `bodies` maps a path to what it serves, `short` to how much of it is really sent."""

    def __init__(self):
        self.bodies, self.short, self.asked = {}, {}, []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[1]
                mirror.asked.append(name)
                if name not in mirror.bodies:
                    self.send_error(404)
                    return
                body = mirror.bodies[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: mirror.short.get(name)])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/data"


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("FASTVAE_DATA_URL", raising=False)
    mirror = Mirror()
    mirror.bodies = {name: gzip.compress(content) for name, content in CONTENTS.items()}
    thread = threading.Thread(target=mirror.server.serve_forever, args=(0.01,))
    thread.start()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()
    thread.join()


@pytest.fixture
def mnist(monkeypatch, mirror):
    """Register small files under MNIST's names, whose only mirror is the loopback server."""
    files = tuple(
        dataclasses.replace(
            file,
            mirrors=(mirror.url + "/",),
            n_bytes=len(CONTENTS[file.name]),
            sha256=hashlib.sha256(CONTENTS[file.name]).hexdigest(),
        )
        for file in REGISTRY["mnist"].files
    )
    dataset = dataclasses.replace(REGISTRY["mnist"], files=files)
    monkeypatch.setitem(REGISTRY, "mnist", dataset)
    return dataset


def files_under(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetched_files_load(tmp_path, mirror, mnist):
    calls = []
    folder = fetch("mnist", data_dir=tmp_path, progress=lambda *call: calls.append(call))
    assert folder == tmp_path / "mnist"
    assert files_under(tmp_path) == sorted([TRAIN, TEST])
    size = len(mirror.bodies[TEST])
    assert calls[-1] == (TEST, size, size)
    assert (folder / TEST).stat().st_mode & 0o777 == 0o644
    split = load("mnist", data_dir=tmp_path)
    assert (split.train.n_rows, split.test.n_rows) == (3, 2)


def test_what_is_there_is_not_fetched_again(tmp_path, mirror, mnist):
    (tmp_path / TRAIN.removesuffix(".gz")).write_bytes(CONTENTS[TRAIN])
    fetch("mnist", data_dir=tmp_path)
    assert mirror.asked == [TEST]
    fetch("mnist", data_dir=tmp_path)
    assert mirror.asked == [TEST]


@pytest.mark.parametrize("repack", [lambda x: gzip.compress(x, 1, mtime=9), lambda x: x], ids=["gzip", "plain"])
def test_other_packing_of_the_same_content_is_good(tmp_path, mirror, mnist, repack):
    mirror.bodies = {name: repack(content) for name, content in CONTENTS.items()}
    fetch("mnist", data_dir=tmp_path)
    assert load("mnist", data_dir=tmp_path).train.n_rows == 3


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_base_url_replaces_the_mirrors(tmp_path, monkeypatch, mirror, mnist, how):
    files = tuple(dataclasses.replace(file, mirrors=("http://127.0.0.1:1/",)) for file in mnist.files)
    monkeypatch.setitem(REGISTRY, "mnist", dataclasses.replace(mnist, files=files))
    if how == "variable":
        monkeypatch.setenv("FASTVAE_DATA_URL", mirror.url)
    fetch("mnist", data_dir=tmp_path, base_url=mirror.url if how == "argument" else None)
    assert files_under(tmp_path) == sorted([TRAIN, TEST])


def test_next_mirror_is_tried(tmp_path, monkeypatch, mirror, mnist):
    files = tuple(dataclasses.replace(file, mirrors=("http://127.0.0.1:1/", *file.mirrors)) for file in mnist.files)
    monkeypatch.setitem(REGISTRY, "mnist", dataclasses.replace(mnist, files=files))
    fetch("mnist", data_dir=tmp_path)
    assert files_under(tmp_path) == sorted([TRAIN, TEST])


def spoil_hash(mirror):
    mirror.bodies[TEST] = gzip.compress(CONTENTS[TEST][:-1] + b"\7")


def spoil_presence(mirror):
    del mirror.bodies[TEST]


def spoil_end(mirror):
    mirror.short[TEST] = 30


def spoil_gzip(mirror):
    mirror.bodies[TEST] = mirror.bodies[TEST][:-4]


def spoil_size(mirror):
    mirror.bodies[TEST] = bytes(3 << 20)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_hash, "wrong SHA-256"),
        (spoil_presence, "404"),
        (spoil_end, r"connection ended after 30 of|IncompleteRead|more expected"),
        (spoil_gzip, "damaged"),
        (spoil_size, "more bytes than the published file"),
    ],
)
def test_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, mirror, mnist, spoil, words):
    spoil(mirror)
    with pytest.raises(DataError, match=words) as caught:
        fetch("mnist", data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"put {TRAIN} and {TEST} into {tmp_path / 'mnist'} by hand" in message
    assert files_under(tmp_path) == [TRAIN]  # the good one stays, and no part of the other
    # Once the mirror is mended the same call goes on from there.
    mirror.bodies[TEST] = gzip.compress(CONTENTS[TEST])
    mirror.short = {}
    fetch("mnist", data_dir=tmp_path)
    assert mirror.asked.count(TRAIN) == 1


def test_no_network(tmp_path, mirror, mnist):
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/.*refused.*by hand"):
        fetch("mnist", data_dir=tmp_path, base_url="http://127.0.0.1:1")
    assert files_under(tmp_path) == []


def test_interrupt_leaves_no_part(tmp_path, mirror, mnist):
    def interrupt(*call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", data_dir=tmp_path, progress=interrupt)
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("content", [b"\0\0\x08\3mine", gzip.compress(CONTENTS[TEST])[:-9]], ids=["other", "truncated"])
def test_a_file_in_the_way_is_never_overwritten(tmp_path, mirror, mnist, content):
    (tmp_path / TEST).write_bytes(content)
    with pytest.raises(DataError, match="move it away"):
        fetch("mnist", data_dir=tmp_path)
    assert (tmp_path / TEST).read_bytes() == content


def test_folder_that_cannot_be_written(tmp_path, mirror, mnist):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write.*--data-dir"):
        fetch("mnist", data_dir=tmp_path / "file")


def test_full_disk(tmp_path, monkeypatch, mirror, mnist):
    def no_space(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(DataError, match=r"cannot write.*No space left"):
        fetch("mnist", data_dir=tmp_path)
    assert files_under(tmp_path) == []


def test_filesystem_without_folder_sync(tmp_path, monkeypatch, mirror, mnist):
    fsync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", files_only)
    assert fetch("mnist", data_dir=tmp_path) == tmp_path / "mnist"


@pytest.mark.parametrize(("name", "words"), [("digits", "needs no download"), ("nope", "digits, mnist, freyface")])
def test_names_that_cannot_be_fetched(tmp_path, name, words):
    with pytest.raises(DataError, match=words):
        fetch(name, data_dir=tmp_path)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "freyface"])
def test_real_files_have_the_registered_digests(data_root, name):
    for file in REGISTRY[name].files:
        assert content_sha256(data_root / name / file.name) == file.sha256
