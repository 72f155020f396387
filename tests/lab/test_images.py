"""Images: every source, what is wrong with one said by name, orders and changes named by the seed."""

import gzip
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dxdt.lab.data.batch_rng import Draws, Order
from dxdt.lab.data.image_folder import ImageFolder
from dxdt.lab.data.images import Crop, Flip, Pixels, Selection, Shift, grid_picture
from dxdt.lab.data.packed import read_npz
from dxdt.lab.data.readers import open_images, read_idx


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


def test_all_unusable_files_are_named_before_anything_is_read(tmp_path: Path):
    write_images(tmp_path, 6)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    (tmp_path / "4.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "5.jpg")
    with pytest.raises(ValueError) as told:
        ImageFolder(tmp_path)
    said = str(told.value)
    assert all(part in said for part in ("3 of 7 files", "3.png is no", "4.png is no", "5.jpg is 9 x 9", "--size 64"))
    for name in ("3.png", "4.png"):
        (tmp_path / name).unlink()
    assert ImageFolder(tmp_path, size=(4, 4)).read(torch.arange(5))[0].shape == (5, 3, 4, 4)


def test_a_picture_too_large_to_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_images(tmp_path, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"0\.png is no whole image.*decompression bomb"):
        ImageFolder(tmp_path)


def test_a_grey_file_that_comes_first_leaves_the_others_their_colours(tmp_path: Path):
    write_images(tmp_path, 3)
    Image.new("L", (6, 5), 77).save(tmp_path / "0.png")
    found = ImageFolder(tmp_path)
    assert found.shape == (3, 5, 6)
    levels, _ = found.read(torch.arange(3))
    assert levels[:, :, 0, 0].tolist() == [[77, 77, 77], [10, 0, 255], [20, 0, 255]]


def sixteen(level: int) -> Image.Image:
    return Image.fromarray(np.full((5, 6), level, np.uint16))


PICTURES = {
    "16 bits": (sixteen(40_000), ".png", [156]),
    "16 bits, dark": (sixteen(200), ".png", [1]),
    "16 bits, white": (sixteen(65_535), ".tif", [255]),
    "grey with alpha": (Image.new("LA", (6, 5), (40, 0)), ".png", [255]),
    "colour with alpha": (Image.new("RGBA", (6, 5), (200, 100, 0, 255)), ".png", [200, 100, 0]),
    "transparent": (Image.new("RGBA", (6, 5), (200, 100, 0, 0)), ".png", [255, 255, 255]),
    "two levels": (Image.new("1", (6, 5), 1), ".png", [255]),
    "palette": (Image.new("RGB", (6, 5), (0, 0, 255)).convert("P"), ".gif", [0, 0, 255]),
    "inks": (Image.new("CMYK", (6, 5), (0, 0, 0, 0)), ".jpg", [255, 255, 255]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_cameras_and_editors_write_becomes_eight_bits(tmp_path: Path, name: str):
    image, ending, levels = PICTURES[name]
    image.save(tmp_path / f"a{ending}")
    found = ImageFolder(tmp_path)
    assert found.shape == (len(levels), 5, 6)
    assert found.read(torch.tensor([0]))[0][0, :, 2, 2].tolist() == levels


def test_photographs_stand_upright_and_are_cut_to_size(tmp_path: Path):
    """A picture that is bright on its left; the camera says that this side is up."""
    array = np.zeros((20, 40, 3), np.uint8)
    array[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert ImageFolder(tmp_path).shape == (3, 40, 20)
    image = ImageFolder(tmp_path, size=(16, 16)).read(torch.tensor([0]))[0][0]
    assert image.shape == (3, 16, 16)
    assert image[:, :6].float().mean() > 250 and image[:, 10:].float().mean() < 5


def test_a_size_is_for_files_and_arrays_keep_theirs(tmp_path: Path):
    write_images(tmp_path / "a", 4)
    assert open_images(str(tmp_path / "a"), size=8, held_out=0.5).shape == (3, 8, 8)
    assert open_images("digits", size=8).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="digits has images of 8 x 8 pixels"):
        open_images("digits", size=64)


@pytest.mark.parametrize("kind", ["npz", "gz"])
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, kind: str):
    """A file of a few hundred kilobytes that holds 400 MB takes no such memory."""
    size = 400 << 20
    if kind == "npz":
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (400, 1024, 1024)}
            )
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    else:
        path = tmp_path / "a-images-idx3-ubyte.gz"
        with gzip.open(path, "wb") as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpacks from"):
        open_images(str(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 600 << 20 if kind == "gz" else most < 50 << 20


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
