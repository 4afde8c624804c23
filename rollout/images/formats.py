"""The five image formats that a run accepts. A format is recognised by the first bytes of the file."""

from dataclasses import dataclass
from io import BytesIO

from PIL import (  # Pillow loads these readers only if they are imported by name
    FliImagePlugin,
    GbrImagePlugin,
    Image,
    ImImagePlugin,
    ImtImagePlugin,
    IptcImagePlugin,
    PcdImagePlugin,
    SpiderImagePlugin,
    TgaImagePlugin,
    UnidentifiedImageError,
)

from rollout.images.errors import ImageError


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """One accepted image format.

    Attributes:
        extension: the extension of file names, such as `.png`.
        media_type: the media type, such as `image/png`.
        pillow_name: the name of the format in Pillow, such as `PNG`.
    """

    extension: str
    media_type: str
    pillow_name: str


PNG = ImageFormat(".png", "image/png", "PNG")
JPEG = ImageFormat(".jpg", "image/jpeg", "JPEG")
WEBP = ImageFormat(".webp", "image/webp", "WEBP")
GIF = ImageFormat(".gif", "image/gif", "GIF")
BMP = ImageFormat(".bmp", "image/bmp", "BMP")

# An engine tries Pillow's readers in alphabetical order. The following readers come before readers of accepted formats,
# and check little or nothing at the start of a file. So somebody can make a file that two readers accept.
_READERS_WITHOUT_SIGNATURE = tuple(
    reader.format
    for reader in (
        FliImagePlugin.FliImageFile,
        GbrImagePlugin.GbrImageFile,
        ImImagePlugin.ImImageFile,
        ImtImagePlugin.ImtImageFile,
        IptcImagePlugin.IptcImageFile,
        PcdImagePlugin.PcdImageFile,
        SpiderImagePlugin.SpiderImageFile,
        TgaImagePlugin.TgaImageFile,
    )
)
READERS_ASKED_BEFORE = {
    name: tuple(reader for reader in _READERS_WITHOUT_SIGNATURE if reader < name)
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
}

FORMATS = (PNG, JPEG, WEBP, GIF, BMP)
ACCEPTED_FORMATS_TEXT = "png, jpg, webp, gif and bmp are accepted"

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
)


def detect_format(data: bytes) -> ImageFormat:
    """Return the format of an encoded image.

    Raises:
        ImageError: the image is empty, does not have an accepted format, or is also an image of another format.
    """
    image_format = _detect_by_signature(data)
    try:
        other = Image.open(BytesIO(data), formats=READERS_ASKED_BEFORE[image_format.pillow_name]).format
    except UnidentifiedImageError:
        return image_format
    except Exception as error:  # noqa: BLE001 - a reader may raise any error, and would also do so in the engine
        other = f"broken ({type(error).__name__})"
    name = image_format.pillow_name
    raise ImageError(f"the {name} is also a {other} image, and an engine would read that one; save the {name} again")


def _detect_by_signature(data: bytes) -> ImageFormat:
    for signature, image_format in _SIGNATURES:
        if data.startswith(signature):
            return image_format
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    # Two letters are a weak signature. So check the reserved bytes of the header, too, which must be zero.
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return BMP
    if not data:
        raise ImageError("the image has no bytes")
    raise ImageError(f"the bytes are {_describe_other_format(data)}, not an accepted image; {ACCEPTED_FORMATS_TEXT}")


def _describe_other_format(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head:
        return "HTML"
    if head.startswith(b"<"):
        return "markup"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if data[4:8] == b"ftyp":
        return "AVIF, HEIF or video"
    if data.startswith(b"%PDF"):
        return "PDF"
    return f"something that begins with {data[:8].hex(' ')}"
