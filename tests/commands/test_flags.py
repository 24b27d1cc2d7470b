"""Tests of flags that are generated from the fields of config dataclasses."""

import dataclasses
from collections.abc import Mapping

import pytest

from data_specs.corpora import CorpusSource
from pipeline import create_pretraining_data, create_teacher_output_data, run_distill
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_counts, parse_numbers, parse_words, setting
from pipeline.commands import flags, running
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.teacher.settings import TeacherCacheConfig
from tools.dev import generated_tables

COMMANDS = (create_pretraining_data, create_teacher_output_data, run_distill)


def _parse_weights(text: str) -> dict[str, float]:
    return {name: float(weight) for name, weight in (item.split("=") for item in text.split(","))}


@dataclasses.dataclass(frozen=True)
class Toy(Settings):
    """A config dataclass with one setting of each type."""

    output_dir: Location = setting(dataclasses.MISSING, "Directory.", decides_output=False)
    count: int = setting(3, "Number; see `rate`.", low=1, high=9, aliases=("number",))
    rate: float | None = setting(None, "Rate.", low=0.0, omit_default=True)
    is_on: bool = setting(True, "Whether it is on.")
    kind: str = setting("one", "Kind.", choices=("one", "two"))
    words: tuple[str, ...] = setting((), "Words.", choices=("a", "b"), parse=parse_words)
    numbers: tuple[float, ...] = setting((1.0, 2.0), "Numbers.", low=0.5, parse=parse_numbers)
    weights: Mapping[str, float] = setting({"x": 1.0}, "Weights.", parse=_parse_weights)
    hidden: str = "no flag"


def _read(*arguments: str, **others) -> Toy:
    values = flags.define_flags(Toy)
    values(["toy", "--output_dir=/tmp/x", *arguments])
    return flags.read_config(values, Toy, **others)


def test_flags_without_arguments_give_the_fields_defaults() -> None:
    assert _read() == Toy("/tmp/x")


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--count=7", "count", 7),
        ("--number=7", "count", 7),
        ("--rate=0.5", "rate", 0.5),
        ("--rate=1e-3", "rate", 1e-3),
        ("--nois_on", "is_on", False),
        ("--is_on=False", "is_on", False),
        ("--is_on=True", "is_on", True),
        ("--kind=two", "kind", "two"),
        ("--words=b, a", "words", ("b", "a")),
        ("--words=", "words", ()),
        ("--numbers=1,4", "numbers", (1.0, 4.0)),
        ("--weights=y=2,z=3", "weights", {"y": 2.0, "z": 3.0}),
    ],
)
def test_text_of_a_flag_becomes_the_value_of_its_field(
    argument: str, name: str, value: object
) -> None:
    assert getattr(_read(argument), name) == value


def test_location_records_its_setting() -> None:
    config = _read()
    assert config.output_dir.setting == "output_dir"


def test_field_without_a_declaration_has_no_flag() -> None:
    assert "hidden" not in flags.define_flags(Toy)
    assert _read(hidden="given").hidden == "given"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "0", 0),
        ("count", "10", 10),
        ("count", "1.5", None),
        ("count", "many", None),
        ("rate", "-1", -1.0),
        ("rate", "nan", float("nan")),
        ("rate", "inf", float("inf")),
        ("kind", "three", "three"),
        ("words", "a,c", ("a", "c")),
        ("numbers", "1,x", None),
        ("numbers", "1,0.1", (1.0, 0.1)),
    ],
)
def test_flags_and_python_refuse_the_same_values(capsys, name: str, text: str, value) -> None:
    status = running.run(flags.define_flags(Toy), lambda _: None, "", ["x", f"--{name}={text}"])
    assert status == 1
    assert capsys.readouterr().err.startswith(f"error: --{name}: ")
    if value is not None:
        with pytest.raises(InputError) as caught:
            Toy("/tmp/x", **{name: value})
        assert caught.value.subject == name


def test_config_dataclass_parses_the_text_of_a_flag() -> None:
    assert Toy("/tmp/x", weights="x=2").weights == {"x": 2.0}
    with pytest.raises(InputError) as caught:
        Toy("/tmp/x", numbers="1,x")
    assert caught.value.subject == "numbers"


def test_missing_required_flag_is_named(capsys) -> None:
    assert running.run(flags.define_flags(Toy), lambda _: None, "", ["x"]) == 1
    assert capsys.readouterr().err.startswith("error: missing: --output_dir ")


def test_help_shows_other_settings_as_flags_defaults_and_ranges(capsys) -> None:
    assert running.run(flags.define_flags(Toy), lambda _: None, "Toy.", ["x", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for expected in (
        "--count: Number; see --rate. (default: '3') (1 to 9)",
        "--[no]is_on: ",
        "(default: 'one') (one of one, two)",
        "(default: 'x=1')",
        "--number: Alias for --count",
    ):
        assert expected in printed
    assert "pipeline.commands" not in printed


def test_later_flags_replace_those_of_a_flagfile(tmp_path) -> None:
    path = tmp_path / "toy.flags"
    path.write_text("# a comment\n--count=5\n--kind=two\n", encoding="utf-8")
    config = _read(f"--flagfile={path}", "--count=6")
    assert (config.count, config.kind) == (6, "two")


def test_run_configuration_has_only_settings_that_decide_the_output() -> None:
    names = {"count", "is_on", "kind", "words", "numbers", "weights"}
    assert Toy("/tmp/x").output_settings().keys() == names
    assert Toy("/tmp/x", rate=0.5).output_settings().keys() == names | {"rate"}


@pytest.mark.parametrize("text", ["", "0", "1,a", "-1", "1.5"])
def test_counts_must_be_integers_above_0(text: str) -> None:
    with pytest.raises(InputError):
        parse_counts(text)
    assert parse_counts("5,1,5") == (1, 5)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_command_has_a_help_sentence(command) -> None:
    for field in command.FLAGS.fields():
        text = flags.describe_flag(field).help
        assert text.endswith("."), text


@pytest.mark.parametrize("command", COMMANDS)
def test_table_of_flags_has_a_row_for_each_flag(command) -> None:
    rows = generated_tables.flag_table(command.__name__.rpartition(".")[2]).splitlines()[2:]
    names = [row.split("|")[1].strip(" `-") for row in rows]
    assert names == [field.name for field in command.FLAGS.fields()]


def test_run_configurations_have_the_same_settings_as_in_existing_directories() -> None:
    """A further setting would make existing directories unusable; see `omit_default`."""
    source = CorpusSource(input_dir="x")
    configs = (
        MaskedExamplesConfig(corpora=(source,), output_dir="o", vocab_file="v"),
        TeacherCacheConfig(output_dir="o", teacher="t"),
        DistillConfig(student=StudentConfig(student="s"), output_dir="o"),
    )
    expected = (
        "do_lower_case do_whole_word_mask segments max_seq_length max_predictions_per_seq "
        "masked_lm_prob short_seq_prob doc_stride mask_smoothing dupe_factor random_seed "
        "min_chars keep_duplicates eval_fraction num_shards skip_bad_lines",
        "truncation_factor temperatures logit_encoding cache_hidden_states hidden_encoding "
        "compute_dtype predict_batch_size",
        "losses loss_schedules loss_positions freeze do_train temperature tail truncation_factor "
        "train_batch_size gradient_accumulation_steps num_train_steps num_warmup_steps "
        "learning_rate weight_decay clip_norm compute_dtype random_seed shuffle_buffer_size "
        "length_buckets deterministic",
    )
    for config, names in zip(configs, expected, strict=True):
        assert config.output_settings().keys() == set(names.split())
