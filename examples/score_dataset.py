"""Score a Hugging Face data set by local data influence, without a trainer.

    python examples/score_dataset.py

Scores the classroom's seed tasks for its student, whose adapter is fresh, and writes them with a column of influence.
With your own model, tokenizer, data set and reference set, only the lines that load them change.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from montessori_pl.classroom import resolve
from montessori_pl.influence import AdamW, score_dataset


def main() -> None:
    """Load, score, and show the best and the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("scores.jsonl"), help="where the scored rows are written")
    options = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("classroom/student"))
    model = AutoModelForCausalLM.from_pretrained(resolve("classroom/student"))
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    dataset = Dataset.from_json(str(resolve("classroom/seed_tasks"))).select_columns(["instruction", "response"])
    reference = Dataset.from_json(str(resolve("classroom/reference"))).select_columns(["instruction", "response"])

    scored = score_dataset(model, tokenizer, dataset, reference, AdamW(lr=1e-3))

    print(json.loads(scored.info.description)["reason"])
    ranked = scored.sort("influence", reverse=True)
    for row in [*ranked.select(range(3)), *ranked.select(range(len(ranked) - 3, len(ranked)))]:
        print(f"{row['influence']:+.2e}  {row['instruction']!r} -> {row['response']!r}")
    scored.to_json(options.out)


if __name__ == "__main__":
    main()
