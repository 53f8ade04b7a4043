"""Plain images: originals that are sent unchanged, re-encoded images and their notes, and errors."""

from __future__ import annotations

import base64
import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib

import pytest
from PIL import Image, ImageOps, PngImagePlugin

from pedcxr_client import EncodedImage, InputError
from pedcxr_client.films.files import MAX_BYTES
from pedcxr_client.films.film import encode, encode_png, load, prepare

SECRET = "Popescu^Ana"


def grey(size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.linear_gradient("L").resize(size)


def file_bytes(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Return a PNG with a chunk inserted after IHDR."""
    return png[:33] + chunk(kind, data) + png[33:]


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def decode(encoded: EncodedImage) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(encoded.base64)))
    image.load()
    return image


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = SECRET
    return tags


RGB = Image.merge("RGB", [grey(), ImageOps.invert(grey()), grey()])


@pytest.mark.parametrize(
    "data",
    [
        file_bytes(grey()),
        file_bytes(RGB),
        file_bytes(grey(), dpi=(150, 150)),
        file_bytes(grey(), "JPEG", quality=95),
        file_bytes(grey(), "JPEG", progressive=True),
        file_bytes(RGB, "JPEG", quality=90, restart_marker_rows=1),
    ],
    ids=["png-l", "png-rgb", "png-dpi", "jpeg-l", "jpeg-progressive", "jpeg-rgb-restarts"],
)
def test_original_without_metadata_is_sent_unchanged(data):
    encoded = prepare(data)
    assert base64.b64decode(encoded.base64) == data
    assert encoded.how == ("original bytes",)
    assert encoded.mime == ("image/png" if data.startswith(b"\x89PNG") else "image/jpeg")
    assert (encoded.width, encoded.height) == (64, 48)
    assert encoded.data_url == f"data:{encoded.mime};base64,{base64.b64encode(data).decode()}"


def _png_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", SECRET)
    return file_bytes(grey(), pnginfo=info)


def _adobe_trailing() -> bytes:
    return file_bytes(grey(), "JPEG") + SECRET.encode()


@pytest.mark.parametrize(
    "data",
    [
        _png_text(),
        with_chunk(file_bytes(grey()), b"zTXt", b"Patient\x00\x00" + zlib.compress(SECRET.encode())),
        with_chunk(file_bytes(grey()), b"iTXt", b"Patient\x00\x00\x00\x00\x00" + SECRET.encode()),
        with_chunk(file_bytes(grey()), b"tIME", struct.pack(">HBBBBB", 2014, 3, 9, 1, 2, 3)),
        with_chunk(file_bytes(grey()), b"prVt", SECRET.encode()),
        file_bytes(grey(), exif=exif(1)),
        file_bytes(grey(), icc_profile=SECRET.encode()),
        file_bytes(grey()) + SECRET.encode(),
        file_bytes(grey(), "JPEG", exif=exif(1), quality=95),
        file_bytes(grey(), "JPEG", comment=SECRET, quality=95),
        file_bytes(grey(), "JPEG", icc_profile=SECRET.encode(), quality=95),
        with_segment(file_bytes(grey(), "JPEG"), 0xED, SECRET.encode()),
        with_segment(file_bytes(grey(), "JPEG"), 0xEE, b"Adobe" + SECRET.encode()),
        with_segment(file_bytes(grey(), "JPEG"), 0xE0, b"JFXX\x00\x10" + SECRET.encode()),
        file_bytes(grey(), "JPEG") + SECRET.encode(),
        file_bytes(grey(), "TIFF", description=SECRET),
        file_bytes(grey(), "BMP"),
        file_bytes(grey(), "GIF", comment=SECRET.encode()),
        file_bytes(grey().convert("RGB"), "WEBP", lossless=True, exif=exif(1)),
    ],
)
def test_metadata_is_removed(data):
    encoded = prepare(data)
    png = base64.b64decode(encoded.base64)
    assert encoded.how[0].startswith("re-encoded")
    assert SECRET.encode() not in png
    image = decode(encoded)
    assert (image.format, image.mode, image.info) == ("PNG", "L", {})
    assert {png[at + 4 : at + 8] for at in _chunks(png)} == {b"IHDR", b"IDAT", b"IEND"}
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").convert("L").tobytes()


def _chunks(png: bytes) -> list[int]:
    offsets, at = [], 8
    while at < len(png):
        offsets.append(at)
        at += 12 + int.from_bytes(png[at : at + 4])
    return offsets


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_exif_rotation_is_applied(orientation, form):
    picture = Image.new("L", (40, 24))
    picture.paste(255, (0, 0, 20, 12))  # a bright corner
    data = file_bytes(picture, form, exif=exif(orientation))
    encoded = prepare(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(encoded).tobytes() == upright.tobytes()
    assert ("rotated upright by EXIF orientation" in encoded.how) == (orientation != 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "1", "CMYK", "YCbCr", "HSV"])
def test_every_8_bit_mode_becomes_grey(mode):
    image = grey().convert(mode) if mode in ("1", "P", "LA") else grey().convert("RGB").convert(mode)
    encoded = prepare(image)
    assert decode(encoded).mode == "L"
    assert f"{mode} converted to grey" in encoded.how
    if mode in ("RGBA", "LA", "P", "RGB"):
        assert decode(encoded).tobytes() == grey().tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_removed_and_transparency_raises(mode):
    image = grey().convert(mode)
    encoded = prepare(file_bytes(image))
    assert "opaque alpha channel removed" in encoded.how
    assert decode(encoded).tobytes() == grey().tobytes()
    image.putpixel((3, 3), (*image.getpixel((3, 3))[:-1], 254))
    with pytest.raises(InputError, match="transparent"):
        prepare(file_bytes(image))
    with pytest.raises(InputError, match="transparent"):
        prepare(image)


def test_colour_key_transparency_raises():
    with pytest.raises(InputError, match="transparent"):
        prepare(file_bytes(grey(), transparency=grey().getpixel((0, 0))))
    with pytest.raises(InputError, match="transparent"):
        prepare(file_bytes(grey().convert("P"), transparency=grey().getpixel((0, 0))))


def test_low_bit_depths_are_scaled_to_the_full_range():
    encoded = prepare(raw_png(8, 1, 1, 0, b"\x00\xaa"))
    assert sorted(set(decode(encoded).tobytes())) == [0, 255]
    encoded = prepare(raw_png(2, 1, 4, 0, b"\x00\x0f"))
    assert sorted(set(decode(encoded).tobytes())) == [0, 255]


@pytest.mark.parametrize(
    "deep",
    [
        file_bytes(Image.new("I", (8, 8), 40000), "TIFF"),
        file_bytes(Image.new("F", (8, 8), 0.5), "TIFF"),
        raw_png(1, 1, 16, 2, b"\x00" + b"\x12\x34" * 3),
        raw_png(1, 1, 16, 4, b"\x00" + b"\x12\x34" * 2),
        raw_png(1, 1, 16, 6, b"\x00" + b"\x12\x34" * 4),
        Image.new("I", (8, 8), 40000),
        Image.new("F", (8, 8), 0.5),
    ],
    ids=["tiff-i", "tiff-f", "png-rgb", "png-la", "png-rgba", "pillow-i", "pillow-f"],
)
def test_more_than_8_bits_raises(deep):
    with pytest.raises(InputError, match=r"more than 8 bits.*export it as 8-bit PNG"):
        prepare(deep)


def deep(image: Image.Image) -> Image.Image:
    """Return 16-bit grey between 1000 and 1000 + 255 * 16."""
    return Image.frombytes("I;16", image.size, b"".join(struct.pack("<H", 1000 + 16 * v) for v in image.tobytes()))


@pytest.mark.parametrize("form", ["PNG", "TIFF", None])
def test_16_bit_grey_is_stretched_by_percentiles(form):
    numpy = pytest.importorskip("numpy")
    film = deep(grey((256, 256)))
    encoded = prepare(film if form is None else file_bytes(film, form))
    low, high = numpy.percentile(numpy.asarray(film), [1, 99])
    expected = numpy.rint(numpy.clip((numpy.asarray(film) - low) / (high - low), 0, 1) * 255)
    assert numpy.array_equal(numpy.asarray(decode(encoded)), expected)
    assert decode(encoded).mode == "L"
    assert "16 bits per pixel; no window: percentiles 1-99" in " ".join(encoded.how)


@pytest.mark.parametrize("border", [0, 32767])
@pytest.mark.parametrize(
    "sides", [((150, 150), (150, 150)), ((0, 0), (200, 0)), ((100, 0), (0, 0)), ((0, 250), (0, 250))]
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "uint16", "int16"])
def test_constant_border_of_16_bit_grey_does_not_set_the_percentiles(border, sides, form):
    """A letterbox covers more than 1 % of the pixels, so that percentiles 1-99 would span from film to border."""
    np = pytest.importorskip("numpy")
    inner = np.add.outer(np.arange(256), np.arange(256)) + 1000
    film = np.pad(inner, sides, constant_values=border).astype("int16" if form == "int16" else "uint16")
    shown = np.asarray(decode(prepare(file_bytes(Image.fromarray(film), form) if form in ("PNG", "TIFF") else film)))
    low, high = np.percentile(inner, [1, 99])
    expected = np.rint(np.clip((inner - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(shown, np.pad(expected, sides, constant_values=255 if border else 0))


def test_borders_inside_borders_do_not_set_the_percentiles():
    np = pytest.importorskip("numpy")
    inner = (np.add.outer(np.arange(256), np.arange(256)) + 1000).astype("uint16")
    film = np.pad(np.pad(inner, 50, constant_values=0), 100, constant_values=65535)
    assert np.array_equal(np.asarray(decode(prepare(film)))[150:-150, 150:-150], np.asarray(decode(prepare(inner))))
    assert decode(prepare(np.full((300, 300), 7, "uint16"))).getextrema() == (0, 0)  # nothing but a border


def test_16_bit_tiff_with_white_0_is_inverted():
    """Pillow inverts 8 bits, but not 16 bits."""
    pytest.importorskip("numpy")
    film = deep(grey((256, 256)))
    straight = decode(prepare(file_bytes(film, "TIFF")))
    inverted = decode(prepare(file_bytes(film, "TIFF", tiffinfo={262: 0})))
    assert inverted.tobytes() == ImageOps.invert(straight).tobytes()


def test_16_bit_grey_without_numpy_names_the_install_command(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(file_bytes(deep(grey())))
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from pedcxr_client import InputError\nfrom pedcxr_client.films.film import load\n"
        "try: load(sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert 'needs numpy: pip install "pedcxr[dicom]"' in process.stdout


def test_arrays():
    np = pytest.importorskip("numpy")
    eight = np.asarray(grey((256, 256)))
    assert decode(prepare(eight)).tobytes() == grey((256, 256)).tobytes()
    assert decode(prepare(np.stack([eight] * 3, axis=-1))).tobytes() == grey((256, 256)).tobytes()
    assert prepare(eight[::2, ::2]).width == 128, "strides are supported"
    for kind in ("uint16", ">u2", "int16"):
        sixteen = (eight.astype(int) * 100 - (9000 if kind == "int16" else 0)).astype(kind)
        levels = np.asarray(decode(prepare(sixteen))).astype(int)
        assert abs(levels - (eight.astype(int) - 2) * 255 / 251).max() <= 3
        assert "from an array of" in prepare(sixteen).how[0]
    for bad in (eight.astype(float), eight > 3, eight.astype("int32"), eight.astype("complex"), eight[0], eight[:0]):
        with pytest.raises(InputError, match="array of"):
            prepare(bad)
    for shape in ((9, 9, 2), (9, 9, 4), (1, 9, 9, 3)):
        with pytest.raises(InputError, match="shape"):
            prepare(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="50 million"):
        prepare(np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (60000, 60000), (0, 0)))


def test_open_files(tmp_path):
    data = file_bytes(grey())
    assert prepare(io.BytesIO(data)).sha256 == prepare(data).sha256
    path = tmp_path / "film"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert prepare(file).sha256 == prepare(data).sha256
    with pytest.raises(InputError, match="binary mode"):
        prepare(io.StringIO("text"))
    with pytest.raises(InputError, match="is empty"):
        prepare(io.BytesIO())
    with pytest.raises(InputError, match="cannot be read"):
        prepare(file)  # closed


def test_path_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(file_bytes(grey()))
    assert load(os.fsdecode(path)).how == ("original bytes",)
    with pytest.raises(InputError) as error:
        load(os.fsdecode(path) + "x")
    str(error.value).encode()


def test_encoded_png_round_trips_through_pillow():
    """encode_png writes one filter type and one chunk; odd sizes are included."""
    rng = random.Random(3)
    for size in ((1, 1), (1, 7), (7, 1), (33, 57), (256, 256)):
        image = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
        reread = Image.open(io.BytesIO(encode_png(image)))
        assert (reread.mode, reread.size, reread.tobytes()) == ("L", size, image.tobytes())


def test_several_frames_raise():
    second = ImageOps.invert(grey())
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        data = file_bytes(grey(), form, save_all=True, append_images=[second])
        with pytest.raises(InputError, match="several frames"):
            prepare(data)


def phone_jpeg(image: Image.Image, **options: object) -> bytes:
    """Return a JPEG with a second, smaller picture, as phones write it."""
    second = ImageOps.invert(image).resize((32, 24))
    return file_bytes(image, "MPO", save_all=True, append_images=[second], **options)


def test_first_picture_of_a_phone_jpeg_is_sent_without_the_second():
    encoded = prepare(phone_jpeg(grey(), quality=95))
    alone = prepare(file_bytes(grey(), "JPEG", quality=95))
    assert encoded.how[1] == "first of 2 pictures of a phone's JPEG (MPO)"
    assert (encoded.mime, decode(encoded).info) == ("image/png", {})
    assert decode(encoded).tobytes() == decode(alone).convert("L").tobytes()
    turned = prepare(phone_jpeg(grey(), exif=exif(6)))
    assert (turned.width, turned.height) == (48, 64)
    assert turned.how[1:] == ("first of 2 pictures of a phone's JPEG (MPO)", "rotated upright by EXIF orientation")


def test_phone_jpeg_as_a_pillow_image_is_left_at_its_picture():
    image = Image.open(io.BytesIO(phone_jpeg(grey())))
    assert decode(prepare(image)).size == (64, 48)
    image.seek(1)
    with pytest.raises(InputError, match="several frames"):
        prepare(image)
    assert image.tell() == 1


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "TGA", "PPM"])
def test_format_that_is_not_accepted_raises(form):
    with pytest.raises(InputError, match="is not an image that can be read"):
        prepare(file_bytes(grey(), form))


@pytest.mark.parametrize("side", [8_000, 11_000, 30_000, 60_000])
@pytest.mark.parametrize("form", ["png", "bmp"])
def test_huge_header_raises_before_decoding(side, form):
    if form == "png":
        data = raw_png(side, side, 8, 0, b"\0")
    else:
        data = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    start = time.process_time()  # of this process alone: others may keep it waiting
    with pytest.raises(InputError, match="50 million pixels"):
        prepare(data)
    assert time.process_time() - start < 1, "a decoder of 64 million pixels or more takes longer"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "not an image that can be read"),
        (b"%PDF-1.7\n", "not an image that can be read"),
        (b"PK\x03\x04" + b"\0" * 200, "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 200, "not an image that can be read"),
        (file_bytes(grey())[:60], "damaged or cut short"),
        (file_bytes(Image.effect_noise((256, 256), 80))[:-4000], "damaged or cut short"),
        (file_bytes(Image.effect_noise((256, 256), 80), "JPEG")[:-4000], "damaged or cut short"),
        (file_bytes(grey(), "TIFF")[:-900], "damaged or cut short"),
        (raw_png(0, 0, 8, 0, b""), "not an image|damaged"),
    ],
)
def test_invalid_image_raises(data, message):
    with pytest.raises(InputError, match=message):
        prepare(data)


def test_unreadable_path_raises(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name, message in {
        "missing.png": "No such file",
        "link.png": "No such file",
        "": "is a folder",
        "pipe.png": "not a regular file",
        "empty.png": "is empty",
        "huge.png": "larger than 100 MiB",
        "a\0b.png": "cannot be opened",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            prepare(os.path.join(tmp_path, name))
        assert str(error.value).startswith("the film: "), "services log messages, and a path may name a person"


@pytest.fixture
def unprivileged_user():
    """Run as an unprivileged user, since file modes do not apply to root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_file_without_permission_raises(tmp_path, request):
    path = tmp_path / "film.png"
    path.write_bytes(file_bytes(grey()))
    path.chmod(0)
    request.getfixturevalue("unprivileged_user")
    with pytest.raises(InputError, match="Permission denied"):
        prepare(path)


def test_out_of_memory_raises_input_error(tmp_path):
    """Load 49 million pixels in a process with memory for a quarter of them."""
    rows = zlib.compressobj(1)
    body = b"".join([rows.compress(bytes(7001)) for _ in range(7000)]) + rows.flush()
    header = struct.pack(">IIBBBBB", 7000, 7000, 8, 0, 0, 0, 0)
    path = tmp_path / "film.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    code = (
        "import re, resource, sys\n"
        "from PIL import Image, PngImagePlugin\n"
        "from pedcxr_client import InputError\nfrom pedcxr_client.films.film import load\n"
        "now = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + (12 << 20),) * 2)\n"
        "try: load(sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "not enough memory" in process.stdout


def test_unsupported_type_raises():
    with pytest.raises(InputError, match="list is not a path"):
        prepare([1, 2, 3])  # type: ignore[arg-type]


def test_extension_is_ignored(tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(file_bytes(grey()))
    assert load(path).how == ("original bytes",)


def test_reprs_show_no_content():
    film = load(file_bytes(grey()))
    for value in (film, encode(film)):
        assert len(repr(value)) < 60
        assert "64x48" in repr(value)


def test_damaged_bytes_raise_only_input_error():
    """Fuzz image files with a fixed seed: no exception except InputError is raised."""
    rng = random.Random(7)
    noise = Image.effect_noise((48, 48), 90)
    originals = [
        file_bytes(noise),
        file_bytes(noise, "JPEG"),
        file_bytes(noise, "TIFF"),
        file_bytes(noise, "BMP"),
        file_bytes(noise, "GIF"),
    ]
    errors = 0
    for _ in range(400):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            prepare(bytes(data[: rng.choice([len(data), rng.randrange(1, len(data))])]))
        except InputError:
            errors += 1
    assert 50 < errors < 400


def test_real_films_keep_their_grey_values(films):
    for path in sorted(films.glob("*_png/*.png")):
        encoded = prepare(path)
        assert decode(encoded).tobytes() == Image.open(path).convert("RGB").convert("L").tobytes(), path.name
    rgba = prepare(films / "pediatric_png/nih_00001054_002.png")
    assert "opaque alpha channel removed" in rgba.how
