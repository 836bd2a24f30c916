"""One schema per result table: column, type, unit, and what it says.

Every table also carries the columns of `TRACE`, so that a row can be traced without its run folder. `basis`
says where the figures of a row come from: `measured` (counted or timed on something that ran, be it a
simulated crossbar) or `modelled` (computed from a formula).
"""

import pyarrow as pa

BASES = ("measured", "modelled")


def _column(name: str, kind: pa.DataType, about: str, unit: str = "", *, empty: bool = False) -> pa.Field:
    """A column with its description and unit as metadata; `empty` says that a row may lack it."""
    return pa.field(name, kind, nullable=empty, metadata={"about": about, "unit": unit})


_text, _int, _real, _truth = pa.string(), pa.int64(), pa.float64(), pa.bool_()

TRACE = (
    _column("run_id", _text, "run folder that the row was written to"),
    _column("seed", _int, "seed of the run"),
    _column("config_hash", _text, "first 12 hexadecimal digits of the SHA-256 of the run's settings as JSON"),
    _column("code_version", _text, "version of nvcim, with the commit where it ran from a checkout"),
)
_BASIS = _column("basis", _text, "measured or modelled")

STAGES = pa.schema(
    [
        _column("stage", _text, "stage of the job, in the order it ran"),
        _column("seconds", _real, "wall-clock time of the stage", "s"),
        _BASIS,
    ]
)

TOKEN_SETS = pa.schema(
    [
        _column("node_id", _text, "node that tuned the set"),
        _column("device", _text, "memory device of the node's crossbar"),
        _column("method", _text, "how it was tuned"),
        _column("sample", _text, "representative sample it was tuned for"),
        _column("label", _text, "domain of that sample, empty where unknown"),
        _column("slot", _int, "place in the prompt memory"),
        _column("first_loss", _real, "answer loss at the first tuning step", "nats per token"),
        _column("last_loss", _real, "answer loss at the last tuning step", "nats per token"),
        _column("steps", _int, "updates made in tuning"),
        _column("stopped", _text, "why tuning ended: steps, patience or not finite"),
        _column(
            "truncated", _int, "samples it was tuned on whose text was cut to fit the context", "samples"
        ),
        _column(
            "choice_rule",
            _text,
            "how the number of clusters was set: fixed, ratio or silhouette; this and the other columns of the choice "
            "are empty where no representative was chosen",
            empty=True,
        ),
        _column("choice_k", _int, "clusters that the buffer was split into", empty=True),
        _column(
            "choice_silhouette",
            _real,
            "mean silhouette of that number of clusters, -1 to 1; empty where no numbers were compared",
            empty=True,
        ),
        _column(
            "choice_cosine", _real, "cosine of the representative to the centre of its cluster", empty=True
        ),
        _column("choice_cluster", _int, "size of the representative's cluster", "samples", empty=True),
        _column("choice_buffer", _int, "samples in the buffer that was clustered", "samples", empty=True),
        _BASIS,
    ]
)

FLEET_ANSWERS = pa.schema(
    [
        _column("node_id", _text, "node that answered"),
        _column("user_id", _text, "user of the node"),
        _column("device", _text, "memory device of the node's crossbar"),
        _column("sigma", _real, "programming variation at which the node's crossbar was written"),
        _column("method", _text, "how the prompt was made and found: untuned, one-for-all, mips, nvcim-pt"),
        _column("task", _text, "task of the sample, for example LaMP_2"),
        _column("seq", _int, "place of the query in the user's stream"),
        _column("input", _text, "the query"),
        _column("reference", _text, "what the user wrote"),
        _column("output", _text, "what the model answered"),
        _column("slot", _int, "slot of the prompt memory that was retrieved", empty=True),
        _column("similarity", _real, "similarity of the retrieved slot as the crossbar read it", empty=True),
        _column("hit", _truth, "whether the slot was tuned for the query's domain", empty=True),
        _column("metric", _text, "name of the task's score, for example accuracy or rouge1"),
        _column("score", _real, "the task's score of this answer"),
        _column("prompt_tokens", _int, "tokens of the prompt, virtual ones included", "tokens"),
        _column("completion_tokens", _int, "tokens that the model added", "tokens"),
        _BASIS,
    ]
)

