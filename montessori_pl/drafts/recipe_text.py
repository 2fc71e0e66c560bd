"""The text of a drafted recipe: YAML in the order in which the run goes, with the reason of each number behind it."""

import json
import re
import shlex
from string import Template

from montessori_pl.drafts.choices import PAPER, Draft, Endpoint
from montessori_pl.drafts.models import LORA, LookedAt

_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~-]*")
"""Texts that need no quotation marks in YAML, besides words that it reads otherwise."""
_HEAD = """\
# python -m montessori_pl fit --config $file
#
# Written by: $command
$about
# Look first, at no cost, and then at what the teacher writes:
#     python -m montessori_pl fit --config $file --dry_run$gpus
#     python -m montessori_pl fit --config $file --preview 8
seed_everything: 42
run: $run
iterations: 1
$threads
student:
  class_path: montessori_pl.StudentModule
  init_args:
    backbone: $student
    chat_template: $student_template  # $about_student_template
    base_dtype: $student_dtype  # $about_student_dtype
    lora: {r: $rank, alpha: $alpha}  # influence is measured on the adapter, of which a copy is small
$teacher
generation:
$generation
data:
  seed_tasks: $seed_tasks  # $num_seed_tasks rows
  reference: $reference  # $num_references rows$about_reference
$test
trainer: {accelerator: auto, devices: $devices, $precision$log_every, logger: false}

recipe:
"""
_TEACHER = """\
teacher:
  class_path: montessori_pl.TeacherDPOModule
  init_args:
    backbone: $teacher
    chat_template: $teacher_template  # $about_teacher_template
    base_dtype: $base_dtype
    lora: {r: $rank, alpha: $alpha}
    beta: 0.1  # the paper's
    sft_weight: 1.0  # holds the teacher to what it wrote; 0 is the paper's"""
_ENDPOINT = """\
teachers:
  writer:
    backbone: $model  # what the endpoint calls it
    generation:
      class_path: montessori_pl.generation.OpenAIBackend
      init_args:
        base_url: $base_url
        api_key_env: $api_key_env  # name of the environment variable that holds the key
        $price"""
_WRITING = """\
  # The teacher writes a little as it is, and the student warms up on it.
  warmup_data:
    class_path: Synthesize
    init_args: &writing
      num_examples: $num_warmup  # of $paper_warmup in the paper
      $writer
      samples_per_prompt: 4
      synthesizer: &asking
        class_path: SelfInstruct
        # $about_answer_format
        init_args: {${prompt}answer_format: $form, num_seed_shots: $seed_shots, num_written_shots: $written_shots}
      # Seed tasks have $instruction_median tokens at the median, $instruction_long at the 95th percentile.
      instruction_sampling: &sampling {temperature: 1.0, top_p: 0.9, presence_penalty: 0.0, max_tokens: $asked_tokens}
      # Responses of the reference set have $response_median and $response_long.
      response_sampling: {temperature: 0.6, top_p: 0.9, presence_penalty: 0.0, max_tokens: $response_tokens}
$filters      max_similarity: $max_similarity  # ROUGE-L F1; seed tasks have $words words at the median
      prompts_per_batch: $prompts_per_batch  # prompts that a kill can cost
$min_acceptance      first_iteration_only: true
  warmup:
    class_path: TrainStudent
    init_args:
      examples: warmup_data
      training: {lr: $lr_student, schedule: linear_warmup, epochs: 2, batch_size: $of_warmup, max_length: $max_length}
      first_iteration_only: true
"""
_ALIGNED = """
  # Four samples for each prompt (of $paper_prompts), and how much a step on each would lower the reference loss.
  probing_data:
    class_path: Synthesize
    init_args: {<<: *writing, num_examples: null, num_prompts: $num_prompts, first_iteration_only: false}
$influence
  # One pair for each prompt; the monitor ends the alignment where the writing moves too far.
  preferences:
    class_path: BuildPreferences
    init_args: {examples: probing_data, scores: influence, rule: best_worst, weights: margin}
  aligned_teacher:
    class_path: AlignTeacher
    init_args:
      pairs: preferences
      synthesizer: *asking
      training: {lr: $lr_teacher, schedule: wsd, epochs: 2, batch_size: $batch_pairs, max_length: $pair_length}
      monitor: {every_n_steps: $every_n_steps, num_samples: 32, sampling: *sampling}

  # The aligned teacher writes the training data, and the student learns from its base again.
  training_data:
    class_path: Synthesize
    init_args:
      <<: *writing
      num_examples: $num_training  # of $paper_training
      teacher: aligned_teacher
      guard: {baseline: warmup_data, fallback: unaligned}  # should the writing narrow all the same
      first_iteration_only: false
"""
_SELECTED = """
  # Twice as many examples as are kept; a model behind an endpoint cannot be aligned, so that influence selects.
  candidates:
    class_path: Synthesize
    init_args: {<<: *writing, num_examples: $num_candidates, first_iteration_only: false}
$influence
  training_data:
    class_path: SelectBest
    init_args: {examples: candidates, scores: influence, share: 0.5}

  # The student learns from its base again.
"""
_INFLUENCE = """\
  influence:
    class_path: ScoreExamples
    init_args:
      examples: $scored
      student: latest
      max_length: $max_length
      # $about_method
      signal: {class_path: callbacks.InfluenceProbeCallback, init_args: {lr: $lr_probe, $method}}
"""
_TRAINED = """\
  trained:
    class_path: TrainStudent
    init_args:
      examples: training_data
      training: {lr: $lr_trained, schedule: wsd, epochs: 2, batch_size: $batch_training, max_length: $max_length}
      all_weights: $all_weights  # $about_all_weights
  evaluation:
    class_path: Evaluate
    init_args:
      students: [base, warmup, trained]
      evaluators:
        - {class_path: ResponseLoss}
$exact_match"""


