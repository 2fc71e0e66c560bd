"""Does a probe whose gradient is clipped, as training clips it, foretell training better?

    OMP_NUM_THREADS=1 python benchmarks/probe_clipping.py
    OMP_NUM_THREADS=1 python benchmarks/probe_clipping.py --seeds 0 1 2 --subsets 60

The classroom's student (LoRA of rank 16) is warmed up on tasks with the settings of `iter1.yaml`, whose gradients are
clipped at 1. Then 96 other tasks in groups of four, of which many have a wrong answer, are probed exactly, with the
gradient as it is and clipped at 1, and each probe is compared with what happens when the student is trained on:

* subsets: random quarters of the examples are trained on for one epoch in batches of 8; the sum of their influences is
  correlated with how much the reference loss falls (the linear datamodelling score);
* alone: four steps on each example by itself; correlation with how much the loss falls, and how often the best and the
  worst of a group are the same.

Both trainings clip at 1 and go on from the warm-up's moments. Prints a line for each seed and learning rate.
"""

import argparse
import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from montessori_pl.batches.collate import collate
from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.influence import (
    AdamW,
    Batch,
    ClippedGradient,
    ExactInfluence,
    ReferenceSet,
    ResponseLosses,
    agreement,
    trainable_parameters,
)
from montessori_pl.models.loading import LoraSettings, load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stats.correlation import pearson, spearman

CLIP = 1.0
GROUP = 4


def tasks(chat_template: ChatTemplate, seed: int, count: int, wrong_rate: float) -> list[Rendered]:
    """Tasks of all families; a share of them has the answer of another one."""
    rng = random.Random(seed)
    drawn = [sample_task(rng, rng.choice(FAMILIES)) for _ in range(count)]
    rows = [(asked, rng.choice(drawn)[1] if rng.random() < wrong_rate else answer) for asked, answer in drawn]
    return [
        chat_template.render([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
        for asked, answer in rows
    ]


def step(network: nn.Module, optimizer: torch.optim.AdamW, batch: Batch) -> None:
    """One step on the mean loss over the batch's response tokens, clipped."""
    optimizer.zero_grad()
    tokens = (batch["labels"][:, 1:] != -100).sum(dim=1)
    (ResponseLosses(network)({}, batch) * tokens / tokens.sum()).sum().backward()
    torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], CLIP)
    optimizer.step()


def trained_on(
    network: nn.Module, state: dict[str, Any], batches: Sequence[Batch], lr: float, references: ReferenceSet
) -> float:
    """The mean reference loss after these steps; the network is put back."""
    before = {name: param.detach().clone() for name, param in trainable_parameters(network).items()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr)
    optimizer.load_state_dict(copy.deepcopy(state))
    optimizer.param_groups[0]["lr"] = lr
    for batch in batches:
        step(network, optimizer, batch)
    loss = references.losses(trainable_parameters(network)).double().mean().item()
    with torch.no_grad():
        for name, param in network.named_parameters():
            if name in before:
                param.copy_(before[name])
    return loss


def measure(seed: int, lrs: Sequence[float], num_subsets: int) -> None:
    """One seed."""
    student = StudentModule("classroom/student", lora=LoraSettings(r=16, alpha=32))
    torch.manual_seed(seed)
    student.configure_model()
    network, chat_template = student.network, load_chat_template(student.source)
    references = ReferenceSet(
        ResponseLosses(network), [collate(tasks(chat_template, 1000 + seed, 96, wrong_rate=0.0), 0)]
    )
    warm = tasks(chat_template, 2000 + seed, 200, wrong_rate=0.3)
    settings = TrainingSettings(lr=5e-3, schedule="linear_warmup")
    optimizer = settings.optimizer([p for p in network.parameters() if p.requires_grad])
    num_steps = 2 * -(-len(warm) // 16)
    scheduler = settings.scheduler(optimizer, num_steps)
    rng = random.Random(seed)
    for _ in range(2):
        rng.shuffle(warm)
        for start in range(0, len(warm), 16):
            step(network, optimizer, collate(warm[start : start + 16], 0))
            scheduler.step()
    state = optimizer.state_dict()
    names = list(student.optimized())
    probed = tasks(chat_template, 3000 + seed, 96, wrong_rate=0.5)
    groups = [place // GROUP for place in range(len(probed))]
    ones = [collate([one], 0) for one in probed]
    subsets = [rng.sample(range(len(probed)), len(probed) // 4) for _ in range(num_subsets)]
    params = {name: param.clone() for name, param in trainable_parameters(network).items()}
    loss = ResponseLosses(network)
    norms = torch.tensor([_norm(loss, params, one) for one in ones])
    base = references.losses(params).double().mean().item()
    for lr in lrs:
        rule = AdamW.from_optimizer_state(state, names, lr=lr)
        scores = {
            name: [one.centred for example in ones for one in ExactInfluence(loss, params, update, references)(example)]
            for name, update in (("plain", rule), ("clipped", ClippedGradient(rule, CLIP)))
        }
        drops = []
        for subset in subsets:
            batches = [collate([probed[i] for i in subset[start : start + 8]], 0) for start in range(0, len(subset), 8)]
            drops.append(base - trained_on(network, state, batches, lr, references))
        alone = [base - trained_on(network, state, [one] * 4, lr, references) for one in ones]
        print(f"seed {seed} lr {lr:g}: {(norms > CLIP).float().mean():.0%} of gradients are longer than {CLIP:g}")
        print(f"  plain and clipped: spearman {spearman(scores['plain'], scores['clipped']):.3f}")
        for name, values in scores.items():
            sums = [sum(values[i] for i in subset) for subset in subsets]
            agreed = agreement(values, alone, groups)
            print(
                f"  {name:8} subsets: spearman {spearman(sums, drops):.3f} pearson {pearson(sums, drops):.3f}   "
                f"alone: spearman {agreed.spearman:.3f} pearson {agreed.pearson:.3f} best {agreed.best:.2f} "
                f"worst {agreed.worst:.2f}",
                flush=True,
            )


def _norm(loss: ResponseLosses, params: dict[str, Tensor], example: Batch) -> float:
    gradients = torch.func.grad(lambda moving: loss(moving, example).squeeze(0))(params)
    return float(torch.linalg.vector_norm(torch.cat([one.flatten() for one in gradients.values()])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--subsets", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        measure(seed, arguments.lrs, arguments.subsets)