FLEET_SCORES = pa.schema(
    [
        _column("node_id", _text, "node that was scored"),
        _column("device", _text, "memory device of the node's crossbar"),
        _column("sigma", _real, "programming variation at which the node's crossbar was written"),
        _column("method", _text, "how the prompt was chosen"),
        _column("task", _text, "task of the samples"),
        _column("metric", _text, "name of the task's score"),
        _column("queries", _int, "number of queries behind the score"),
        _column("score", _real, "mean score over the queries"),
        _column("hit_rate", _real, "share of queries whose slot was tuned for their domain", empty=True),
        _BASIS,
    ]
)

SEGMENTATION_SCORES = pa.schema(
    [
        _column("model", _text, "weights: float, or the quantizer and its bits, for example inq-5"),
        _column("arithmetic", _text, "ideal (digital float32) or crossbar"),
        _column("device", _text, "memory device of the crossbars", empty=True),
        _column("sigma", _real, "programming variation of the crossbars", empty=True),
        _column("chip", _int, "which independently programmed chip, from 0", empty=True),
        _column("images", _int, "number of images scored"),
        _column("object_f1", _real, "object F1 of the GlaS contest, 0..1"),
        _column("object_dice", _real, "object Dice of the GlaS contest, 0..1"),
        _column("object_hausdorff", _real, "object Hausdorff distance of the GlaS contest", "px"),
        _column("weight_bytes", _int, "memory of the weights, counted as they are packed", "B", empty=True),
        _BASIS,
    ]
)

_ARM = (
    _column("part", _text, "part of the comparison: full, grid, budget or crossbar"),
    _column(
        "repeat",
        _int,
        "which independent repetition, from 0; each has a split, start set and networks of its own",
    ),
    _column(
        "rule",
        _text,
        "how the training images were chosen: suggestive, uncertainty, random, or all (no choice)",
    ),
    _column(
        "suggestive",
        _text,
        "weights of the networks that chose them: float (SA), or for example inq-7 (QSA); empty where none did",
        empty=True,
    ),
    _column("quantizer", _text, "weights of the segmentation networks: float, inq-5, twn and so on"),
    _column("networks", _int, "networks whose probabilities are averaged"),
    _column(
        "round",
        _int,
        "round of annotation, 0 for the start set; empty where all images were used",
        empty=True,
    ),
)
_IMAGE_SCORES = (
    _column("object_f1", _real, "object F1 of the GlaS contest, 0..1"),
    _column("object_dice", _real, "object Dice of the GlaS contest, 0..1"),
    _column("object_hausdorff", _real, "object Hausdorff distance of the GlaS contest", "px"),
)

SEGMENTATION_COMPARISON = pa.schema(
    [
        *_ARM,
        _column("annotated", _int, "distinct images that labels were needed of"),
        _column("annotated_share", _real, "the same as a share of the pool"),
        _column("images", _int, "held-back images scored"),
        *(
            _column(f.name, f.type, f"{f.metadata[b'about'].decode()}; pooled over images")
            for f in _IMAGE_SCORES
        ),
        _column("mean_object_f1", _real, "object F1, mean over images"),
        _column("mean_object_dice", _real, "object Dice, mean over images"),
        _column("mean_object_hausdorff", _real, "object Hausdorff distance, mean over images", "px"),
        _column("pixel_dice", _real, "Dice of objects against background, pooled over images"),
        _column("pixel_iou", _real, "intersection over union of the same, pooled over images"),
        _column("aji", _real, "aggregated Jaccard index, pooled over images"),
        _column("pq", _real, "panoptic quality, pooled over images"),
        _column("one_side_empty", _int, "images where exactly one of truth and prediction holds no object"),
        _column(
            "weight_bytes",
            _int,
            "weights of all the networks as they lie on disk, all overhead included",
            "B",
        ),
        _column("float32_bytes", _int, "the same weights as float32", "B"),
        _column("file_bytes", _int, "whole files of the networks, normalisation and header included", "B"),
        _column(
            "trained_seconds",
            _real,
            "training of all the networks, float start included, one after another",
            "s",
        ),
        _BASIS,
    ]
)

SEGMENTATION_IMAGES = pa.schema(
    [
        *_ARM,
        _column("image", _text, "held-back image"),
        _column("objects_segmented", _int, "objects found"),
        _column("objects_truth", _int, "objects of the ground truth"),
        *_IMAGE_SCORES,
        _BASIS,
    ]
)

