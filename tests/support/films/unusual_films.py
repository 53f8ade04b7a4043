"""DICOM films of one picture in forms that devices and archives write, and damaged films, each with its outcome."""

from __future__ import annotations

import base64
import io
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.support.films.dicom_maker import dataset, film, to_bytes

PIXELS = np.repeat((np.arange(256) * 16).astype(np.uint16)[:, None], 256, axis=1)
"""The stored values of every film of this module: 12 bits, black at the top."""

OVERLAY = np.where(np.arange(256)[:, None] < 8, 0x8000, 0).astype(np.uint16) | PIXELS
"""The same, with an embedded overlay of 8 rows in bit 15."""

WINDOW: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
DELIMITER = b"\xfe\xff\xdd\xe0"
# Streams of PIXELS and of OVERLAY with 16 bits per sample, encoded by OpenJPH 0.26. No dependency encodes HTJ2K.
_HTJ2K = (
    (
        b"c-s5#|38pH(}973ff0&f0FBSc&&c>cfPsU73CQ94AH=`|WHB<ZvamQX{*Pf0R_K_31Ufo8{--dAGcfuWq~>`AcqoLW7AY9$8JX!B>;0d"
        b"=zy&gqDUyNl|KtM<`b!=D*Z;2u;(VMq{=ff!`~UX;>i^3FX-r)IFCK{Z1LgIBd`v9Az4yO-zBHKjzkTd~dhX-@#oIpqx4ix1e@yNl=Ii"
        b"UP#Y1r{2g5NZ2E(n43mCWqJd_-pSU81LJpTQi&`|x&iSf-Y2B7#71|?S)6!7nVMZz)m{mBw?e|r+DzZo{Z*$gt^0>cCW4i=_H2L)`@zy"
        b"I~O8Cux)Cke>??Qp36rpWmI1`7AhW+tE^cOBdg8}N{VfCd9$(E%s+{fQiMe_Ir)zX>$Hzd-``%@&qr42)Gv7?{2~+`Ee(KrB11zQ1PP-"
        b"%r)wPrkoTfca(%GcC;ge-i+b31zM"
    ),
    (
        b"c-s5#|38pH(}973ff0&f0FBSc&&c>cfPsU73CQ94AH=`|WHB<ZvamQX{*Pf0R_K_31Ufo8{--dAGcfuWq~>`AcqoLW7AY9$8JX!B>;0d"
        b"=zy&gq&4PjP|KtM<`b!zUo5ZVrH`(X)E)zR;`|v-#|G|HM`Gf!E?VJAF*RlMs|HJX`e~sXu|CP!={ulp`{~!L}{(t<x`v3Ys8WYQJ@BJ"
        b"^IFAb*sZy)=gp8NQJ@wSiuEpPw$ACvos;p^+K(?OUaQ<K5T%Ry{2;{pcmT@3jv-48^+68tc&ie=AIIYu<DhmvCx3#X8Z$3IyX1-ZWy8m"
        b"e^|IhdoI7%prAX}`@--y;9f{f8jQl#;6p3i!wVpNCmO?r%>*^*6)D_cxBQZ#uxhS75q$4sXVD<|xYp7dA5iEqwdnU-N&#|BeHPJvdmH8"
        b"XXh_uu%;4|D%}%<o<RzRDV-se1D^beSZ=P7w9Jj27w0CB?`Qm;9$Hq0f}>A6ARFb-#PyE|KtD9K48#&fFb+hM2R+15CbsWf$%hg6Z`%|"
        b"4!OTA3f12PfN6*X?wj3F*S4<BMj_TbQQ*pSVpukXL~3~u=LQDeZ(_f>tCoFr0Or^D|M~yR|5yL7{a;5f&i`~!h`>rVrXcqHnI3X~mjeA"
        b"drSbhO61Z>nunc`4+`Ee(fNc6-bX<LZ&Ah*#s=uFnf1d#J%@$@_nEC%E0IH;bMg"
    ),
)


def encoded(syntax: str, pixels: np.ndarray = PIXELS, *, bits: int = 12, **elements: Any) -> FileDataset:
    """Return a film whose stream has ``bits`` bits per sample, and BitsStored 12."""
    ds = dataset(pixels, bits=bits, **WINDOW | elements)
    if syntax in (JPEG2000Lossless, RLELossless):
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax in (HTJ2K, HTJ2KLossless):
        _replace(ds, syntax, [zlib.decompress(base64.b85decode(_HTJ2K[int(pixels is OVERLAY)]))])
    else:
        _replace(ds, syntax, [_stream(_encoded_by_gdcm(ds, syntax))])
    ds.BitsStored, ds.HighBit = 12, 11
    return ds


