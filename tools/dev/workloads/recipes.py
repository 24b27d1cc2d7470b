"""Published recipes as workloads, made from their flagfiles and the shapes of their models."""

import dataclasses
import pathlib
from collections.abc import Mapping

from pipeline import run_distill
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import LocalLocation
from pipeline.distill.settings import DistillConfig
from pipeline.distill.student import derive_config
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.storage.codecs import STATES
from tools.dev.workloads.step_programs import Workload


# Sources of the teachers' shapes are the `config.json` or `bert_config.json` files of
# bert-base-uncased and bert-large-uncased (Devlin et al., 2019), of Chinese RoBERTa-wwm-ext and its
# large version (Cui et al., 2019), and of RuBERT (Kuratov and Arkhipov, 2019). Sources of the
# students' shapes are in their recipes.
def _shape(
    vocab_size: int,
    size: int = 768,
    num_layers: int = 12,
    num_heads: int = 12,
    intermediate_size: int | None = None,
) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size or 4 * size,
        hidden_act="gelu",
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


def _large(vocab_size: int) -> EncoderConfig:
    return _shape(vocab_size, size=1024, num_layers=24, num_heads=16)


# answerdotai/ModernBERT-base (Warner et al., 2024).
_MODERNBERT = EncoderConfig(
    vocab_size=50_368,
    hidden_size=768,
    num_hidden_layers=22,
    num_attention_heads=12,
    intermediate_size=1_152,
    max_position_embeddings=8_192,
    type_vocab_size=0,
    model_type="modernbert",
    **FAMILIES["modernbert"].config_defaults,
)
_ENGLISH, _CHINESE, _RUSSIAN = 30_522, 21_128, 119_547
SHAPES: Mapping[str, EncoderConfig] = {
    "bert-base": _shape(_ENGLISH),
    "bert-large": _large(_ENGLISH),
    "roberta-wwm-ext": _shape(_CHINESE),
    "roberta-wwm-ext-large": _large(_CHINESE),
    "rubert": _shape(_RUSSIAN),
    "modernbert-base": _MODERNBERT,
    "tinybert": _shape(_ENGLISH, 312, 4, intermediate_size=1_200),
    "minilm": _shape(_ENGLISH, 384, 6),
    "minirbt": _shape(_CHINESE, 256, 6, 8),
    # This student has all tokens of its teacher.
    "rubert-tiny": _shape(_RUSSIAN, 312, 3, intermediate_size=600),
}


def find_shape(name: str) -> EncoderConfig:
    """Returns the shape of a published model, or that of a configuration file.

    Args:
        name: a key of `SHAPES`, or the path of a `config.json` or `bert_config.json`.

    Raises:
        InputError: the name is neither.
    """
    if name in SHAPES:
        return SHAPES[name]
    path = LocalLocation(name)
    if not path.is_file():
        raise InputError(None, f"one of {', '.join(SHAPES)} or a config.json", name)
    return EncoderConfig.from_json(path)


_FOLDER = pathlib.Path(__file__).parents[3] / "data_specs" / "recipes"
# The k of the cache if the flagfile does not set it.
_TRUNCATION_FACTOR = 128


@dataclasses.dataclass(frozen=True)
class RecipeModels:
    """Facts about a recipe that are not in its flagfile.

    Attributes:
        teacher: a key of `SHAPES`.
        student: a key of `SHAPES`; None for a student with layers of the teacher.
        live: whether the teacher runs together with the student.
        max_predictions_per_seq: flag of the `create_pretraining_data` in the recipe's comment.
        logit_encoding: flag of the `create_teacher_output_data` in the recipe's comment.
        hidden_groups: groups of that command's cached hidden states.
    """

    teacher: str
    student: str | None = None
    live: bool = False
    max_predictions_per_seq: int = 20
    logit_encoding: str = "float16"
    hidden_groups: tuple[str, ...] = ()


RECIPES: Mapping[str, RecipeModels] = {
    "roberta_wwm": RecipeModels("roberta-wwm-ext-large", "roberta-wwm-ext"),
    "roberta_wwm_3layers": RecipeModels("roberta-wwm-ext-large"),
    "distilbert": RecipeModels("bert-base", live=True, max_predictions_per_seq=77),
    "distilrubert_tiny": RecipeModels("rubert", live=True, max_predictions_per_seq=77),
    "tinybert_general": RecipeModels("bert-base", "tinybert", live=True),
    "minilm_v2": RecipeModels("bert-base", "minilm", live=True, max_predictions_per_seq=6),
    "minirbt": RecipeModels(
        "roberta-wwm-ext",
        "minirbt",
        max_predictions_per_seq=77,
        logit_encoding=STATES,
        hidden_groups=("0", "2", "4", "6", "8", "10", "12"),
    ),
    "rubert_tiny": RecipeModels("rubert", "rubert-tiny"),
}


def read_recipe(
    recipe: str,
    *,
    student_config: str | None = None,
    teacher_config: str | None = None,
    max_seq_length: int = 512,
    max_predictions_per_seq: int | None = None,
) -> Workload:
    """Returns the workload of a recipe in `RECIPES`, by default with the recipe's models.

    Raises:
        InputError: a file is malformed, or the inputs are too long for a model.
    """
    models = RECIPES[recipe]
    config = _read_flags(recipe, models)
    with naming_setting("teacher_config"):
        teacher = find_shape(teacher_config or models.teacher)
    if student_config is not None:
        with naming_setting("student_config"):
            student = find_shape(student_config)
    elif models.student is not None:
        student = SHAPES[models.student]
    else:
        student, _ = derive_config(teacher, config.student)
    workload = Workload(
        config,
        student,
        teacher,
        max_seq_length,
        max_predictions_per_seq or models.max_predictions_per_seq,
        config.truncation_factor or _TRUNCATION_FACTOR,
        models.logit_encoding,
        models.hidden_groups,
    )
    expect_models_fit(workload)
    return workload


def _read_flags(recipe: str, models: RecipeModels) -> DistillConfig:
    """Returns the settings of a flagfile, with placeholders for the paths of models."""
    values = run_distill.define_flags()
    start = "init_from" if models.student is None else "student"
    arguments = [f"--flagfile={_FOLDER / recipe}.flags", f"--{start}=model", "--output_dir=."]
    if models.live:
        arguments.append("--teacher=model")
    values(["run_distill", *arguments])
    return run_distill.read_config(values)


def expect_models_fit(workload: Workload) -> None:
    """Checks that student and teacher can read the inputs of a workload.

    Raises:
        InputError: inputs have more tokens than a model has positions, inputs have more masked
            positions than tokens, or the vocabularies have different sizes.
    """
    shapes: dict[str, EncoderConfig] = {"student": workload.student, "teacher": workload.teacher}
    for name, shape in shapes.items():
        if workload.max_seq_length > shape.max_input_length:
            raise InputError(
                Setting("max_seq_length"),
                f"at most {shape.max_input_length}, the number of positions of the {name}",
                workload.max_seq_length,
            )
    if workload.max_predictions_per_seq > workload.max_seq_length:
        raise InputError(
            Setting("max_predictions_per_seq"),
            f"at most `max_seq_length`={workload.max_seq_length}",
            workload.max_predictions_per_seq,
        )
    if workload.student.vocab_size != workload.teacher.vocab_size:
        raise InputError(
            Setting("student_config"),
            f"the teacher's {workload.teacher.vocab_size} tokens",
            workload.student.vocab_size,
        )
