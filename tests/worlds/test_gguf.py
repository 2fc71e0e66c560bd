"""GGUF files as backbones: the copy in the cache is an ordinary checkpoint, and what is none ends in one sentence."""

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.loading import LoraSettings, ModelSource, load_chat_template, load_model, save_weights
from montessori_pl.models.student import StudentModule
from montessori_pl.pipeline.model_trial import Trial, try_model
from montessori_pl.pipeline.template_check import check_template
from montessori_pl.run_directory.fingerprint import pinned
from montessori_pl.worlds import gguf
from montessori_pl.worlds.names import locate_backbone

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")

SPECIAL = ["<unk>", "<start>", "<end>"]
CHATML = (
    "{% for m in messages %}<start>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + 258, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96, "tie_word_embeddings": True,
}  # fmt: skip
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(
    path: Path, template: str | None = CHATML, eos: str = "<start>", architecture: str = "llama", without: str = ""
) -> Path:
    """A Llama of two layers with one token for each byte, its weights drawn from seed 0, but for one of them."""
    from gguf import GGUFWriter, TokenType

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), architecture)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(SIZES["vocab_size"])
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ab", "cd"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * 258)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(tokens.index(eos))
    if template is not None:
        writer.add_chat_template(template)
    for name, weight in model.state_dict().items():
        if name in ("lm_head.weight", without):
            continue  # the head is tied
        writer.add_tensor(_name(name), _as_llama_cpp(name, weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    """What the format calls a weight of Transformers."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if match is None:
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    return f"blk.{match[1]}.{PARTS[match[2]]}.weight"


def _as_llama_cpp(name: str, weight: np.ndarray) -> np.ndarray:
    """The format keeps the two halves of a rotated head interleaved."""
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    heads, rows = SIZES["num_attention_heads"], weight.shape[0] // SIZES["num_attention_heads"] // 2
    return weight.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape).copy()


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\A.+\Z") as refused:
        load_chat_template(ModelSource(str(path)))
    return str(refused.value)


@needs_gguf
def test_a_file_is_read_as_the_model_that_it_was_made_from(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "models" / "tiny.gguf")
    torch.manual_seed(0)
    original = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)).eval()
    ids = torch.tensor([[1, 70, 80, 90, 2]])
    (tmp_path / "link.gguf").symlink_to(path)  # as in the cache of the hub
    for backbone in (tmp_path / "link.gguf", path, path.parent):
        model = load_model(ModelSource(str(backbone)))
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits)


@needs_gguf
def test_the_end_of_turn_is_found_in_the_template_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ModelSource(str(write_gguf(tmp_path / "tiny.gguf", eos="<start>")))
    template = load_chat_template(source)
    assert template.tokenizer.eos_token == "<end>"
    assert template.end_id == template.tokenizer.eos_token_id == load_model(source).config.eos_token_id == 2
    assert "the end-of-sequence token is <end>, which ends a turn, and not <start> as it says" in caplog.text
    check_template(template, {})


@needs_gguf
def test_a_file_that_is_right_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    without = write_gguf(tmp_path / "base.gguf", template=None, eos="<start>")
    assert load_chat_template(ModelSource(str(without), chat_template="plain")).tokenizer.eos_token == "<start>"
    right = write_gguf(tmp_path / "right.gguf", eos="<end>")
    assert load_chat_template(ModelSource(str(right))).tokenizer.eos_token == "<end>"
    assert "end-of-sequence" not in caplog.text


@needs_gguf
def test_a_file_is_trained_probed_and_saved_like_any_model(tmp_path: Path) -> None:
    source = ModelSource(str(write_gguf(tmp_path / "tiny.gguf")))
    try_model([Trial("student", source, None, probed=True), Trial("student", source, LoraSettings(), probed=True)])
    model = load_model(source)
    save_weights(model, tmp_path / "trained")
    again = load_model(ModelSource(source.backbone, tmp_path / "trained"))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


@needs_gguf
def test_the_copy_is_made_once_for_a_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    first = locate_backbone(str(path))
    moved = str(shutil.copy(path, tmp_path / "other.gguf"))
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("it is converted twice"))
    assert locate_backbone(moved) == first
    monkeypatch.undo()
    with open(path, "ab") as file:
        file.write(b"\0")
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    assert locate_backbone(str(path)) != first


@needs_gguf
def test_files_that_cannot_be_read_end_in_one_sentence(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    for length in (4, 30, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        assert "cannot be read" in refusal(path), length
    assert not [one for one in cache.iterdir() if one.is_dir() and not one.name.endswith(".unfinished")]
    assert "cannot be read" in refusal(write_gguf(tmp_path / "other.gguf", architecture="unheard_of"))
    lost = "model.layers.1.mlp.up_proj.weight"
    assert f"no weights for 1 parameters of its model (first: {lost})" in refusal(
        write_gguf(tmp_path / "lost.gguf", without=lost)
    )


@needs_gguf
def test_another_template_may_be_named_than_one_that_is_no_use(tmp_path: Path) -> None:
    mute = str(write_gguf(tmp_path / "mute.gguf", template="{{ messages[0]['content'] }}", eos="<end>"))
    with pytest.raises(ValueError, match="does not write what the assistant says"):
        load_chat_template(ModelSource(mute))
    check_template(load_chat_template(ModelSource(mute, chat_template="chatml")), {})


def test_what_is_no_gguf_file_ends_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model-Q4_K_M.gguf"
    assert "there is no file" in refusal(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is no GGUF file: it begins with b'vers'" in refusal(path)
    path.write_bytes(b"")
    assert "is no GGUF file" in refusal(tmp_path)
    part = path.rename(tmp_path / "model-00001-of-00002.gguf")
    part.write_bytes(b"GGUF")
    assert "is one part of a model in several files" in refusal(part)
    (tmp_path / "second.gguf").write_bytes(b"GGUF")
    assert "2 GGUF files (model-00001-of-00002.gguf, second.gguf); give the path of one" in refusal(tmp_path)


def test_without_the_package_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(tmp_path / "model.gguf").endswith("run: pip install 'montessori-pl[gguf]'")


@pytest.mark.parametrize("kind", [StudentModule, PoolTeacher])
def test_another_file_of_the_same_name_is_another_backbone(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    found = []
    for content in (b"GGUF", b"GGUF of another day"):
        path.write_bytes(content)
        found.append(pinned({"backbone": str(path)}, kind=kind)["backbone"])
    assert found[0] != found[1]
    assert found[0].startswith(f"{path} (content ")
