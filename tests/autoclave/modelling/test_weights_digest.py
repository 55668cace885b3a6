"""A digest of what an adapter computes changes with whatever changes that, and with nothing else."""

from autoclave.modelling.weights_digest import worn_digest
from tests.autoclave.generation.test_continuous_batches import adapted
from tests.autoclave.tiny_architectures import tiny_model


def test_weights_are_told_apart_by_what_they_compute() -> None:
    model = adapted(tiny_model("llama"))
    before = worn_digest(model)
    assert worn_digest(model) == before
    with model.disable_adapter():
        assert worn_digest(model) != before
    assert worn_digest(model) == before
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
    kept = parameter.data.clone()
    parameter.data[0, 0] = 0.0
    assert worn_digest(model) != before
    parameter.data.copy_(kept)
    layer = next(m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict))
    layer.scaling["default"] *= 2
    assert worn_digest(model) != before
    layer.scaling["default"] /= 2
    assert worn_digest(model) == before
