"""`export --format student`: what Transformers and PEFT load says the same as the student in the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hand_made import EXAMPLES, Export, HandMade
from peft import AutoPeftModelForCausalLM
from tiny_models import save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.models.loading import LoraSettings, ModelSource, attach_lora, load_model, save_weights

IDS = torch.tensor([[5, 6, 7, 8]])
LAYOUT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


class Trained(HandMade):
    """A run with students."""

    def train(self, key: str, backbone: str, model: Any, **student: Any) -> None:
        """A stage that has trained this model."""
        if not self.run_directory.finished("iteration_1/data"):
            self.add("iteration_1/data", "Synthesize", {"examples": EXAMPLES}, {"accepted": 4})
        data = f"iteration_1/data {self.run_directory.digest('iteration_1/data')}"
        settings = {
            "seed_everything": 42,
            f"recipe.{key.split('/')[1]}": {"class_path": "TrainStudent", "init_args": {"training": {"lr": 0.001}}},
            "student": {"class_path": "montessori_pl.StudentModule", "init_args": {"backbone": backbone, **student}},
        }
        self.run_directory.begin(key, settings, {"examples": data})
        directory = self.run_directory.directory(key)
        save_weights(model, directory / "weights")
        (directory / "metrics.json").write_text(json.dumps({"kind": "student", "examples": 4, "steps": 2}))
        self.run_directory.finish(key, sorted(path for path in directory.rglob("*") if path.is_file()))

    def evaluate(self, **students: dict[str, float]) -> None:
        """An evaluation that has found this."""
        inputs = [f"students.{name}=iteration_1/{name}" for name in students if name != "base"]
        self.begin("iteration_1/evaluation", "Evaluate", {}, inputs, **{"students.base": "base"})
        path = self.run_directory.directory("iteration_1/evaluation") / "metrics.json"
        path.write_text(json.dumps({"kind": "report", "students": students}))
        self.run_directory.finish("iteration_1/evaluation", [path])


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def adapted(backbone: str) -> Any:
    """The model with an adapter that says something."""
    torch.manual_seed(0)
    model = attach_lora(load_model(ModelSource(backbone)), LoraSettings(r=2, alpha=4))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def trained(backbone: str, adapted: Any, tmp_path: Path) -> Trained:
    """A run whose student is an adapter, with a layout of its own."""
    (tmp_path / "layout.jinja").write_text(LAYOUT)
    run = Trained("iter1")
    run.train("iteration_1/trained", backbone, adapted, chat_template=f"{tmp_path}/layout.jinja (content 0123456789ab)")
    run.evaluate(base={"accuracy": 0.25, "accuracy_standard_error": 0.1}, trained={"accuracy": 0.5})
    return run


def test_an_adapter(trained: Trained, said: Export, backbone: str, adapted: Any) -> None:
    assert said("iter1", "--format", "student", "--output", "out") == (
        "iteration_1/trained: an adapter and its tokenizer in out\n"
    )
    model = AutoPeftModelForCausalLM.from_pretrained("out")
    assert torch.equal(model(IDS).logits, adapted(IDS).logits)
    assert json.loads(Path("out/adapter_config.json").read_text())["base_model_name_or_path"] == backbone
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "why"}], tokenize=False) == "<user>why</s>"
    written = GenerationConfig.from_pretrained("out")
    assert written.eos_token_id == [ChatTemplate(tiny_tokenizer()).end_id]


def test_merged(trained: Trained, said: Export, adapted: Any) -> None:
    assert said("iter1", "--format", "student", "--merge", "--output", "out") == (
        "iteration_1/trained: a model and its tokenizer in out\n"
    )
    assert not Path("out/adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained("out")
    assert torch.allclose(model(IDS).logits, adapted(IDS).logits, atol=1e-4)


@pytest.fixture
def other(backbone: str, tmp_path: Path) -> Any:
    """A model of the same kind, which a stage has trained as a whole."""
    model = load_model(ModelSource(save_tiny_model(tmp_path / "other", seed=1)))
    Trained("iter1").train("iteration_1/trained", backbone, model)
    return model


def test_a_whole_model(other: Any, said: Export) -> None:
    said("iter1", "--format", "student", "--output", "out")
    assert torch.equal(AutoModelForCausalLM.from_pretrained("out")(IDS).logits, other(IDS).logits)
    assert AutoTokenizer.from_pretrained("out").chat_template == tiny_tokenizer().chat_template
    assert "No evaluation of the run has measured it." in Path("out/README.md").read_text()


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not enable_thinking | default(true) %}tt{% endif %}{% endif %}"
)
"""As Qwen3's: without thinking there is something in front of each answer."""


def test_the_template_is_told_what_it_was_told_in_training(backbone: str, adapted: Any, said: Export) -> None:
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.chat_template, tokenizer.model_max_length = THINKING, 96
    tokenizer.save_pretrained(backbone)
    Trained("iter1").train("iteration_1/trained", backbone, adapted, chat_template_kwargs={"enable_thinking": False})
    said("iter1", "--format", "student", "--output", "out")
    exported = AutoTokenizer.from_pretrained("out")
    asked: Any = ([{"role": "user", "content": "why"}],)
    settings = {"tokenize": False, "add_generation_prompt": True}
    assert exported.apply_chat_template(*asked, **settings) == "<user>why</s><assistant>tt"
    assert exported.apply_chat_template(*asked, enable_thinking=True, **settings) == "<user>why</s><assistant>"
    assert exported.model_max_length == 96
    assert "the chat template is told `enable_thinking: false`, as in training" in Path("out/README.md").read_text()


def test_the_card(trained: Trained, said: Export) -> None:
    said("iter1", "--format", "student", "--license", "mit", "--output", "out")
    card = Path("out/README.md").read_text()
    matter = yaml.safe_load(card.split("---\n")[1])
    assert (matter["license"], matter["library_name"], "base_model" in matter) == ("mit", "peft", False)
    assert "It learned from 4 examples in 2 steps." in card
    assert "| number | base | trained |\n| --- | --- | --- |\n| accuracy | 0.25 | 0.5 |\n" in card
    assert "| `iteration_1/data` | `Synthesize` |" in card
    assert "export iter1 --stage trained --iteration 1 --format student --license mit" in card
    assert "accuracy\\_standard\\_error" not in card


def test_what_others_cannot_load_is_merged_or_refused(adapted: Any, mistake: Export) -> None:
    """The classroom's models have no name that another library knows."""
    run = Trained("iter1")
    run.train("iteration_1/trained", "classroom/student (version 0123456789ab)", adapted)
    said = mistake("iter1", "--format", "student")
    assert said.startswith("iteration_1/trained has trained an adapter on classroom/student, which other libraries")
    assert said.endswith("by this name; give --merge, which writes a whole model")


def test_mistakes(trained: Trained, mistake: Export) -> None:
    assert "give it together with --format student" in mistake("iter1", "--merge")
    assert "iteration_1/data holds no students but examples" in mistake(
        "iter1", "--format", "student", "--stage", "data"
    )