def _replace(ds: FileDataset, syntax: str, frames: list[bytes], **options: Any) -> None:
    ds.PixelData = encapsulate(frames, **options)
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax


def _encoded_by_gdcm(ds: FileDataset, syntax: str) -> FileDataset:
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.dcm"), Path(folder, "after.dcm")
        before.write_bytes(to_bytes(ds))
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(before))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(after))
        assert writer.Write()
        return pydicom.dcmread(io.BytesIO(after.read_bytes()))


def _stream(ds: FileDataset) -> bytes:
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    return frame if ds.file_meta.TransferSyntaxUID == RLELossless else frame.rstrip(b"\0")  # without its pad byte


def with_frames(syntax: str, change: Callable[[bytes], list[bytes]], *, elements: Any = (), **options: Any) -> bytes:
    """Return a film whose frames are made of the stream of one film."""
    ds = encoded(syntax, **dict(elements))
    _replace(ds, syntax, change(_stream(ds)), **options)
    return to_bytes(ds)


def without_delimiter(data: bytes, keep: int = 0) -> bytes:
    return data[: data.rindex(DELIMITER) + keep]


def _fragments(size: int) -> Callable[[bytes], list[bytes]]:
    return lambda stream: [stream[at : at + size] for at in range(0, len(stream), size)]


def _joined(data: bytes, *more: bytes) -> bytes:
    return data + b"".join(more)


