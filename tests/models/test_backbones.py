"""What can be no backbone ends in one sentence, whichever kind it is; code beside a model is run only where asked."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import random_adapter, save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaModel

from montessori_pl.data.records import Message
from montessori_pl.models.loading import (
    LoraSettings,
    ModelSource,
    check_loadable,
    load_chat_template,
    load_model,
    make_trainable,
)

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


def test_a_file_of_weights_is_no_backbone(backbone: Path) -> None:
    assert "is a file; give the directory" in refusal(ModelSource(str(backbone / "model.safetensors")))


def test_files_that_are_none(backbone: Path) -> None:
    weights = backbone / "model.safetensors"
    weights.unlink()
    assert "no model for the backbone" in refusal(ModelSource(str(backbone)))
    (backbone / "config.json").write_text("{")
    assert f"for the backbone '{backbone}'" in refusal(ModelSource(str(backbone)))
    (backbone / "config.json").unlink()
    assert "is a directory without config.json" in refusal(ModelSource(str(backbone)))


def _change(backbone: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a checkpoint."""
    weights = load_file(backbone / "model.safetensors")
    change(weights)
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})


def _in_shards(backbone: Path, names: int) -> None:
    """Let an index name so many files, of which the first holds five weights."""
    weights = sorted(load_file(backbone / "model.safetensors").items())
    (backbone / "model.safetensors").unlink()
    save_file(dict(weights[:5]), backbone / "model-1.safetensors", metadata={"format": "pt"})
    places = {name: f"model-{1 if place < 5 else names}.safetensors" for place, (name, _) in enumerate(weights)}
    (backbone / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _cut(backbone: Path, bytes_left: int) -> None:
    path = backbone / "model.safetensors"
    path.write_bytes(path.read_bytes()[:bytes_left])


def _pickled(backbone: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(backbone)
    (backbone / "model.safetensors").unlink()
    torch.save(model, backbone / "pytorch_model.bin")


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda backbone: (backbone / "model.safetensors").rename(backbone / name).write_text(text)


UP = "model.layers.1.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in the tensors": (lambda one: _cut(one, 9000), "is cut: 9000 of [0-9]+ bytes are there"),
    "cut in the header": (lambda one: _cut(one, 30), r"is cut or no safetensors file \(30 bytes\)"),
    "empty": (lambda one: _cut(one, 0), r"is cut or no safetensors file \(0 bytes\)"),
    "git lfs": (_text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
    "a shard is missing": (lambda one: _in_shards(one, 2), r"1 of the 2 files .* are not there \(first: model-2.saf"),
    "the index lies": (lambda one: _in_shards(one, 1), "no weights for 16 parameters"),
    "the index is cut": (_text("model.safetensors.index.json", "{"), "does not say which file holds which weight"),
    "the index is empty": (_text("model.safetensors.index.json", "{}"), "does not say which file holds which weight"),
    "another shape": (
        lambda one: _change(one, lambda weights: weights.update({UP: torch.zeros(24, 17)})),
        rf"1 weights have another shape \(first: {UP}, \[24, 17\] where \[24, 16\] is expected\)",
    ),
    "NaN": (
        lambda one: _change(one, lambda weights: weights[UP][3].fill_(torch.nan)),
        rf"hold NaN or infinity \(first in {UP}\)",
    ),
    "infinity": (
        lambda one: _change(one, lambda weights: weights["lm_head.weight"][30].fill_(torch.inf)),
        r"hold NaN or infinity \(first in lm_head.weight\)",
    ),
    "integers": (
        lambda one: _change(one, lambda weights: weights.update({UP: weights[UP].to(torch.int8)})),
        rf"1 weights as quantized numbers \(first: {UP}, I8\)",
    ),
    "8-bit floats": (
        lambda one: _change(one, lambda weights: weights.update({UP: weights[UP].to(torch.float8_e4m3fn)})),
        rf"1 weights as quantized numbers \(first: {UP}, F8_E4M3\)",
    ),
    "a pickled model": (_pickled, "a pickle of more than weights"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_end_in_a_sentence_that_says_what_is_wrong(backbone: Path, damage: str) -> None:
    change, expected = DAMAGE[damage]
    change(backbone)
    assert re.search(expected, refusal(ModelSource(str(backbone))))


def test_weights_that_no_parameter_takes_are_told_once(backbone: Path, caplog: pytest.LogCaptureFixture) -> None:
    _change(backbone, lambda weights: weights.update({"v_head.weight": torch.zeros(2)}))
    for _ in range(2):
        load_model(ModelSource(str(backbone)))
    told = [record.getMessage() for record in caplog.records if record.name.startswith("montessori_pl")]
    assert told == [
        f"the checkpoint of the backbone '{backbone}' holds 1 weights that its config.json has no place for (first: "
        "v_head.weight): they are ignored"
    ]


def test_an_adapter_that_leaves_modules_without_weights_is_refused(backbone: Path, tmp_path: Path) -> None:
    source = random_adapter(ModelSource(str(backbone)), LoraSettings(r=2), tmp_path / "adapter")
    assert {one.device.type for one in load_model(source, weights=False).parameters()} == {"meta"}
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in [name for name in weights if "layers.1" in name]:
        del weights[name]
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "Found missing adapter keys" in refusal(source)
    check_loadable(ModelSource(str(backbone)))
    with pytest.raises(ValueError, match="Found missing adapter keys"):
        check_loadable(source)


def test_quantized_models_may_write_where_their_package_is(backbone: Path) -> None:
    config = json.loads((backbone / "config.json").read_text())
    for method, expected in {"gptq": "needs a package that is not installed", "wonder": "cannot be loaded"}.items():
        quantization = {"quantization_config": {"quant_method": method, "bits": 4}}
        (backbone / "config.json").write_text(json.dumps(config | quantization))
        with pytest.raises(ValueError, match=f"the quantized model of the backbone '{backbone}' {expected}"):
            check_loadable(ModelSource(str(backbone)))


@pytest.mark.parametrize(("positions", "expected"), [(4, "has 4 positions .* no answer has room"), (0, ""), (-1, "")])
def test_positions(backbone: Path, positions: int, expected: str) -> None:
    """Of a model that names none, as by -1, conversations are not cut."""
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    source = ModelSource(str(backbone))
    if expected:
        assert re.search(expected, refusal(source))
    else:
        assert load_chat_template(source).context is None


@pytest.mark.parametrize("length", [0, 16, 1e30, "512"])
def test_lengths_of_a_tokenizer_mean_nothing(backbone: Path, length: object) -> None:
    config = json.loads((backbone / "tokenizer_config.json").read_text())
    (backbone / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": length}))
    messages: list[Message] = [{"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b"}]
    assert len(load_chat_template(ModelSource(str(backbone))).conversation_ids(messages)) == 24


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
    for settings, expected in (
        (LoraSettings(layers=[7]), "Target modules"),
        (LoraSettings(target_modules=["no_such_module"]), "Target modules"),
        # PEFT would adapt what there is, and say nothing of the rest.
        (LoraSettings(layers=[0, 7]), "it has no module to adapt for layer 7; the adapter would be on 7 others"),
        (LoraSettings(target_modules=["q_proj", "k_prj"]), r".* to adapt for k_prj; .* 2 others \(q_proj; the last is"),
    ):
        with pytest.raises(ValueError, match=f"lora does not fit LlamaForCausalLM: {expected}"):
            make_trainable(load_model(ModelSource(str(backbone))), settings)
    with pytest.raises(ValueError, match="layers: expected list, not empty"):
        LoraSettings(layers=[])


def test_only_the_files_are_looked_at(backbone: Path) -> None:
    model = load_model(ModelSource(str(backbone)), weights=False)
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
