"""Does `auto` choose the same preference pairs as exact influence, and in how much of the time?

    python benchmarks/classroom_scoring.py --seeds 0 1 2

For each seed the shipped recipe is run up to its probing data; then its scoring and pairing stages are run twice from
there, with `method: exact` and with `method: auto`, in random order. Prints for each seed the share of prompts in which
both choose the same pair, and the seconds of scoring.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from montessori_pl.data.records import PreferencePair, read_records

ROOT = Path(__file__).parents[1]
METHODS = ("exact", "auto")
STAGES = ("warmup_data", "warmup", "probing_data", "influence", "preferences")


def recipe(method: str, num_stages: int) -> dict[str, Any]:
    """The shipped recipe's first stages, with this method of scoring."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "iter1.yaml").read_text(encoding="utf-8"))
    config["recipe"] = {name: config["recipe"][name] for name in STAGES[:num_stages]}
    config["trainer"]["logger"] = False
    if "influence" in config["recipe"]:
        config["recipe"]["influence"]["init_args"]["signal"]["init_args"]["method"] = method
    return config


def run(directory: Path, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run a recipe in a directory and return its summary."""
    path = directory.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "montessori_pl", "fit", "--config", str(path), "--run", str(directory)]
    subprocess.run([*command, "--seed_everything", str(seed)], check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return summary


def pairs(directory: Path) -> dict[str, set[tuple[str, str]]]:
    """The pairs of each prompt, as ids."""
    found: dict[str, set[tuple[str, str]]] = {}
    for pair in read_records(directory / "iteration_1" / "preferences" / "pairs.jsonl", PreferencePair):
        prompt_id = pair.chosen_id.rpartition("-")[0]
        found.setdefault(prompt_id, set()).add((pair.chosen_id, pair.rejected_id))
    return found


def main() -> None:
    """Run all seeds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("checkpoints/classroom_scoring"))
    options = parser.parse_args()
    print("seed  same pairs        exact     auto    ratio   auto chose")
    for seed in options.seeds:
        shared = options.out / f"seed_{seed}"
        run(shared, recipe("exact", 3), seed)
        summaries = {}
        for method in random.sample(METHODS, 2):
            directory = options.out / f"seed_{seed}_{method}"
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(shared, directory)
            summaries[method] = run(directory, recipe(method, 5), seed)
        exact, auto = (pairs(options.out / f"seed_{seed}_{method}") for method in METHODS)
        same = sum(auto.get(prompt) == chosen for prompt, chosen in exact.items())
        seconds = {name: one["stages"]["iteration_1/influence"]["seconds"] for name, one in summaries.items()}
        chosen = summaries["auto"]["data"]["iteration_1/influence"]["signal"]["chosen"]["method"]
        print(
            f"{seed:4d}  {same / len(exact):5.1%} of {len(exact)}  {seconds['exact']:6.1f} s {seconds['auto']:6.1f} s "
            f"{seconds['auto'] / seconds['exact']:7.2f}   {chosen}",
            flush=True,
        )


if __name__ == "__main__":
    main()
