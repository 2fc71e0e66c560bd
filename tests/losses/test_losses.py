"""Losses against hand-computed values and against TRL's DPO trainer."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from montessori_pl.losses import (
    PairLoss,
    dpo_loss,
    mean_response_loss,
    sequence_log_probabilities,
    token_log_probabilities,
)
from montessori_pl.models.dpo import TeacherDPOModule


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def certain_logits() -> torch.Tensor:
    """Logits whose softmax is known: probabilities 1/2, 1/4, 1/8, 1/8 at each of three places of two examples."""
    return torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125])).expand(2, 3, 4).clone()


def test_token_log_probabilities_are_those_of_the_next_token() -> None:
    """The label at place t is judged by the logits at place t-1; the first label has none.

    Labels (0, 1, 2) give log 1/4 and log 1/8; labels (3, -100, 0) give nothing and log 1/2.
    """
    found = token_log_probabilities(certain_logits(), torch.tensor([[0, 1, 2], [3, -100, 0]]))

    torch.testing.assert_close(found, torch.tensor([[0.25, 0.125], [1.0, 0.5]]).log())
    assert found[1, 0] == 0.0


def test_sequence_log_probabilities_and_mean_losses_count_labelled_tokens_only() -> None:
    """Labels (0, 1, 2): log 1/4 + log 1/8 = -5 log 2, over two tokens; labels (3, -100, 0): -log 2, over one."""
    logits, labels = certain_logits(), torch.tensor([[0, 1, 2], [3, -100, 0]])
    log2 = math.log(2)

    torch.testing.assert_close(sequence_log_probabilities(logits, labels), torch.tensor([-5 * log2, -log2]))
    torch.testing.assert_close(mean_response_loss(logits, labels), torch.tensor([2.5 * log2, log2]))


def test_logits_after_the_last_label_do_not_count() -> None:
    logits, labels = certain_logits(), torch.tensor([[0, 1, 2], [3, -100, 0]])
    changed = logits.clone()
    changed[:, -1] = torch.randn(2, 4)

    assert torch.equal(mean_response_loss(changed, labels), mean_response_loss(logits, labels))


@pytest.mark.parametrize(
    ("logits", "expected"), [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]
)
def test_log_probabilities_are_in_single_precision_or_better(logits: torch.dtype, expected: torch.dtype) -> None:
    assert token_log_probabilities(certain_logits().to(logits), torch.ones(2, 3, dtype=torch.long)).dtype == expected


def test_the_mean_loss_of_the_students_model_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    model = tiny_llama(vocab_size=20).eval()
    ids = torch.randint(20, (1, 9))
    labels = ids.clone()
    labels[:, :4] = -100

    output = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(mean_response_loss(output.logits, labels)[0], output.loss)


def test_dpo_by_hand() -> None:
    """One pair, beta 0.5.

    chosen:   policy -1, reference -2, log-ratio +1, reward +0.5
    rejected: policy -3, reference -1, log-ratio -2, reward -1
    margin 1.5, loss -log sigmoid(1.5) = log(1 + exp(-1.5)) = 0.2014133
    """
    output = dpo_loss(*(torch.tensor([value]) for value in (-1.0, -3.0, -2.0, -1.0)), beta=0.5)

    assert output.loss.item() == pytest.approx(0.2014133, abs=1e-6)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == (0.5, -1.0)
    assert (output.margins.item(), output.accuracies.item()) == (1.5, 1.0)


def test_dpo_gradient_by_hand() -> None:
    """The loss falls by beta * sigmoid(-margin) for each nat that the chosen completion gains.

    As above: 0.5 * sigmoid(-1.5) = 0.5 * 0.1824255 = 0.0912128; the rejected completion has the opposite sign.
    """
    chosen, rejected = torch.tensor([-1.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    output = dpo_loss(chosen, rejected, torch.tensor([-2.0]), torch.tensor([-1.0]), beta=0.5)
    output.loss.sum().backward()

    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.0912128, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.0912128, abs=1e-6)
    assert not output.margins.requires_grad


def test_a_policy_that_is_its_reference_loses_log_two() -> None:
    values = torch.tensor([-4.0, -7.0])
    output = dpo_loss(values, values - 1, values, values - 1, beta=0.1)

    torch.testing.assert_close(output.loss, torch.full((2,), math.log(2)))
    assert output.accuracies.tolist() == [0.0, 0.0]


def test_conservative_loss_is_that_of_the_pair_and_of_the_swapped_pair() -> None:
    """(1 - e) times DPO's loss + e times its loss when the sides are exchanged.

    Log-ratios +1 and -2 make h = 3: with beta 1/2, sigmoid(1.5) = 0.8175745 and sigmoid(-1.5) = 0.1824255, so with
    e = 0.1 the loss is 0.9 * 0.2014133 + 0.1 * 1.7014133 = 0.3514133.
    """
    chosen, rejected = (torch.tensor([-1.0]), torch.tensor([-2.0])), (torch.tensor([-3.0]), torch.tensor([-1.0]))
    sides = (chosen[0], rejected[0], chosen[1], rejected[1])
    swapped = (rejected[0], chosen[0], rejected[1], chosen[1])
    found = dpo_loss(*sides, beta=0.5, loss_type="sigmoid", label_smoothing=0.1)

    assert found.loss.item() == pytest.approx(0.3514133, abs=1e-6)
    expected = 0.9 * dpo_loss(*sides, beta=0.5).loss + 0.1 * dpo_loss(*swapped, beta=0.5).loss
    torch.testing.assert_close(found.loss, expected)


def test_robust_loss_is_unbiased() -> None:
    """Its mean over labels that are flipped with probability e is DPO's loss of the labels as they were."""
    sides = tuple(torch.tensor([value]) for value in (-1.0, -3.0, -2.0, -1.0))
    swapped = (sides[1], sides[0], sides[3], sides[2])
    right, flipped = (
        dpo_loss(*some, beta=0.5, loss_type="robust", label_smoothing=0.2).loss for some in (sides, swapped)
    )

    torch.testing.assert_close(0.8 * right + 0.2 * flipped, dpo_loss(*sides, beta=0.5).loss)


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, initializer_range=0.2, **sizes))


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz .?"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def randomize_adapter(model: nn.Module) -> None:
    """A random B; with the usual zero, policy and reference would be the same."""
    torch.manual_seed(1)
    for name, param in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(param, std=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_type", "label_smoothing", "sft_weight"),
    [
        ("sigmoid", 0.0, 0.0),
        ("robust", 0.2, 0.0),
        ("ipo", 0.0, 0.0),
        ("sigmoid", 0.0, 0.5),
        ("robust", 0.1, 0.25),
        ("sft", 0.0, 1.0),
    ],
)
def test_loss_rewards_and_gradients_equal_those_of_trl(
    tmp_path: Path, loss_type: PairLoss, label_smoothing: float, sft_weight: float
) -> None:
    """TRL computes its loss with its own collator, fused head and reference pass; ours is written out below.

    Our `sft_weight` is the weight of TRL's `sft` beside the other loss.

    Both start from the same weights, an adapter over a frozen model whose adapter-free self is the reference.
    """
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    base = tiny_llama(len(tokenizer))
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    rows = [
        {"prompt": "what is a cat?", "chosen": " an animal.", "rejected": " no idea what you mean."},
        {"prompt": "why?", "chosen": " because it is so.", "rejected": " x"},
        {"prompt": "name a letter", "chosen": " b", "rejected": " seven"},
    ]
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(base),
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            loss_type=[loss_type, "sft"] if sft_weight and loss_type != "sft" else [loss_type],
            loss_weights=[1.0, sft_weight] if sft_weight and loss_type != "sft" else None,
            label_smoothing=label_smoothing,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    randomize_adapter(trainer.model)
    ours = get_peft_model(copy.deepcopy(base), lora)
    trainable = [name for name, param in ours.named_parameters() if param.requires_grad]
    ours.load_state_dict({name: trainer.model.get_parameter(name) for name in trainable}, strict=False)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])

    trl_loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    trl_loss.backward()
    trl_metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}

    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    policy = sequence_log_probabilities(ours(**inputs).logits, labels)
    with torch.no_grad(), ours.disable_adapter():
        reference = sequence_log_probabilities(ours(**inputs).logits, labels)
    teacher = TeacherDPOModule(
        "unused", beta=0.3, loss_type=loss_type, label_smoothing=label_smoothing, sft_weight=sft_weight
    )
    lengths = (labels[:, 1:] != -100).sum(dim=1).chunk(2)
    output = dpo_loss(
        *policy.chunk(2),
        *reference.chunk(2),
        beta=0.3,
        loss_type=loss_type,
        label_smoothing=label_smoothing,
        lengths=(lengths[0], lengths[1]),
    )
    our_loss = teacher.objective(output.loss, policy.chunk(2)[0], torch.ones(len(rows)), lengths[0].sum()).loss
    our_loss.backward()

    assert our_loss.item() == pytest.approx(trl_loss.item(), rel=1e-5)
    assert (output.margins.abs() > 0.001).all(), "policy and reference must differ for this to mean something"
    for name, values in (
        ("rewards/chosen", output.chosen_rewards),
        ("rewards/rejected", output.rejected_rewards),
        ("rewards/margins", output.margins),
        ("rewards/accuracies", output.accuracies),
    ):
        assert values.mean().item() == pytest.approx(trl_metrics[name], rel=1e-5, abs=1e-6), name
    for name in trainable:
        expected = trainer.model.get_parameter(name).grad
        largest = expected.abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(ours.get_parameter(name).grad, expected, rtol=0, atol=1e-5 * largest, msg=name)
