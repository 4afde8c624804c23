"""Tensors in records: every dtype that the codec carries comes back as it was, with memory of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from transports.codec import decode, encode
from transports.errors import UnsupportedValue

CARRIED = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("dtype", CARRIED, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 5), (200, 100)], ids=str)
def test_a_tensor_comes_back_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    back = decode(encode({"tensor": tensor}))["tensor"]
    assert isinstance(back, torch.Tensor)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_views_gradients_and_conjugates_are_carried_by_their_values() -> None:
    weights = torch.arange(12.0, requires_grad=True)
    views = [weights.reshape(3, 4).T, weights[::3], torch.complex(weights, weights).conj().imag]
    for view, back in zip(views, decode(encode(views)), strict=True):
        assert torch.equal(view, back)
        assert not back.requires_grad


def test_a_decoded_tensor_may_be_written_to_and_its_frame_stays() -> None:
    frames = tuple(bytes(frame) for frame in encode(torch.zeros(20_000)))
    before = list(frames)
    decode(frames).fill_(1.0)
    assert list(frames) == before


def test_arrays_and_tensors_keep_apart() -> None:
    array, tensor = decode(encode([np.ones(3), torch.ones(3)]))
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.ones(2) * 1j], ids=["sparse", "complex"])
def test_what_cannot_be_carried_is_refused_by_name(tensor: torch.Tensor) -> None:
    with pytest.raises(UnsupportedValue, match="tensors"):
        encode({"here": tensor})


def test_torch_is_imported_only_where_a_tensor_is_met() -> None:
    script = (
        "import sys\nfrom transports.codec import decode, encode\nimport numpy as np\n"
        "decode(encode([1, 'x', np.ones(3)]))\nassert 'torch' not in sys.modules\n"
        "decode(tuple(bytes.fromhex(frame) for frame in sys.argv[1:]))\nassert 'torch' in sys.modules"
    )
    frames = [bytes(frame).hex() for frame in encode(torch.ones(3))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, *frames], check=True, env=environment)