SEGMENTATION_ROUNDS = pa.schema(
    [
        *(column for column in _ARM if column.name in ("repeat", "rule", "suggestive", "round")),
        _column("image", _text, "image whose labels were revealed"),
        _column("place", _int, "place in the order of suggestion, from 0"),
        _column(
            "uncertainty", _real, "of the networks over the image's pixels; empty where not asked", empty=True
        ),
        _column("annotated", _int, "images annotated once the round is over"),
        _BASIS,
    ]
)

SEGMENTATION_SPLIT = pa.schema(
    [
        _column("repeat", _int, "which independent repetition, from 0"),
        _column("image", _text, "name of the image"),
        _column("role", _text, "pool, or held back"),
        _column("height", _int, "of the image", "px"),
        _column("width", _int, "of the image", "px"),
        _column("objects", _int, "objects of the ground truth"),
        _BASIS,
    ]
)

SEGMENTATION_CROSSBARS = pa.schema(
    [
        _column("repeat", _int, "which independent repetition, from 0"),
        _column("model", _text, "weights: float, inq-5 and so on"),
        _column("arithmetic", _text, "how products are computed: ideal, or a kind of crossbar"),
        _column("device", _text, "memory device of the crossbars", empty=True),
        _column("technology", _text, "technology of the device", empty=True),
        _column("sigma", _real, "programming variation of the crossbars", empty=True),
        _column("cell_bits", _int, "bits of a memory cell", "bit", empty=True),
        _column("weight_bits", _int, "bits of a weight on the crossbars", "bit", empty=True),
        _column(
            "step", _text, "how a layer's step was chosen: by its largest weight, or by the error", empty=True
        ),
        _column("reference_columns", _int, "matrices written with a reference column more", empty=True),
        _column("chip", _int, "which independently programmed chip, from 0", empty=True),
        _column("images", _int, "number of images scored"),
        *_IMAGE_SCORES,
        _column(
            "weight_error",
            _real,
            "RMS of the weights as the cells hold them less the digital ones",
            empty=True,
        ),
        _column(
            "level_error", _real, "the same without variation: what the cells' levels alone lose", empty=True
        ),
        _column("zeroed", _real, "share of the nonzero weights that the cells' levels make zero", empty=True),
        _BASIS,
    ]
)

SEGMENTATION_LEVELS = pa.schema(
    [
        _column("repeat", _int, "which independent repetition, from 0"),
        _column("model", _text, "weights: float, inq-5 and so on"),
        _column("device", _text, "memory device of the crossbars"),
        _column("sigma", _real, "programming variation of the crossbars"),
        _column("weight_bits", _int, "bits of a weight on the crossbars", "bit"),
        _column("step", _text, "an array's step: by its largest weight, or the next power of two above"),
        _column("level_error", _real, "RMS error of the stored weights without variation, over their RMS"),
        _column("spread_error", _real, "expected RMS of what programming variation adds, over their RMS"),
        _column("expected_error", _real, "root of the sum of both's squares"),
        _column("zeroed", _real, "share of the nonzero weights that the cells' levels make zero"),
        _BASIS,
    ]
)

SEGMENTATION_MEMORY = pa.schema(
    [
        _column("network", _text, "the run's own, trained, or paper-sized, with initial weights"),
        _column("model", _text, "weights: float, inq-5 and so on"),
        _column("weights", _int, "numbers in the convolutions"),
        _column("float32_file_bytes", _int, "whole file of the same network in float32", "B"),
        _column("file_bytes", _int, "whole file with packed weights, all overhead included", "B"),
        _column("ratio", _real, "float32 file over packed file"),
        _column(
            "entropy_file_bytes",
            _int,
            "whole file, entropy-coded; empty where nothing is packed and for untrained weights",
            "B",
            empty=True,
        ),
        _column("entropy_ratio", _real, "float32 file over entropy-coded file", empty=True),
        _BASIS,
    ]
)

SEGMENTATION_TASKS = pa.schema(
    [
        _column("task", _text, "name of the task in the ledger"),
        _column("part", _text, "part of the comparison"),
        _column("repeat", _int, "which independent repetition, from 0"),
        _column("status", _text, "done, or failed"),
        _column("error", _text, "why it failed", empty=True),
        _column("seconds", _real, "wall-clock time of the task on its worker", "s"),
        _BASIS,
    ]
)

