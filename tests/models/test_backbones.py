"""What can be no backbone ends in one sentence, whichever kind it is; code beside a model is run only where asked."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaModel

from montessori_pl.models.loading import LoraSettings, ModelSource, load_chat_template, load_model, make_trainable

REMOTE_CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM

pathlib.Path(__file__).with_name("was_run").touch()

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def load(source: ModelSource) -> None:
    load_chat_template(source)
    load_model(source)


def refusal(source: ModelSource) -> str:
    """The sentence of the first check, or of loading."""
    with pytest.raises(ValueError, match=r"\A.+\Z") as refused:
        load(source)
    return str(refused.value)


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    return Path(save_tiny_model(tmp_path / "model"))


def test_an_adapter_is_no_backbone(backbone: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(backbone), LoraConfig(r=2, target_modules="all-linear"))
    model.save_pretrained(str(adapter))
    tiny_tokenizer().save_pretrained(adapter)
    assert f"is a PEFT adapter of '{backbone}' and no whole model" in refusal(ModelSource(str(adapter)))
    # Transformers would take the base from elsewhere, whatever weights lie beside.
    shutil.copytree(backbone, adapter, dirs_exist_ok=True)
    assert "is a PEFT adapter" in refusal(ModelSource(str(adapter)))


def test_gguf_and_other_files_are_no_backbones(backbone: Path, tmp_path: Path) -> None:
    file = tmp_path / "gguf" / "model-Q4_K_M.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    for path in (file, file.parent):
        assert "is GGUF, a format for inference" in refusal(ModelSource(str(path)))
    assert "is a file; give the directory" in refusal(ModelSource(str(backbone / "model.safetensors")))


def test_files_that_are_none(backbone: Path) -> None:
    weights = backbone / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "cannot be loaded (SafetensorError" in refusal(ModelSource(str(backbone)))
    weights.unlink()
    assert "no model for the backbone" in refusal(ModelSource(str(backbone)))
    (backbone / "config.json").write_text("{")
    assert f"for the backbone '{backbone}'" in refusal(ModelSource(str(backbone)))


def test_weights_that_would_be_random_are_named(backbone: Path, tmp_path: Path) -> None:
    weights = load_file(backbone / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    said = refusal(ModelSource(str(backbone)))
    assert "no weights for 1 parameters" in said
    assert "first: model.layers.1.mlp.up_proj.weight" in said

    headless = tmp_path / "headless"
    LlamaModel(LlamaConfig.from_pretrained(backbone)).save_pretrained(headless)
    tiny_tokenizer().save_pretrained(headless)
    assert "first: lm_head.weight" in refusal(ModelSource(str(headless)))


def test_other_kinds_of_models_are_refused_in_a_short_sentence(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=34, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path
    )
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "no weights for" in refusal(ModelSource(str(tmp_path)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    assert len(refusal(ModelSource(str(tmp_path)))) < 600  # Transformers lists every architecture


@pytest.mark.parametrize("rows", [20, 2])
def test_a_tokenizer_with_more_ids_than_embeddings(tmp_path: Path, rows: int) -> None:
    source = ModelSource(save_tiny_model(tmp_path, vocab_size=rows))
    said = refusal(source)
    assert f"writes {34 - rows} token ids for which the model has no embedding (vocab_size {rows}; the first is" in said


def test_special_tokens_that_no_conversation_contains_may_lie_beyond_the_embeddings(backbone: Path) -> None:
    rows = json.loads((backbone / "config.json").read_text())["vocab_size"]
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(backbone)
    assert len(tokenizer) == rows + 1
    load_chat_template(ModelSource(str(backbone)))

    tokenizer.pad_token = "<image>"
    tokenizer.save_pretrained(backbone)
    assert f"writes 1 token ids for which the model has no embedding (vocab_size {rows}; the first is '<image>'" in (
        refusal(ModelSource(str(backbone)))
    )


def test_code_beside_a_model_is_run_only_where_asked(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("asks on the terminal"))
    config = json.loads((backbone / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (backbone / "config.json").write_text(json.dumps(config))
    (backbone / "own.py").write_text(REMOTE_CODE)
    source = ModelSource(str(backbone))

    assert "comes with code of its own (auto_map)" in refusal(source)
    assert "trust_remote_code: true" in refusal(source)
    assert not list(tmp_path.rglob("was_run"))
    trusted = ModelSource(str(backbone), trust_remote_code=True)
    load_chat_template(trusted)
    assert type(load_model(trusted)).__name__ == "OwnModel"
    assert list(tmp_path.rglob("was_run"))


def test_lora_settings_that_do_not_fit_are_told_with_the_model(backbone: Path) -> None:
    for settings in (LoraSettings(layers=[7]), LoraSettings(target_modules=["no_such_module"])):
        with pytest.raises(ValueError, match="lora does not fit LlamaForCausalLM: "):
            make_trainable(load_model(ModelSource(str(backbone))), settings)


def test_only_the_files_are_looked_at(backbone: Path) -> None:
    model = load_model(ModelSource(str(backbone)), weights=False)
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
