"""The five image formats of a run, recognised by their first bytes only."""

from dataclasses import dataclass

from PIL import WebPImagePlugin as WebPImagePlugin  # Pillow loads the other four by itself, this one only when named

from rollout.images.errors import ImageError


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """One accepted format: the extension of its assets, its media type and its name in Pillow."""

    extension: str
    media_type: str
    pillow_name: str


PNG = ImageFormat(".png", "image/png", "PNG")
JPEG = ImageFormat(".jpg", "image/jpeg", "JPEG")
WEBP = ImageFormat(".webp", "image/webp", "WEBP")
GIF = ImageFormat(".gif", "image/gif", "GIF")
BMP = ImageFormat(".bmp", "image/bmp", "BMP")

FORMATS = (PNG, JPEG, WEBP, GIF, BMP)
ACCEPTED_FORMATS_TEXT = "png, jpg, webp, gif and bmp are accepted"

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
)


def detect_format(data: bytes) -> ImageFormat:
    """The format of these bytes.

    Raises:
        ImageError: they are empty or begin like none of the accepted formats.
    """
    for signature, image_format in _SIGNATURES:
        if data.startswith(signature):
            return image_format
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    # Two letters are a weak signature; the reserved words of a bitmap's file header are zero.
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
