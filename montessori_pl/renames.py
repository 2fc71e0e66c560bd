"""Settings and classes that had other names, so that an error can name the new one. Knows only words."""

SETTINGS = {
    "base_precision": "base_dtype",
    "chat": "chat_template",
    "distinct_share": "distinct_rate",
    "examples_per_round": "examples_per_batch",
    "instructions_per_round": "instructions_per_batch",
    "items_per_round": "items_per_batch",
    "keep_teachers": "save_all_checkpoints",
    "loss": "loss_type",
    "max_failed_share": "max_failed_rate",
    "max_opening_share": "max_first_word_rate",
    "max_same_share": "max_same_rate",
    "near_duplicate_share": "near_duplicate_rate",
    "nll_weight": "sft_weight",
    "opening_entropy": "first_word_entropy",
    "parsed_share": "parsed_rate",
    "prompts_per_round": "prompts_per_batch",
    "seeds": "seed_tasks",
    "unlike": "deduplicate_against",
    "watch": "monitor",
}
"""By old name, whatever class or section the setting belongs to."""
NOTES = {"loss": "what was conservative is now sigmoid with a label_smoothing"}
"""What else to know of a setting whose values changed, too."""
CLASSES = {
    "Answer": "GenerateResponses",
    "Combine": "ConcatExamples",
    "FindMistakes": "SelectHardExamples",
    "Pair": "BuildPreferences",
    "PickResponses": "RouteResponses",
    "QuantitySignal": "ScalarSignal",
    "Score": "ScoreExamples",
}
"""By old name, without the module."""
