"""Images: every source, what is wrong with one said by name, orders and changes named by the seed."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dxdt.lab.data.batch_rng import Draws, Order
from dxdt.lab.data.images import Crop, Flip, ImageFolder, Pixels, Selection, Shift, grid_picture
from dxdt.lab.data.readers import open_images, read_idx, read_npz


def draws(rows: int = 8, step: int = 0, seed: int = 0) -> Draws:
    return Draws(seed, step, torch.arange(rows), rows)


def write_images(folder: Path, count: int = 4, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new(mode, size, 10 * k if mode == "L" else (10 * k, 0, 255)).save(folder / f"{k}.png")


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_folders_are_read_with_their_classes(tmp_path: Path):
    write_images(tmp_path / "cats")
    write_images(tmp_path / "dogs", 2)
    found = ImageFolder(tmp_path)
    assert found.classes == ("cats", "dogs")
    assert found.shape == (3, 5, 6)
    levels, labels = found.read(torch.tensor([1, 5]))
    assert levels.dtype == torch.uint8
    assert labels.tolist() == [0, 1]
    assert levels[0, :, 0, 0].tolist() == [10, 0, 255]
    assert len(open_images(str(tmp_path), "test", held_out=0.5)) == 3


def test_grey_folders_have_one_channel_and_parts(tmp_path: Path):
    write_images(tmp_path / "train", mode="L")
    write_images(tmp_path / "test", 1, mode="L")
    assert open_images(str(tmp_path)).shape == (1, 5, 6)
    assert open_images(str(tmp_path)).classes is None
    assert len(open_images(str(tmp_path), "test")) == 1


def test_a_bad_image_is_named(tmp_path: Path):
    write_images(tmp_path)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"3\.png is no whole image"):
        ImageFolder(tmp_path).read(torch.arange(4))
    write_images(tmp_path, 1, size=(9, 9))
    with pytest.raises(ValueError, match=r"1\.png is 6 x 5 pixels"):
        ImageFolder(tmp_path).read(torch.arange(3))


def test_a_folder_without_images_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no image"):
        ImageFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither digits"):
        open_images("didgits")


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_come_with_their_labels(tmp_path: Path, zipped: bool):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    end = ".gz" if zipped else ""
    for name, array in (("x-images-idx3-ubyte", images), ("x-labels-idx1-ubyte", np.array([1, 0], np.uint8))):
        raw = idx(array)
        (tmp_path / f"{name}{end}").write_bytes(gzip.compress(raw) if zipped else raw)
    found = open_images(str(tmp_path / f"x-images-idx3-ubyte{end}"), held_out=0.5)
    assert found.shape == (1, 3, 4)
    assert len(found) == 1
    levels, labels = found.read(torch.tensor([0]))
    assert labels.item() == 1 - int(levels[0, 0, 0, 0] > 0)


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08\x03\0", b"hello world", idx(np.zeros((2, 2, 2), np.uint8))[:-1]])
def test_a_broken_idx_file_is_named(tmp_path: Path, raw: bytes):
    path = tmp_path / "t-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="t-images"):
        read_idx(path)
    path = tmp_path / "t-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(raw)[:-3])
    with pytest.raises(ValueError, match="no whole gzip"):
        read_idx(path)


def test_npz_files_have_images_under_several_names(tmp_path: Path):
    path = tmp_path / "a.npz"
    for name, array in (
        ("images", np.zeros((4, 5, 6, 3), np.uint8)),
        ("arr_0", np.zeros((4, 3, 5, 6))),
        ("faces", np.zeros((4, 3, 5, 6), np.int64)),
    ):
        np.savez(path, **{name: array}, labels=np.array([0, 1, 2, 1]))
        found = read_npz(path)
        assert found.shape == (3, 5, 6)
        assert found.classes == ("0", "1", "2")
    np.savez(path, a=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no entry that is images"):
        read_npz(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        read_npz(path)
    np.savez(path, images=np.array([{"a": 1}]))
    with pytest.raises(ValueError, match="Python objects"):
        read_npz(path)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((2, 4, 4), 256), "0 to 255"),
        (torch.full((2, 4, 4), -1), "lie outside"),
        (torch.full((2, 4, 4), 0.5), "not whole numbers"),
        (torch.zeros(2, 5, 4, 4), "holds no images"),
        (torch.zeros(4, 4), "holds no images"),
        (torch.zeros(0, 1, 4, 4), "holds no image"),
    ],
)
def test_pixels_outside_the_levels_are_refused(images: torch.Tensor, words: str):
    with pytest.raises(ValueError, match=words):
        Pixels("x", images)


def test_labels_must_match():
    with pytest.raises(ValueError, match="one whole number"):
        Pixels("x", torch.zeros(2, 4, 4), torch.zeros(3))


def test_digits_are_divided_without_overlap():
    train, test = open_images("digits", "train"), open_images("digits", "test")
    assert (len(train), len(test), train.levels, train.classes) == (1617, 180, 17, tuple("0123456789"))
    assert isinstance(train, Selection)
    assert not {*train.index.tolist()} & {*test.index.tolist()}
    with pytest.raises(ValueError, match="one part empty"):
        open_images("digits", held_out=0.0)


def test_the_layouts_of_the_data_folder(data: Path):
    for source, shape, count in (("mnist", (1, 28, 28), 60_000), ("cifar10", (3, 32, 32), 10_000)):
        found = open_images(source)
        assert (found.shape, len(found), len(found.classes)) == (shape, count, 10)
    assert open_images("olivetti").shape == (1, 64, 64)


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"dxdt\[data\]"):
        open_images("hf:mnist")


@given(st.integers(1, 50), st.integers(0, 10**6), st.integers(0, 2**40), st.integers(1, 64))
def test_every_epoch_shows_every_image_once(count: int, seed: int, epoch: int, batch: int):
    order = Order(count, seed)
    first = epoch * count
    assert order.at(torch.arange(first, first + count)).sort().values.tolist() == list(range(count))
    whole = order.rows(Draws(seed, 3, torch.arange(batch), batch))
    parts = [order.rows(Draws(seed, 3, rows, batch)) for rows in torch.arange(batch).split(7)]
    assert torch.equal(torch.cat(parts), whole)


def test_draws_do_not_depend_on_who_asks():
    whole = draws(12, step=5, seed=3)
    for kind in (lambda d: d.normal("a", (2, 3)), lambda d: d.uniform("a", 4), lambda d: d.even("a")):
        assert torch.equal(torch.cat([kind(part) for part in whole.split(4)]), kind(whole))
    assert not torch.equal(whole.normal("a", (5,)), whole.normal("b", (5,)))
    assert not torch.equal(whole.normal("a", (5,)), draws(12, step=6, seed=3).normal("a", (5,)))
    even = draws(64).even("t")
    assert torch.equal((even * 64).floor().sort().values, torch.arange(64.0).double())


def test_mirroring_mirrors_some():
    images = torch.arange(2 * 8 * 3 * 3).reshape(8, 2, 3, 3)
    found = Flip(0.5)(images, draws())
    same = (found == images).flatten(1).all(1)
    mirrored = (found == images.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 0 < same.sum() < 8
    assert torch.equal(Flip(1.0)(images, draws()), images.flip(-1))
    assert torch.equal(Flip(0.5)(images, draws()), found)


def test_moving_moves_whole_images():
    images = torch.zeros(64, 1, 7, 7, dtype=torch.uint8)
    images[:, :, 3, 3] = 9
    found = Shift(2)(images, draws(64))
    assert found.dtype == torch.uint8
    assert torch.equal(found.flatten(1).sum(1), torch.full((64,), 9))
    place = found.flatten(1).argmax(1)
    offsets = {(p // 7 - 3, p % 7 - 3) for p in place.tolist()}
    assert {o for pair in offsets for o in pair} == {-2, -1, 0, 1, 2}


def test_windows_lie_inside():
    images = torch.arange(5 * 6).reshape(1, 1, 5, 6).expand(16, 1, 5, 6)
    found = Crop(3, 4)(images, draws(16))
    assert found.shape == (16, 1, 3, 4)
    corner = found[:, 0, 0, 0]
    assert torch.equal(found[:, 0, 2, 3] - corner, torch.full((16,), 15))
    assert len(corner.unique()) > 3
    with pytest.raises(ValueError, match="hold no window"):
        Crop(9, 9)(images, draws(16))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_each_image(channels: int):
    images = torch.linspace(0, 1, 7)[:, None, None, None].expand(7, channels, 4, 5)
    picture = np.asarray(grid_picture(images, 3, pad=1))
    scale = picture.shape[1] // 19
    assert picture.shape == (16 * scale, 19 * scale, 3)
    assert (picture[2 * scale, 2 * scale] == 0).all()
    assert (picture[11 * scale, 2 * scale] == 255).all()
