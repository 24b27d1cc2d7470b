"""Settings of the commands that are not settings of their output."""

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
    """The runner of the jobs. `RayConfig` has the settings of Ray itself."""

    runner: str = setting(
        LOCAL,
        "Whether the jobs run on this machine or on Ray. All nodes of Ray must have the same "
        "packages, and the same files under the same paths. A job makes at most one shard.",
        choices=(LOCAL, RAY),
    )


@dataclasses.dataclass(frozen=True)
class CorpusSettings(Settings):
    """The corpora that `create_pretraining_data` reads."""

    input_dir: str | None = setting(
        None,
        "The corpus: a file, a directory, a glob or a dataset of the Hugging Face hub, for example "
        "hf://datasets/ORG/NAME@REVISION/**/*.parquet. Parquet, Arrow, tar and compressed files "
        "are recognized by their content; .json, .jsonl, .csv and .tsv by their names. All others "
        "are text, see `documents`. With `tfds_name`: the directory of TensorFlow datasets.",
    )
    corpus_spec: str | None = setting(
        None,
        "Declared format of the files in `input_dir`: "
        f"{', '.join(known_corpora.names())}, or a .yaml file such as those in "
        "data_specs/corpora.",
    )
    hf_split: str | None = setting(
        None,
        "Split of the dataset of the Hugging Face hub that `input_dir` names, as ORG/NAME or "
        "hf://datasets/ORG/NAME; train by default.",
    )
    tfds_name: str | None = setting(
        None, "TensorFlow dataset to read instead of files: name[/config][:version]."
    )
    tfds_split: str | None = setting(
        None, "Requires `tfds_name`. Split of the dataset; train by default."
    )
    text_fields: tuple[str, ...] | None = setting(
        None,
        "Fields of a row that contain its text. By default the fields that `corpus_spec` "
        "declares, the only text feature of `tfds_name`, or title,content.",
        parse=parse_words,
        aliases=("params",),
    )
    documents: str | None = setting(
        None,
        "Separation of the documents in a text file: blank_lines, or lines if each line is a "
        "document. By default, the separation that `corpus_spec` declares, or blank_lines.",
        choices=known_corpora.SEPARATIONS,
    )
    segmenter: str | None = setting(
        None,
        "Segmenter that splits Chinese text into words. By default, the segmenter that "
        "`corpus_spec` declares, or jieba.",
        choices=tuple(SEGMENTERS),
    )
    corpora: Location | None = setting(
        None, "In place of `input_dir`: a .yaml file with several corpora and their weights."
    )
    random_next: bool | None = setting(None, "Accepted for old command lines. Has no effect.")

    def sources(self) -> tuple[known_corpora.CorpusSource, ...]:
        """Returns the corpora that the settings name.

        Raises:
            InputError: the settings name no corpus, both a mixture and a corpus, or an invalid
                mixture.
        """
        names = ("input_dir", "corpus_spec", "hf_split", "tfds_name", "tfds_split")
        names += ("text_fields", "documents", "segmenter")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.corpora is not None:
            if options:
                received = f"`{next(iter(options))}` cannot be combined with it"
                hint = "write the setting into the .yaml file"
                raise InputError(Setting("corpora"), received=received, hint=hint)
            try:
                return known_corpora.load_mixture(self.corpora)
            except ValueError as error:
                raise InputError(Setting("corpora"), received=error) from error
        if self.input_dir is None and self.tfds_name is None:
            received = "set `input_dir`, `tfds_name` or `corpora`; none is set"
            raise InputError(None, received=received)
        if self.text_fields == ():
            raise InputError(Setting("text_fields"), "the names of fields", "none")
        try:
            return (known_corpora.CorpusSource(**options),)
        except ValueError as error:
            # The message starts with the name of the setting.
            name, _, text = str(error).partition(": ")
            raise InputError(Setting(name), received=text) from error


@dataclasses.dataclass(frozen=True)
class ProcessSettings(Settings):
    """Settings with which a process of `run_distill` joins the other processes."""

    coordinator_address: str | None = setting(
        None,
        "Requires `distribution`=data_parallel. HOST:PORT of process 0. Detected automatically, "
        "with `num_processes` and `process_id`, on Cloud TPU pods, Slurm and Open MPI.",
    )
    num_processes: int | None = setting(
        None,
        "Requires `distribution`=data_parallel. Number of processes. With 1, the process joins no "
        "others.",
        low=1,
    )
    process_id: int | None = setting(
        None, "Requires `distribution`=data_parallel. Index of this process, from 0.", low=0
    )


@dataclasses.dataclass(frozen=True)
class RecipeSettings(Settings):
    """Published recipes of `run_distill`, and a short run to try them."""

    recipe: str | None = setting(
        None,
        "Published recipe; its flags are inserted in place of this flag: "
        f"{', '.join(recipes.names())}. The recipe overrides flags before it. Flags after it "
        "override the recipe.",
    )
    run_local: bool = setting(
        False,
        "Whether to reduce batch sizes, steps and evaluation, so that a run takes minutes. It "
        "shows that a recipe runs, not the quality of its student.",
    )
