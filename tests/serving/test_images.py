"""Uploads: forms, and images of more than 8 bits; no model behind the endpoint."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client import CollectorRegistry

from nvcim.data.images import read_image
from nvcim.fleet.metrics import PrometheusBackend
from serving.api import create_api
from serving.backends import Offer
from serving.images import read_upload
from serving.metrics import RequestMetrics


class DarkIsObject:
    """Labels dark pixels as object 1."""

    async def offer(self) -> Offer:
        return Offer(("float", "inq-5"), 0, 7)

    async def segment(self, image: np.ndarray, model: str, scale: float) -> np.ndarray:
        return (image.sum(axis=2) < 384).astype(np.int32)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    metrics = RequestMetrics(PrometheusBackend(CollectorRegistry()))
    with TestClient(create_api(None, DarkIsObject(), metrics), raise_server_exceptions=False) as client:
        yield client


def picture() -> bytes:
    """A bright image with a dark square."""
    image = Image.new("L", (16, 8), 255)
    image.paste(0, (1, 1, 4, 4))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def message_of(response) -> str:
    return response.json()["error"]["message"]


def test_segment_takes_the_one_file_of_a_form(client: TestClient) -> None:
    plain = client.post("/v1/segment?model=inq-5", content=picture()).json()
    for name in ("file", "image"):
        response = client.post("/v1/segment?model=inq-5", files={name: ("a b.png", picture(), "image/png")})
        assert response.status_code == 200
        assert response.json() == plain


FORM = {"content-type": "multipart/form-data; boundary=cut"}


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"files": {"a": picture(), "b": picture()}}, "the form holds 2 files; send one image"),
        ({"files": {"a": picture()}, "data": {"model": "inq-5"}}, "form field 'model' is no file"),
        ({"files": {"a": b"not an image"}}, "not a readable image"),
        ({"files": {"a": ("a.png", b"")}}, "the body is empty"),
        ({"content": picture(), "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": picture(), "headers": FORM}, "the multipart form cannot be read"),
        ({"content": b"--cut--\r\n", "headers": FORM}, "the form holds 0 files; send one image"),
        ({"content": b"", "headers": FORM}, "the form holds 0 files; send one image"),
    ],
    ids=["two files", "field", "text", "empty file", "no boundary", "no form", "no part", "nothing"],
)
def test_a_form_that_is_not_one_image_is_400(client: TestClient, sent: dict, message: str) -> None:
    response = client.post("/v1/segment", **sent)
    assert response.status_code == 400
    assert message in message_of(response)


DEEP = np.random.default_rng(0).integers(100, 4000, (40, 30, 3), dtype=np.uint16)
DEEP[0, 0] = 65535


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (DEEP[..., 0], {}),
        (DEEP, {"photometric": "rgb"}),
        (DEEP, {"photometric": "rgb", "compression": "zlib", "predictor": True, "byteorder": ">"}),
        (np.moveaxis(DEEP, -1, 0), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}),
        (DEEP[..., 0].astype(np.float32), {}),
        (DEEP[..., 0].astype(np.uint32), {"compression": "lzw"}),
    ],
    ids=["grey", "rgb", "compressed", "channels", "real", "uint32"],
)
def test_an_uploaded_image_is_read_as_the_same_file_is(
    values: np.ndarray, options: dict, tmp_path: Path
) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, **options)
    found = read_upload(path.read_bytes())
    assert np.array_equal(found, read_image(path))
    assert found.dtype == np.float32
    # One hot pixel of 1,200: the others keep the range.
    assert 200 < found[1:].max() < 320


def test_a_tiff_of_too_many_pixels_or_samples_is_refused_unread(client: TestClient) -> None:
    for shape, status in (((2500, 2000), 413), ((1000, 1000, 40), 400)):
        buffer = io.BytesIO()
        kind = {"photometric": "minisblack", "compression": "zlib"}
        kind |= {"planarconfig": "contig"} if len(shape) == 3 else {}
        tifffile.imwrite(buffer, np.zeros(shape, np.uint8), **kind)
        response = client.post("/v1/segment", content=buffer.getvalue())
        assert response.status_code == status
        assert message_of(response)