def recipe_text(draft: Draft, file: str, command: str, about: list[str], gpus: str | None) -> str:
    """A whole recipe.

    Args:
        draft: what it says.
        file: what it is called.
        command: that wrote it.
        about: sentences for its head.
        gpus: as the user named them.
    """
    aligned = isinstance(draft.teacher, LookedAt)
    whole = _HEAD + _WRITING + (_ALIGNED if aligned else _SELECTED) + _TRAINED
    values = _values(draft)
    values["influence"] = Template(_INFLUENCE).substitute(values)
    values |= {
        "file": shlex.quote(file),
        "command": command,
        "about": "".join(f"# {line}\n" for line in about) + "#",
        "gpus": f" --gpus {gpus}" if gpus is not None else "",
    }
    return Template(whole).substitute(values)


def _values(draft: Draft) -> dict[str, object]:
    student, texts = draft.student, draft.texts
    (warmup, prompts, training), (of_warmup, of_pairs, of_training) = draft.counts, draft.batch_sizes
    lr_student, lr_teacher, lr_whole = draft.learning_rates
    instructions, responses = draft.instructions, draft.responses
    weak = draft.answer_format[0] != "tags"
    steps = -(-prompts // (of_pairs * draft.device.count)) * 2
    return {
        "run": scalar(draft.run),
        "threads": f"num_threads: {_threads(draft)}\n" if draft.on_cpu else "",
        "student": scalar(student.backbone),
        "student_template": student.layout,
        "about_student_template": student.about_template,
        "student_dtype": "float32" if draft.on_cpu or draft.all_weights else "bfloat16",
        "about_student_dtype": _about_dtype(draft),
        "base_dtype": "float32" if draft.on_cpu else "bfloat16",
        "rank": LORA.r,
        "alpha": round(LORA.alpha),
        **_teacher(draft),
        "generation": _generation(draft),
        "seed_tasks": scalar(texts.seed_tasks),
        "num_seed_tasks": texts.num_seed_tasks,
        "reference": scalar(texts.reference),
        "num_references": texts.num_references,
        "about_reference": ", and the rest of the file is held out as a test set" if texts.split else "",
        "test": f"  test: {scalar(texts.test)}" if texts.test is not None else f"  # test: none; {texts.why_no_test}",
        "devices": draft.device.count,
        "precision": "" if draft.on_cpu else "precision: bf16-mixed, ",
        "log_every": "log_every_n_steps: 1",
        "num_warmup": warmup,
        "num_prompts": prompts,
        "num_training": training,
        "num_candidates": 2 * training,
        "paper_warmup": f"{PAPER[0]:,}",
        "paper_prompts": f"{PAPER[1]:,}",
        "paper_training": f"{PAPER[2]:,}",
        "prompt": f"prompt: {scalar(draft.prompt)}, " if draft.prompt is not None else "",
        "form": draft.answer_format[0],
        "about_answer_format": draft.answer_format[1],
        "seed_shots": draft.num_shots[0],
        "written_shots": draft.num_shots[1],
        "instruction_median": instructions.median,
        "instruction_long": instructions.long,
        "asked_tokens": draft.instruction_tokens,
        "response_median": responses.median,
        "response_long": responses.long,
        "response_tokens": draft.response_tokens,
        "filters": _filters(draft),
        "max_similarity": draft.max_similarity,
        "words": texts.words(),
        "prompts_per_batch": draft.prompts_per_batch,
        "min_acceptance": "      min_acceptance: 0.02  # a weak teacher may fail often\n" if weak else "",
        "lr_student": f"{lr_student:.1e}",
        "lr_teacher": f"{lr_teacher:.1e}",
        "lr_probe": f"{lr_student / 3:.1e}",
        "lr_trained": f"{lr_whole if draft.all_weights else lr_student:.1e}",
        "of_warmup": of_warmup,
        "batch_pairs": of_pairs,
        "batch_training": of_training,
        "max_length": draft.max_length,
        "pair_length": draft.pair_length,
        "every_n_steps": max(2, steps // 3),
        "scored": "probing_data" if isinstance(draft.teacher, LookedAt) else "candidates",
        **_method(draft),
        "all_weights": "true" if draft.all_weights else "false",
        "about_all_weights": _about_all_weights(draft),
        "exact_match": _exact_match(draft),
    }


def _teacher(draft: Draft) -> dict[str, object]:
    teacher = draft.teacher
    if isinstance(teacher, LookedAt):
        found = Template(_TEACHER).substitute(
            teacher=scalar(teacher.backbone),
            teacher_template=teacher.layout,
            about_teacher_template=teacher.about_template,
            base_dtype="float32" if draft.on_cpu else "bfloat16",
            rank=LORA.r,
            alpha=round(LORA.alpha),
        )
        return {"teacher": found, "writer": "teacher: latest"}
    return {"teacher": _endpoint(teacher), "writer": "teacher: writer"}


def _endpoint(endpoint: Endpoint) -> str:
    if endpoint.price is None:
        price = (
            "# price: {input: 0.15, output: 0.6}  # US dollars for a million tokens; then a dry run says what it costs"
        )
    else:
        price = f"price: {{input: {endpoint.price[0]}, output: {endpoint.price[1]}}}  # US dollars for a million tokens"
    return Template(_ENDPOINT).substitute(
        model=scalar(endpoint.model),
        base_url=scalar(endpoint.base_url),
        api_key_env=endpoint.api_key_env or "null",
        price=price,
    )


def _generation(draft: Draft) -> str:
    if not draft.vllm:
        note = "" if draft.on_cpu else "  # VLLMBackend is faster: pip install 'montessori-pl[vllm]'"
        return f"  class_path: montessori_pl.generation.TransformersBackend{note}"
    parts = draft.tensor_parallel
    copies = draft.device.count // parts
    return (
        "  class_path: montessori_pl.generation.VLLMBackend\n"
        "  init_args:\n"
        f"    max_model_len: {draft.max_model_len}  # the longest prompt with its completion\n"
        f"    tensor_parallel_size: {parts}  # GPUs over which one copy is split\n"
        f"    data_parallel_size: {copies}  # copies that share the requests"
    )


def _threads(draft: Draft) -> int:
    import torch

    return torch.get_num_threads()


def _filters(draft: Draft) -> str:
    settings = draft.texts.filter_settings()
    if not settings:
        return ""
    return f"      instruction_filter: {json.dumps(settings)}  # the default would reject some of your seed tasks\n"


def _method(draft: Draft) -> dict[str, object]:
    if draft.on_cpu:
        method = "method: first_order, refine: 0, calibration_examples: 4"
        return {
            "method": method,
            "about_method": "A gradient for each example; exact influence of 4 says how good it is.",
        }
    return {"method": "method: auto", "about_method": "The cheapest method that agrees with exact influence."}


def _about_dtype(draft: Draft) -> str:
    if draft.on_cpu:
        return "a CPU computes in it"
    return "all weights are trained in the end" if draft.all_weights else "half the memory of the frozen base"


def _about_all_weights(draft: Draft) -> str:
    if draft.all_weights:
        return "weights, gradients and two moments in float32 have room; lr is for all weights"
    return "an adapter; all weights take five times the memory, or more, and more time"


def _exact_match(draft: Draft) -> str:
    if not draft.short_answers:
        return ""
    settings = f"{{class_path: ExactMatch, init_args: {{max_tokens: {draft.response_tokens}}}}}"
    return f"        - {settings}  # answers are short\n"


def scalar(text: str) -> str:
    """A text as YAML, in quotation marks where it needs any."""
    if _PLAIN.fullmatch(text) and not re.fullmatch(r"(?i)[-+.\d_e]+|true|false|null|yes|no|on|off|~", text):
        return text
    return json.dumps(text, ensure_ascii=False)