SWEEP_TRIALS = pa.schema(
    [
        _column("trial_id", _text, "the trial's name, made from its point in the search space"),
        _column("device", _text, "memory device of the crossbars"),
        _column("weight_bits", _int, "bits of a stored weight", "bit"),
        _column("sigma", _real, "global programming variation"),
        _column("repeat", _int, "which independent programming of the same setting, from 0"),
        _column("metric", _text, "what the score says, for example object_dice or hit_rate"),
        _column("better", _text, "max or min: which direction of the score is better"),
        _column("score", _real, "the trial's score", empty=True),
        _column("status", _text, "done, or failed"),
        _column("error", _text, "why the trial failed", empty=True),
        _column("seconds", _real, "wall-clock time of the trial's evaluation", "s"),
        _BASIS,
    ]
)

SERVING_REQUESTS = pa.schema(
    [
        _column("endpoint", _text, "path that was asked, for example /v1/completions"),
        _column("case", _text, "what the request shows, for example the user or the image"),
        _column("status", _int, "HTTP status of the answer"),
        _column("latency_ms", _real, "time from sending the request to having its answer", "ms"),
        _column("prompt_tokens", _int, "tokens of the prompt", "tokens", empty=True),
        _column("completion_tokens", _int, "tokens of the answer", "tokens", empty=True),
        _BASIS,
    ]
)

_COMPARED = (
    _column("part", _text, "part of the comparison: grid, sigma sweep or buffer sweep", empty=True),
    _column("model", _text, "causal LM: 'embedded', a path or a hub name"),
    _column("data", _text, "'generated', or the name of the folder of LaMP folders"),
    _column("task", _text, "task, for example LaMP_2"),
    _column("method", _text, "how prompts are made, kept and found, for example nvcim-pt"),
    _column("device", _text, "memory device of the crossbar; 'none' for a method without one"),
    _column(
        "sigma", _real, "programming variation of the crossbar; empty for a method without one", empty=True
    ),
    _column("sigma_unit", _text, "what sigma is relative to: full_range or level_step", empty=True),
    _column("buffer", _int, "size of the data buffer", "samples"),
    _column("repeat", _int, "which independent repetition, from 0: users, tuning and chips of its own"),
)

COMPARISON_ANSWERS = pa.schema(
    [
        *_COMPARED,
        _column("user_id", _text, "user who asked"),
        _column("query", _int, "place of the query in the user's stream"),
        _column("domain", _text, "domain of the query, empty where unknown"),
        _column("found", _text, "label of the token set that answered, empty where there is none"),
        _column("hit", _truth, "whether that set was tuned for the query's domain", empty=True),
        _column("domains", _int, "domains of the user, 0 where unknown"),
        _column("reference", _text, "what the user wrote"),
        _column("output", _text, "what the model answered"),
        _column("parsed", _truth, "whether the answer is one that the task allows"),
        _column("score", _real, "accuracy or ROUGE-1 of this answer, 0..1"),
        _column("rouge_l", _real, "ROUGE-L (F) of this answer, 0..1", empty=True),
        _column("error", _real, "distance of a rating from the user's", "points of the scale", empty=True),
        _BASIS,
    ]
)

COMPARISON_SETS = pa.schema(
    [
        *_COMPARED,
        _column("user_id", _text, "user whose sets these are"),
        _column("sets", _int, "token sets, prefixes or adapters kept for the user"),
        _column("storage_bytes", _int, "what they take", "B"),
        _column("trained_parameters", _int, "numbers that were trained for the user"),
        _column("tuning_steps", _int, "optimiser steps"),
        _column(
            "trained_tokens",
            _int,
            "text and virtual tokens that went forward and backward through the model in training",
            "tokens",
        ),
        _column(
            "reconstruction_error",
            _real,
            "RMS of stored against tuned tokens as they are read back, relative to the tuned tokens' RMS",
            empty=True,
        ),
        _column("truncated", _int, "samples cut because they were longer than the context"),
        _column(
            "unanswered", _int, "queries too long for the context: they are never cut, and count as wrong"
        ),
        _column(
            "failed", _int, "tuning jobs that stopped with a reason, for example a loss that is not finite"
        ),
        _BASIS,
    ]
)

