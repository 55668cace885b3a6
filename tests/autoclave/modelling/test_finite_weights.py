"""One bad entry anywhere is found, in every floating-point type, and nothing else is."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoclave.error_records import decode, encode
from autoclave.errors import NonFiniteWeightsError
from autoclave.modelling.finite_weights import first_non_finite, refuse_non_finite

BAD = (float("nan"), float("inf"), float("-inf"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 70),
    where=st.integers(0, 10**6),
    bad=st.sampled_from(BAD),
    dtype=st.sampled_from(DTYPES),
)
def test_one_bad_entry_is_found(rows: int, cols: int, where: int, bad: float, dtype: torch.dtype) -> None:
    tensors = {name: torch.zeros(rows, cols, dtype=dtype) for name in "abc"}
    assert first_non_finite(tensors) is None
    tensors["b"].view(-1)[where % (rows * cols)] = bad
    assert first_non_finite(tensors) == "b"


def test_the_largest_finite_entries_pass() -> None:
    largest = {str(d): torch.tensor([torch.finfo(d).max, torch.finfo(d).min], dtype=d) for d in DTYPES}
    assert first_non_finite(largest) is None


def test_types_without_infinity_and_empty_tensors() -> None:
    tensors = {"i": torch.tensor([1]), "e": torch.empty(0, 3), "f8": torch.ones(2).to(torch.float8_e4m3fn)}
    assert first_non_finite(tensors) is None
    assert first_non_finite({}) is None
    assert first_non_finite(tensors | {"f8": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}) == "f8"


def test_the_error_names_tensor_and_file_and_says_what_to_do() -> None:
    with pytest.raises(NonFiniteWeightsError, match=r"a/w\.safetensors: x\.lora_A.*train again") as caught:
        refuse_non_finite({"x.lora_A": torch.tensor([float("nan")])}, Path("a/w.safetensors"))
    assert str(decode(encode(caught.value))) == str(caught.value)
