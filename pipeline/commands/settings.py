"""Settings that belong to a command, and not to what it makes."""

import dataclasses

from data_specs import corpora as known_corpora
from data_specs import recipes
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting
from pipeline.tokenizers.segmenters import SEGMENTERS

LOCAL, RAY = "local", "ray"


@dataclasses.dataclass(frozen=True)
class BackendSettings(Settings):
    """The framework that Keras computes with."""

    backend: str = setting(
        "tensorflow", "Framework that Keras computes with.", choices=("tensorflow", "jax")
    )


@dataclasses.dataclass(frozen=True)
class RunnerSettings(Settings):
    """Where jobs run; the settings of Ray itself are those of `RayConfig`."""

    runner: str = setting(
        LOCAL,
        "Where the jobs, of at most one shard each, run: on this machine, or on Ray, whose nodes "
        "must see the same files under the same paths and have the same packages.",
        choices=(LOCAL, RAY),
    )


@dataclasses.dataclass(frozen=True)
class CorpusSettings(Settings):
    """The corpora that `create_pretraining_data` reads."""

    input_dir: str | None = setting(
        None,
        "The corpus: a file, a directory or a glob, or a dataset of the Hugging Face hub, "
        "hf://datasets/ORG/NAME@REVISION/**/*.parquet. Parquet, Arrow, tar and compressed files "
        "are known by their content; .json, .jsonl, .csv and .tsv by their names; others are "
        "text, see `documents`. With `tfds_name`: the directory of TensorFlow datasets.",
    )
    corpus_spec: str | None = setting(
        None,
        "Declaration of how the files of `input_dir` are read: "
        f"{', '.join(known_corpora.names())}, or a .yaml file of the form of those in "
        "data_specs/corpora.",
    )
    hf_split: str | None = setting(
        None,
        "Split of the dataset of the Hugging Face hub that `input_dir` names, as ORG/NAME or "
        "hf://datasets/ORG/NAME; train by default.",
    )
    tfds_name: str | None = setting(
        None, "In place of files: a TensorFlow dataset, name[/config][:version]."
    )
    tfds_split: str | None = setting(
        None, "Requires `tfds_name`. Split of the dataset; train by default."
    )
    text_fields: tuple[str, ...] | None = setting(
        None,
        "Fields of a row that are its text. By default as `corpus_spec` declares, the only text "
        "feature of `tfds_name`, or title,content.",
        parse=parse_words,
        aliases=("params",),
    )
    documents: str | None = setting(
        None,
        "What separates the documents of a text file: blank_lines, or lines, where each line is "
        "a document. As `corpus_spec` declares by default, else blank_lines.",
        choices=known_corpora.SEPARATIONS,
    )
    segmenter: str | None = setting(
        None,
        "Segmenter that marks Chinese words; as `corpus_spec` declares by default, else jieba.",
        choices=tuple(SEGMENTERS),
    )
    corpora: Location | None = setting(
        None, "In place of one corpus: a .yaml file with several corpora and their weights."
    )
    random_next: bool | None = setting(None, "Accepted for old command lines; has no effect.")

    def sources(self) -> tuple[known_corpora.CorpusSource, ...]:
        """Returns the corpora that the settings name.

        Raises:
            InputError: they name none, both a mixture and a corpus, or an invalid mixture.
        """
        names = ("input_dir", "corpus_spec", "hf_split", "tfds_name", "tfds_split")
        names += ("text_fields", "documents", "segmenter")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.corpora is not None:
            if given:
                received = f"`{next(iter(given))}` is given together with it"
                hint = "write it into the file"
                raise InputError(Setting("corpora"), received=received, hint=hint)
            try:
                return known_corpora.load_mixture(self.corpora)
            except ValueError as error:
                raise InputError(Setting("corpora"), received=error) from error
        if self.input_dir is None and self.tfds_name is None:
            raise InputError("missing", received="`input_dir`, `tfds_name` or `corpora`")
        if self.text_fields == ():
            raise InputError(Setting("text_fields"), "the names of fields", "none")
        try:
            return (known_corpora.CorpusSource(**given),)
        except ValueError as error:
            # It names the setting first.
            name, _, text = str(error).partition(": ")
            raise InputError(Setting(name), received=text) from error


@dataclasses.dataclass(frozen=True)
class ProcessSettings(Settings):
    """How a process of `run_distill` joins the others."""

    coordinator_address: str | None = setting(
        None,
        "Requires `distribution`=data_parallel. HOST:PORT of process 0. Detected automatically, "
        "with `num_processes` and `process_id`, on Cloud TPU pods, Slurm and Open MPI.",
    )
    num_processes: int | None = setting(
        None,
        "Requires `distribution`=data_parallel. Number of processes; 1 joins no others.",
        low=1,
    )
    process_id: int | None = setting(
        None, "Requires `distribution`=data_parallel. Index of this process, from 0.", low=0
    )


@dataclasses.dataclass(frozen=True)
class RecipeSettings(Settings):
    """Ready-made settings of `run_distill`, and how to try them."""

    recipe: str | None = setting(
        None,
        f"Published recipe whose flags are read first: {', '.join(recipes.names())}. Flags after "
        "it replace those of the recipe.",
    )
    run_local: bool = setting(
        False,
        "Whether to shrink batches, steps and evaluation to a run of minutes, which shows that a "
        "recipe runs and makes no claim of quality.",
    )