@cache
def accepted() -> dict[str, tuple[bytes, str]]:
    """Films that show PIXELS, and a part of the note on what is unusual, or ``""``."""
    ignored, repaired, trailing = "bits outside the 12 of BitsStored", "missing sequence delimiter", "bytes after the"
    j2k, rle, jls = (to_bytes(encoded(one)) for one in (JPEG2000Lossless, RLELossless, JPEGLSLossless))
    plain = film(PIXELS, **WINDOW)
    return {
        "native": (plain, ""),
        "overlay": (film(OVERLAY, **WINDOW), ""),
        "overlay in RLE": (to_bytes(encoded(RLELossless, OVERLAY, bits=16)), ""),
        "overlay in JPEG 2000": (to_bytes(encoded(JPEG2000Lossless, OVERLAY, bits=16)), ignored),
        "overlay in JPEG-LS": (to_bytes(encoded(JPEGLSLossless, OVERLAY, bits=16)), ignored),
        "overlay in JPEG lossless": (to_bytes(encoded(JPEGLosslessSV1, OVERLAY, bits=16)), ""),  # GDCM removes it
        "overlay in HTJ2K": (to_bytes(encoded(HTJ2KLossless, OVERLAY, bits=16)), ignored),
        "HTJ2K": (to_bytes(encoded(HTJ2K)), ""),
        "16 bits of JPEG 2000 under 12": (to_bytes(encoded(JPEG2000Lossless, bits=16)), ""),
        "signed overlay in JPEG 2000": (
            to_bytes(encoded(JPEG2000Lossless, (OVERLAY ^ 0x800).astype(np.int16), bits=16, WindowCenter=0)),
            ignored,
        ),
        "signed values in unsigned JPEG 2000": (
            to_bytes(_changed(encoded(JPEG2000Lossless, PIXELS ^ 0x800, WindowCenter=0), PixelRepresentation=1)), ""
        ),
        **{
            f"{len(tail)} bytes after {name}": (with_frames(syntax, lambda s, tail=tail: [_joined(s, tail)]), trailing)
            for name, syntax in (("JPEG 2000", JPEG2000Lossless), ("JPEG-LS", JPEGLSLossless),
                                 ("JPEG lossless", JPEGLosslessSV1), ("HTJ2K", HTJ2K))
            for tail in (b"\r\n", b"\n", b"exported by a device " * 40)
        },
        "zeros after JPEG 2000": (with_frames(JPEG2000Lossless, lambda stream: [stream + bytes(100)]), ""),
        "JPEG 2000 without delimiter": (without_delimiter(j2k), repaired),
        "JPEG-LS without delimiter": (without_delimiter(jls), repaired),
        "RLE without delimiter": (without_delimiter(rle), repaired),
        "half of the delimiter": (without_delimiter(j2k, 2), repaired),
        "delimiter without length": (without_delimiter(j2k, 4), ""),
        "JPEG 2000 in fragments": (with_frames(JPEG2000Lossless, _fragments(300), has_bot=False), ""),
        "JPEG-LS in fragments": (with_frames(JPEGLSLossless, _fragments(300), has_bot=False), ""),
        "RLE in fragments": (with_frames(RLELossless, _fragments(3000), has_bot=False), ""),
        "an offset for each fragment": (with_frames(JPEG2000Lossless, _fragments(200), has_bot=True), ""),
        "NumberOfFrames 0": (film(PIXELS, NumberOfFrames=0, **WINDOW), ""),
        "NumberOfFrames 1": (film(PIXELS, NumberOfFrames=1, **WINDOW), ""),
        "implicit VR in the meta only": (plain.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"), ""),
        "lower-case photometric": (film(PIXELS, PhotometricInterpretation="monochrome2", **WINDOW), ""),
        "lower-case MONOCHROME1": (film(4095 - PIXELS, PhotometricInterpretation="Monochrome1", **WINDOW), "inverted"),
    }  # fmt: skip


def _changed(ds: FileDataset, **elements: Any) -> FileDataset:
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


@cache
def refused() -> dict[str, tuple[bytes, str]]:
    """Films that cannot be shown, and a pattern of the message."""
    j2k, rle = (to_bytes(encoded(one)) for one in (JPEG2000Lossless, RLELossless))
    jpeg = io.BytesIO()
    Image.fromarray((PIXELS >> 4).astype(np.uint8)).save(jpeg, "JPEG")
    eight_bits = encoded(JPEG2000Lossless)
    _replace(eight_bits, JPEGBaseline8Bit, [jpeg.getvalue()])
    no_syntax = encoded(JPEG2000Lossless)
    no_syntax.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    cut, several = "cut short", r"more than the one frame that NumberOfFrames \(0028,0008\)"
    twice: Callable[[bytes], list[bytes]] = lambda stream: [stream, stream]  # noqa: E731
    return {
        **{
            f"{name} cut by {size} bytes": (with_frames(syntax, lambda stream, size=size: [stream[:-size]]), cut)
            for name, syntax in (("JPEG 2000", JPEG2000Lossless), ("JPEG-LS", JPEGLSLossless),
                                 ("JPEG lossless", JPEGLosslessSV1), ("HTJ2K", HTJ2K))
            for size in (1, 2, 100)
        },
        **{f"JPEG 2000 file cut by {n} bytes": (without_delimiter(j2k)[:-n], cut) for n in (1, 2, 9, 200)},
        **{f"RLE file cut by {n} bytes": (without_delimiter(rle)[:-n], cut) for n in (1, 2, 9, 200)},
        "cut at the offset table": (j2k[: j2k.index(b"\xe0\x7f\x10\x00") + 20], cut),
        "cut before the pixels": (j2k[: j2k.index(b"\xe0\x7f\x10\x00")], cut),
        "cut after the meta": (j2k[: j2k.index(b"\x08\x00\x16\x00")], cut),
        "3 native frames": (film(PIXELS, PixelData=PIXELS.tobytes() * 3, **WINDOW), several),
        "half a frame too much": (film(PIXELS[:200], PixelData=PIXELS.tobytes(), **WINDOW), several),
        **{
            f"2 frames of {name}": (with_frames(syntax, twice, has_bot=bot), several)
            for name, syntax, bot in (("JPEG 2000", JPEG2000Lossless, False), ("JPEG-LS", JPEGLSLossless, True),
                                      ("JPEG lossless", JPEGLosslessSV1, False), ("RLE", RLELossless, False),
                                      ("HTJ2K", HTJ2K, True))
        },
        "2 streams in a fragment": (with_frames(JPEG2000Lossless, lambda stream: [stream * 2]), several),
        "larger values in JPEG 2000": (
            to_bytes(_changed(encoded(JPEG2000Lossless, bits=16), BitsStored=10, HighBit=9)), "more bits than"
        ),
        "8-bit JPEG under 12 bits": (to_bytes(eight_bits), "damaged"),
        "compressed without saying so": (to_bytes(no_syntax), r"TransferSyntaxUID \(0002,0010\) is absent"),
        "no photometric": (film(PIXELS, PhotometricInterpretation=None), r"\(0028,0004\) is absent or empty"),
        "empty photometric": (film(PIXELS, PhotometricInterpretation=""), r"\(0028,0004\) is absent or empty"),
        "MONOCHROME": (film(PIXELS, PhotometricInterpretation="MONOCHROME"), r"\(0028,0004\) is not grey"),
    }  # fmt: skip
