"""A reference is accepted only with bytes that have its hash."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from rollout_vllm.encoded_image import read_encoded_image  # type: ignore[import-not-found]
from rollout_vllm.errors import InvalidImageRef  # type: ignore[import-not-found]
from rollout_vllm.references import check_reference  # type: ignore[import-not-found]


def read(server: Any, picture: Any, data: str) -> Any:
    return read_encoded_image(check_reference(server.item(picture, data), server.config), server.config)


def test_a_file_and_its_data_uri_are_the_same_source(server: Any) -> None:
    picture = server.picture()
    assert read(server, picture, picture.ref()) == read(server, picture, picture.inline())
    assert read(server, picture, picture.ref()).sha256 == picture.sha256


def test_a_file_that_changed_is_refused(server: Any) -> None:
    picture, other = server.picture(color=1), server.picture(color=2)
    (server.directory / picture.name).write_bytes(other.data)
    with pytest.raises(InvalidImageRef, match=other.sha256) as refused:
        read(server, picture, picture.ref())
    assert refused.value.param == "features.kwargs_data.image[0]"


def test_a_file_of_another_image_is_refused(server: Any) -> None:
    picture, other = server.picture(color=1), server.picture(color=2)
    with pytest.raises(InvalidImageRef, match="the bytes of its image have the hash"):
        read(server, picture, picture.ref(raw_image_id=other.name))
    with pytest.raises(InvalidImageRef, match="the bytes of its image have the hash"):
        read(server, picture, picture.ref(raw_image_id=None, raw_uri=other.uri))


def read_as(server: Any, picture: Any, mm_hash: str) -> Any:
    item = replace(server.item(picture, picture.ref(mm_hash=mm_hash)), mm_hash=mm_hash)
    return read_encoded_image(check_reference(item, server.config), server.config)


@pytest.mark.parametrize("digits", [16, 32, 64])
def test_a_hash_may_be_any_beginning_of_the_sha256(server: Any, digits: int) -> None:
    picture = server.picture()
    assert read_as(server, picture, picture.sha256[:digits]).data == picture.data


def test_a_hash_longer_than_a_sha256_is_refused(server: Any) -> None:
    picture = server.picture()
    with pytest.raises(InvalidImageRef, match="the bytes of its image have the hash"):
        read_as(server, picture, picture.sha256 + "0")


@pytest.mark.parametrize(
    "head", ["data:image/png,", "data:image/png;base32,", "data:image/;base64,", "data:image/png;x=1,"]
)
def test_a_data_uri_in_another_form_is_refused(server: Any, head: str) -> None:
    picture = server.picture(stored=False)
    uri = head + base64.b64encode(picture.data).decode()
    with pytest.raises(InvalidImageRef, match="must be a data:image/<type>;base64,"):
        read(server, picture, picture.ref(raw_image_id=None, raw_uri=uri))


@pytest.mark.parametrize("damage", ["=", "====", " ", "\n", "-", "A", "é", "%41"])
def test_base64_is_strict(server: Any, damage: str) -> None:
    picture = server.picture(stored=False)
    with pytest.raises(InvalidImageRef):
        read(server, picture, picture.ref(raw_image_id=None, raw_uri=picture.uri + damage))


def test_a_server_without_a_directory_reads_no_file(server: Any) -> None:
    picture = server.picture()
    config = type(server.config)("image", server.config.geometry, server.config.pad_id, None, 8)
    claim = check_reference(server.item(picture, picture.ref()), config)
    with pytest.raises(InvalidImageRef, match="allowed-local-media-path"):
        read_encoded_image(claim, config)
    inline = check_reference(server.item(picture, picture.inline()), config)
    assert read_encoded_image(inline, config).data == picture.data


def test_a_data_uri_in_the_reference_is_used_instead_of_the_file(server: Any) -> None:
    picture = server.picture(stored=False)
    assert read(server, picture, picture.ref(raw_uri=picture.uri)).data == picture.data