COMPARISON_METRICS = pa.schema(
    [
        *_COMPARED,
        _column("queries", _int, "answers behind the value"),
        _column("metric", _text, "official metric of the task, for example macro_f1 or rmse"),
        _column("value", _real, "the metric over all answers of the repetition"),
        _BASIS,
    ]
)

RECONSTRUCTION = pa.schema(
    [
        _column("device", _text, "memory device of the crossbar"),
        _column("sigma", _real, "programming variation"),
        _column("weight_bits", _int, "bits of a code's element, sign included"),
        _column("code", _real, "RMS error of token sets encoded and decoded, relative to their RMS"),
        _column("quantised", _real, "the same, rounded to the array's integers"),
        _column("written", _real, "the same, written to the device and read back: mean over draws"),
        _column("spread", _real, "standard deviation of that over draws"),
        _column("draws", _int, "how often the sets were written"),
        _BASIS,
    ]
)

COMPARISON_POINTS = pa.schema(
    [
        _column("point_id", _text, "name of the point in the ledger"),
        _column("part", _text, "part of the comparison: grid, sigma sweep or buffer sweep"),
        _column("model", _text, "causal LM"),
        _column("task", _text, "task"),
        _column("sigma", _real, "programming variation of the crossbars"),
        _column("buffer", _int, "size of the data buffer", "samples"),
        _column("repeat", _int, "which independent repetition, from 0"),
        _column("devices", _int, "devices compared at the point"),
        _column("methods", _int, "methods compared at the point"),
        _column("answers", _int, "queries answered, over all devices and methods"),
        _column("status", _text, "done, or failed"),
        _column("error", _text, "why the point failed", empty=True),
        _column("seconds", _real, "wall-clock time of the point", "s"),
        _BASIS,
    ]
)

RETRIEVAL_COST = pa.schema(
    [
        _column("ovts", _int, "token sets that the search goes through"),
        _column("device", _text, "memory devices of the crossbar that the row is about or compares with"),
        _column("what", _text, "crossbar, this CPU or edge CPU"),
        _column("processor", _text, "what searches, and in which arithmetic"),
        _column("latency_s", _real, "time of one search", "s"),
        _column("energy_j", _real, "energy of one search; empty where unknown", "J", empty=True),
        _column("time_ratio", _real, "the processor's time over the crossbar's", empty=True),
        _column("energy_ratio", _real, "the processor's energy over the crossbar's", empty=True),
        _column("arrays", _int, "arrays of the crossbar that hold the sets", empty=True),
        _column("rounds", _int, "rounds in which the chip reads them", empty=True),
        _BASIS,
        _column("assumption", _text, "what the figures rest on"),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "stages": STAGES,
    "token_sets": TOKEN_SETS,
    "reconstruction": RECONSTRUCTION,
    "fleet_answers": FLEET_ANSWERS,
    "fleet_scores": FLEET_SCORES,
    "segmentation": SEGMENTATION_SCORES,
    "segmentation_scores": SEGMENTATION_COMPARISON,
    "segmentation_images": SEGMENTATION_IMAGES,
    "segmentation_rounds": SEGMENTATION_ROUNDS,
    "segmentation_split": SEGMENTATION_SPLIT,
    "segmentation_crossbars": SEGMENTATION_CROSSBARS,
    "segmentation_levels": SEGMENTATION_LEVELS,
    "segmentation_memory": SEGMENTATION_MEMORY,
    "segmentation_tasks": SEGMENTATION_TASKS,
    "sweep": SWEEP_TRIALS,
    "serving": SERVING_REQUESTS,
    "comparison": COMPARISON_ANSWERS,
    "comparison_sets": COMPARISON_SETS,
    "comparison_metrics": COMPARISON_METRICS,
    "comparison_points": COMPARISON_POINTS,
    "retrieval_cost": RETRIEVAL_COST,
}


def table_schema(name: str) -> pa.Schema:
    """Return the schema of a known table, without the columns of `TRACE`.

    Raises:
        KeyError: `name` is not in `TABLES`; the message lists those that are.
    """
    if name not in TABLES:
        raise KeyError(f"table '{name}' has no schema; known: {', '.join(TABLES)}")
    return TABLES[name]
