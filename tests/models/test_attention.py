"""The setting `attn_implementation`: what Transformers is told, and a sentence where a model does not have it."""

from pathlib import Path

import pytest
import torch
from architectures import save_tiny_architecture
from tiny_models import save_tiny_model

from montessori_pl.models.loading import Attention, ModelSource, load_model
from montessori_pl.models.student import StudentModule


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("wanted", "found"), [(None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_the_model_computes_as_it_is_told(backbone: str, wanted: Attention | None, found: str) -> None:
    module = StudentModule(backbone, attn_implementation=wanted)
    module.configure_model()
    assert module.language_model.config._attn_implementation == found
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = load_model(ModelSource(backbone))(input_ids=ids).logits
        torch.testing.assert_close(module.network(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_a_model_does_not_have_ends_with_a_sentence(tmp_path: Path) -> None:
    source = ModelSource(save_tiny_architecture("Bloom", tmp_path), attn_implementation="sdpa")
    with pytest.raises(ValueError, match=r"the model of the backbone .* cannot be loaded \(.*attention"):
        load_model(source)
