"""Students with a reduced vocabulary, made from a teacher and trained from its cache."""

import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from data_specs.records import INPUT_IDS, INPUT_MASK, MASKED_LM_POSITIONS, SEGMENT_IDS
from pipeline import run_distill
from pipeline.base.location import Location
from pipeline.distill import training
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input, cache_tokenizer, serialization
from pipeline.storage import manifest as manifests
from pipeline.tokenizers import loading
from tests.conftest import ENGLISH, LINES, RUSSIAN, make_cache, save_tiny_bert
from tools import reduce_vocabulary
from tools.vocabulary import vocab_reduction

ROOT = pathlib.Path(__file__).parents[2]


def _main(module, **settings: object) -> int:
    return module.main(["command", *(f"--{name}={value}" for name, value in settings.items())])


def _run(**settings: object) -> int:
    return _main(reduce_vocabulary, **settings)


def _fails(capsys, module, **settings: object) -> str:
    """Runs a command that must fail; returns its only error line."""
    capsys.readouterr()
    assert _main(module, **settings) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def _tokens(folder: pathlib.Path) -> list[str]:
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def flags(cache_dir, teacher_dir) -> dict[str, object]:
    """The flags of the inputs."""
    return {"input_dir": cache_dir, "teacher": teacher_dir}


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory, flags) -> pathlib.Path:
    """A student with all layers of the teacher and about half of its tokens; read only."""
    folder = tmp_path_factory.mktemp("reduced") / "student"
    assert _run(**flags, output_dir=folder, coverage=0.8) == 0
    return folder


def test_logits_of_kept_tokens_equal_the_teachers(student_dir, teacher_dir, vocab) -> None:
    tokens = _tokens(student_dir)
    ids_of_tokens = {token: index for index, token in enumerate(vocab)}
    old_ids = np.array([ids_of_tokens[token] for token in tokens])
    assert 30 < len(tokens) < 0.6 * len(vocab) and (np.diff(old_ids) > 0).all()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(tokens), (3, 20))
    batch = {
        INPUT_MASK: np.ones((3, 20), "int32"),
        SEGMENT_IDS: np.zeros((3, 20), "int32"),
        MASKED_LM_POSITIONS: np.tile(np.arange(20, dtype="int32"), (3, 1)),
    }
    student, teacher = (
        model_directory.load_masked_lm(model_directory.find_model(folder))
        for folder in (student_dir, teacher_dir)
    )
    small = np.asarray(student({INPUT_IDS: ids.astype("int32"), **batch}))
    large = np.asarray(teacher({INPUT_IDS: old_ids[ids].astype("int32"), **batch}))
    assert small.shape == (3, 20, len(tokens))
    np.testing.assert_allclose(small, large[..., old_ids], atol=1e-6)


def test_command_writes_the_student_and_prints_its_sizes(flags, tmp_path, capsys, vocab) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text("##z\nmodel\n", encoding="utf-8")
    folder = tmp_path / "student"
    assert _run(**flags, output_dir=folder, vocab_size=40, keep_tokens=listed, layer_map="0,2") == 0
    names = {"config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in folder.iterdir()} == names
    tokens = _tokens(folder)
    assert len(tokens) == 40 and {"##z", "model", *vocab[:5]} <= set(tokens)
    config = EncoderConfig.from_json(folder / "config.json")
    assert (config.vocab_size, config.num_hidden_layers) == (40, 2)
    teacher = EncoderConfig.from_json(Location.parse(flags["teacher"]) / "config.json")
    # D = 32. The embeddings have 40 + 64 + 2 rows and a norm. A layer has four projections of
    # the attention, two of the feed-forward block, and two norms. The head has a projection, a
    # norm and 40 biases.
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64
    count = (40 + 64 + 2) * 32 + 64 + 2 * layer + (32 * 32 + 32 + 64 + 40)
    assert reduce_vocabulary.count_parameters(config) == count
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:4]] == [
        ["teacher", "student"],
        ["tokens", str(len(vocab)), "40"],
        ["layers", "3", "2"],
        ["parameters", f"{reduce_vocabulary.count_parameters(teacher):,}", f"{count:,}"],
    ]
    assert printed[5].split()[-1] == f"{40 * 32 / count:.1%}"
    assert printed[6].startswith("covered: ") and printed[-1] == f"student: {folder}"


@pytest.fixture(scope="module")
def cut_student_dir(tmp_path_factory, flags, vocab) -> pathlib.Path:
    """A student with all letters and very few longer tokens; read only."""
    listed = tmp_path_factory.mktemp("listed") / "listed.txt"
    letters = [token for token in vocab if len(token.removeprefix("##")) == 1]
    listed.write_text("\n".join(letters) + "\n", encoding="utf-8")
    folder = tmp_path_factory.mktemp("cut") / "student"
    size = len(letters) + 6
    assert _run(**flags, output_dir=folder, vocab_size=size, keep_tokens=listed) == 0
    return folder


def test_missing_words_are_split_as_by_the_students_tokenizer(
    cut_student_dir, cache_dir, vocab
) -> None:
    cache = cache_input.open_cache(cache_dir, None)
    files = loading.tokenizer_files(cut_student_dir)
    subset = cache_tokenizer.find_subset(cache, len(_tokens(cut_student_dir)), files)
    tokenizer = loading.load_tokenizer(cut_student_dir / "vocab.txt", do_lower_case=None)
    missing = [index for index, new in enumerate(subset.table) if new < 0]
    words = [index for index in missing if not vocab[index].startswith("##")]
    assert len(words) > 3
    for index in words:
        pieces = [piece for piece in subset.pieces[index].tolist() if piece >= 0]
        assert pieces == tokenizer.tokenize(vocab[index]).ids.tolist() and len(pieces) > 1


def test_printed_shares_of_covered_split_and_unknown_tokens_add_up(
    flags, cut_student_dir, tmp_path, capsys, vocab
) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join(_tokens(cut_student_dir)[5:]) + "\n", encoding="utf-8")
    settings = {"keep_tokens": listed, "min_count": 10**6}
    assert _run(**flags, output_dir=tmp_path / "student", **settings) == 0
    printed = capsys.readouterr().out.splitlines()
    covered = float(printed[6].split()[1].rstrip("%"))
    split_share, unknown_share = (
        float(word.rstrip("%")) for word in printed[7].split() if "%" in word
    )
    assert covered + split_share + unknown_share == pytest.approx(100.0, abs=2e-3)
    assert split_share > 0.0 and unknown_share == 0.0
    assert float(printed[8].split()[2]) > 1.0


@pytest.mark.long
def test_student_with_split_words_trains(cut_student_dir, cache_dir, tmp_path, capsys) -> None:
    inputs = {"input_dir": cache_dir, "student": cut_student_dir, "output_dir": tmp_path / "made"}
    sizes = {"num_train_steps": 20, "train_batch_size": 8, "learning_rate": 3e-3, "log_steps": 5}
    assert _main(run_distill, losses="kl_divergence=1,masked_lm=1", **inputs, **sizes) == 0
    line = "others are split into these, the rest become [UNK]; the mass"
    assert line in capsys.readouterr().err
    text = (tmp_path / "made" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0]


def test_coverage_keeps_the_most_frequent_tokens(student_dir, flags, tmp_path, capsys) -> None:
    assert _run(**flags, output_dir=tmp_path / "more", vocab_size=len(_tokens(student_dir))) == 0
    share = float(capsys.readouterr().out.split("covered: ")[1].split("%")[0])
    assert 80.0 <= share < 83.0
    # A limit by size keeps the same tokens as the limit by coverage.
    assert _tokens(tmp_path / "more") == _tokens(student_dir)


@pytest.mark.long
def test_student_trains_from_the_teachers_cache(student_dir, cache_dir, tmp_path) -> None:
    """The command runs in a process that cannot import transformers."""
    folder = tmp_path / "trained"
    flags = [f"--input_dir={cache_dir}", f"--student={student_dir}", f"--output_dir={folder}"]
    flags += ["--num_train_steps=60", "--train_batch_size=8", "--log_steps=10"]
    flags += ["--learning_rate=3e-3", "--max_eval_steps=3"]
    code = (
        "import sys; sys.modules['transformers'] = None; from pipeline import run_distill; "
        f"sys.exit(run_distill.main({['run_distill', *flags]!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    size = len(_tokens(student_dir))
    assert (
        f"vocabulary: {size:,} of the cache's {len(_tokens(cache_dir)):,} tokens; others are read "
        "as [UNK]; the mass of missing tokens joins the tail\n"
    ) in result.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (student_dir / name).read_bytes()
    assert EncoderConfig.from_json(folder / "config.json").vocab_size == size
    run_config = json.loads((folder / "request.json").read_text())
    sha256 = loading.read_vocab_info(student_dir / "vocab.txt").sha256
    assert run_config["vocab"] == sha256


def test_reduced_teacher_agrees_with_its_own_cache(
    examples_config, teacher_dir, vocab, tmp_path
) -> None:
    """It has all tokens of the evaluation inputs, so only the top-k loses tokens."""
    last = {token: index for index, token in enumerate(vocab)}
    repeated = {index for index, token in enumerate(vocab) if index != last[token]}
    # Random replacements may draw the first of two equal tokens. A student has only the second.
    for random_seed in itertools.count():
        examples_dir = tmp_path / f"examples{random_seed}"
        create_masked_examples(
            dataclasses.replace(
                examples_config, output_dir=str(examples_dir), random_seed=random_seed
            )
        )
        shard = manifests.load(examples_dir).splits["eval"][0]
        read = serialization.read_records(Location.parse(str(examples_dir / shard.file)))
        examples = map(serialization.decode_example, read)
        used = np.unique(np.concatenate([np.frombuffer(e[INPUT_IDS], "<u2") for e in examples]))
        if not repeated & set(used.tolist()):
            break
    cache_dir = make_cache(tmp_path / "cache", examples_dir, teacher_dir)
    flags = {"input_dir": cache_dir, "teacher": teacher_dir}
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join(vocab[index] for index in used) + "\n", encoding="utf-8")
    student = tmp_path / "student"
    settings = {"keep_tokens": listed, "min_count": 10**6, "output_dir": student}
    assert _run(**flags, **settings) == 0
    # Besides the listed tokens, the student has the padding and one token of the text.
    assert len(used) <= len(_tokens(student)) <= len(used) + 2 < len(vocab) - 20
    report = training.distill(
        DistillConfig(
            student=StudentConfig(student=student),
            losses={"kl_divergence": 1.0},
            tail="renormalize",
            input_dir=str(cache_dir),
            do_train=False,
        )
    )
    assert report["kl_divergence"] == pytest.approx(0.0, abs=1e-5)
    assert report["probability_cosine"] == pytest.approx(0.0, abs=1e-5)
    assert report["teacher_agreement"] > 0.99
    assert report["masked_lm_accuracy"] == pytest.approx(report["teacher_accuracy"], abs=0.01)


def test_reduced_student_trains_on_masked_examples(
    student_dir, examples_dir, tmp_path, capsys
) -> None:
    inputs = {"input_dir": examples_dir, "init_from": student_dir, "output_dir": tmp_path / "made"}
    sizes = {"num_train_steps": 2, "train_batch_size": 4, "max_eval_steps": 1, "student_layers": 1}
    assert _main(run_distill, losses="masked_lm=1", **inputs, **sizes) == 0
    assert "tokens; others are read as [UNK]\n" in capsys.readouterr().err


@pytest.mark.long
def test_another_vocabulary_is_another_run_configuration(
    student_dir, cache_dir, tmp_path, capsys
) -> None:
    """Two students have the same weights, but their tokens are in another order."""
    other_student = tmp_path / "other"
    other_student.mkdir()
    for path in student_dir.iterdir():
        (other_student / path.name).write_bytes(path.read_bytes())
    tokens = _tokens(other_student)
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    (other_student / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    settings = {"input_dir": cache_dir, "output_dir": tmp_path / "trained", "num_train_steps": 1}
    assert _main(run_distill, **settings, student=student_dir) == 0
    assert "vocab (recorded" in _fails(capsys, run_distill, **settings, student=other_student)


def test_students_with_tokens_outside_the_cache_are_refused(
    student_dir, cache_dir, tmp_path, capsys
) -> None:
    def message(tokens: list[str]) -> str:
        folder = tmp_path / f"student{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((student_dir / name).read_bytes())
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        error = _fails(
            capsys, run_distill, input_dir=cache_dir, student=folder, output_dir=tmp_path / "no"
        )
        return error.replace(f"{folder}/", "").replace(str(cache_dir), "CACHE")

    tokens, large = _tokens(student_dir), _tokens(cache_dir)
    assert f"'жук' (id {len(tokens) - 1})" in message([*tokens[:-1], "жук"])
    spare = next(token for token in large if token not in tokens)
    assert "'[MASK]' (mask)" in message([*tokens[:4], spare, *tokens[5:]])
    # The model has fewer rows than tokens. More rows than tokens would be unused rows.
    expected = f"a model with the vocabulary of CACHE, which has {len(large)} tokens"
    assert expected in message([*tokens, spare])
    assert not (tmp_path / "no").exists()


def test_capture_refuses_a_teacher_with_a_reduced_vocabulary(
    student_dir, examples_dir, tmp_path, capsys
):
    from pipeline import create_teacher_output_data

    settings = {"teacher": student_dir, "output_dir": tmp_path / "cache"}
    error = _fails(capsys, create_teacher_output_data, input_dir=examples_dir, **settings)
    assert error.startswith("--teacher: must be a model with the vocabulary of ")
    assert f"create_pretraining_data --vocab_file={student_dir}" in error


def test_errors_about_invalid_settings_name_the_flag(
    flags, tmp_path, capsys, student_dir, vocab, vocab_file
) -> None:
    untied = save_tiny_bert(tmp_path / "untied", vocab_file, seed=3, tie_word_embeddings=False)

    def message(**changes: object) -> str:
        settings = {**flags, "output_dir": tmp_path / "out", **changes}
        return _fails(capsys, reduce_vocabulary, **settings)

    for changes, flag, expected_text in (
        ({}, "vocab_size", "none"),
        ({"vocab_size": 5}, "vocab_size", f"6 to {len(vocab)}"),
        ({"coverage": "0"}, "coverage", "got 0"),
        ({"coverage": "1.5"}, "coverage", "1.5"),
        ({"coverage": "0.5,0.6"}, "coverage", "0.5,0.6"),
        ({"coverage": "most"}, "coverage", "most"),
        ({"vocab_size": 9, "student_layers": 4}, "student_layers", "1 to 3"),
        ({"vocab_size": 9, "output_dir": student_dir}, "output_dir", "config.json"),
        ({"vocab_size": 9, "teacher": student_dir}, "teacher", f"which has {len(vocab)} tokens"),
        ({"vocab_size": 9, "teacher": untied}, "teacher", "a separate output layer"),
    ):
        line = message(**changes)
        assert line.startswith(f"--{flag}: ") and expected_text in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def make_inputs(examples_config, tmp_path) -> Callable[[pathlib.Path], tuple[pathlib.Path, ...]]:
    """A function that makes masked examples and a teacher with another tokenizer."""

    def make(vocab_file: pathlib.Path) -> tuple[pathlib.Path, ...]:
        examples = tmp_path / "examples"
        settings = {"segments": "single", "dupe_factor": 1, "do_lower_case": None}
        settings |= {"output_dir": str(examples), "vocab_file": str(vocab_file)}
        create_masked_examples(dataclasses.replace(examples_config, **settings))
        names = tmp_path / "names.txt"
        names.write_text("\n".join(loading.read_vocab(vocab_file)) + "\n", encoding="utf-8")
        teacher = save_tiny_bert(tmp_path / "teacher", names, seed=3)
        (teacher / "vocab.txt").unlink()
        (teacher / vocab_file.name).write_bytes(vocab_file.read_bytes())
        return examples, teacher

    return make


@pytest.mark.long
def test_sentencepiece_student_is_reduced_and_trained(make_inputs, spiece_file, tmp_path) -> None:
    examples, teacher = make_inputs(spiece_file)
    student = tmp_path / "student"
    assert _run(input_dir=examples, teacher=teacher, output_dir=student, vocab_size=150) == 0
    names = {"spiece.model", "tokenizer.json", "tokenizer_config.json"}
    assert names <= {path.name for path in student.iterdir()}
    lists = [loading.read_vocab(path) for path in loading.tokenizer_files(student)]
    assert len(lists) == 2 and lists[0] == lists[1] and len(lists[0]) == 150
    trained = tmp_path / "trained"
    training.distill(
        DistillConfig(
            student=StudentConfig(student=student),
            losses={"masked_lm": 1.0},
            input_dir=str(examples),
            output_dir=str(trained),
            num_train_steps=2,
            train_batch_size=4,
        )
    )
    for name in names:
        assert (trained / name).read_bytes() == (student / name).read_bytes(), name


def test_tokenizer_json_cannot_be_reduced(make_inputs, bpe_file, tmp_path, capsys) -> None:
    examples, teacher = make_inputs(bpe_file)
    output_dir = tmp_path / "student"
    settings = {"teacher": teacher, "output_dir": output_dir, "vocab_size": 100}
    error = _fails(capsys, reduce_vocabulary, input_dir=examples, **settings)
    assert error.startswith("--input_dir: ") and error.endswith("got a tokenizer.json")
    assert not output_dir.exists()


def test_missing_tokens_of_a_byte_level_vocabulary_become_padding(
    make_inputs, tmp_path, bpe_file
) -> None:
    """The vocabulary was reduced elsewhere and has neither <unk> nor the last hundred tokens."""
    content = json.loads(bpe_file.read_text(encoding="utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<unk>"]
    vocab = content["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)
    names.remove("<unk>")
    content["model"]["vocab"] = {token: index for index, token in enumerate(names)}
    for token in content["added_tokens"]:
        token["id"] = names.index(token["content"])
    full_tokenizer = tmp_path / "tokenizer.json"
    full_tokenizer.write_text(json.dumps(content), encoding="utf-8")
    examples, _ = make_inputs(full_tokenizer)
    content["model"]["vocab"] = {token: index for index, token in enumerate(names[:-100])}
    remaining = set(names[:-100])
    content["model"]["merges"] = [
        merge for merge in content["model"]["merges"] if {*merge, "".join(merge)} <= remaining
    ]
    reduced_tokenizer = tmp_path / "part" / "tokenizer.json"
    reduced_tokenizer.parent.mkdir()
    reduced_tokenizer.write_text(json.dumps(content), encoding="utf-8")
    cache = cache_input.open_cache(examples, None)
    subset = cache_tokenizer.find_subset(cache, len(remaining), (reduced_tokenizer,))
    assert (subset.unknown_token, subset.unknown_id) == ("<pad>", names.index("<pad>"))
    assert subset.table.tolist() == [*range(len(remaining)), *[-1] * 100]
    assert subset.describe(cache.manifest) == (
        f"vocabulary: {len(remaining)} of the cache's {len(names)} tokens; others are read as <pad>"
    )


@pytest.mark.peers
def test_transformers_reads_a_reduced_student(
    make_inputs, student_dir, spiece_file, tmp_path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    examples, teacher = make_inputs(spiece_file)
    pieces = tmp_path / "student"
    assert _run(input_dir=examples, teacher=teacher, output_dir=pieces, coverage=0.9) == 0
    for folder in (student_dir, pieces):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
        path = cache_tokenizer._json_files_last(loading.tokenizer_files(folder))[0]
        ours = loading.load_tokenizer(path, do_lower_case=None)
        assert model.config.vocab_size == len(theirs) == len(ours.vocab)
        assert model.config.pad_token_id == theirs.pad_token_id
        for line in (*LINES[:12], ENGLISH[0], RUSSIAN[0]):
            ids = theirs.encode(line, add_special_tokens=False)
            assert ids == ours.tokenize(line).ids.tolist(), line
        batch = theirs(f"春天{theirs.mask_token}了", return_tensors="pt")
        with torch.no_grad():
            assert torch.isfinite(model(**batch).logits).all()


def test_reducing_a_roberta_moves_its_positions_with_the_padding(tmp_path, vocab_file) -> None:
    """The padding's id moves from 7 to 5, and the logits do not change."""
    folder = save_tiny_bert(
        tmp_path / "roberta",
        vocab_file,
        seed=5,
        model_type="roberta",
        type_vocab_size=1,
        pad_token_id=7,
    )
    source = model_directory.find_model(folder)
    weights = source.read_weights()
    kept_ids = np.array([0, 1, 2, 3, 4, 7, 9, 20, 31])
    config, reduced = vocab_reduction.reduce_weights(weights, source.config, kept_ids)
    assert config == dataclasses.replace(
        source.config, vocab_size=9, pad_token_id=5, max_position_embeddings=62
    )
    assert config.max_input_length == source.config.max_input_length
    (tmp_path / "small").mkdir()
    model_directory.save_hf_weights(tmp_path / "small", config, reduced)
    ids = np.array([[2, 8, 7, 6, 3]])
    outputs = []
    for path, tokens in ((folder, kept_ids[ids]), (tmp_path / "small", ids)):
        model = model_directory.load_masked_lm(model_directory.find_model(path))
        batch = {
            INPUT_IDS: tokens.astype("int32"),
            INPUT_MASK: np.ones((1, 5), "int32"),
            SEGMENT_IDS: np.zeros((1, 5), "int32"),
            MASKED_LM_POSITIONS: np.arange(5, dtype="int32")[None],
        }
        outputs.append(np.asarray(model(batch)))
    np.testing.assert_allclose(outputs[1], outputs[0][..., kept_ids], atol=1e-6)
    with pytest.raises(ValueError, match="expected the padding's id 7 among them"):
        vocab_reduction.reduce_weights(weights, source.config, np.array([0, 1, 8]))


@pytest.mark.parametrize("is_fast", [False, True])
def test_student_without_settings_gets_the_caches_casing(
    examples_config, vocab_file, tmp_path, is_fast: bool
) -> None:
    """If the cache was made with a tokenizer.json, the student keeps its own settings."""
    examples, source = tmp_path / "examples", tmp_path / "source"
    source.mkdir()
    tokens = list(dict.fromkeys(vocab_file.read_text(encoding="utf-8").splitlines()))
    (source / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    settings = {"do_lower_case": False, "strip_accents": True, "do_basic_tokenize": not is_fast}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    changes = {"output_dir": str(examples), "vocab_file": source}
    create_masked_examples(dataclasses.replace(examples_config, **changes))
    path = tmp_path / "student" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(tokens[:100]) + "\n", encoding="utf-8")
    cache = cache_input.open_cache(examples, None)
    subset = cache_tokenizer.find_subset(cache, 100, (path,))
    tokenizer_config = json.loads(subset.tokenizer_files["tokenizer_config.json"])
    assert tokenizer_config["do_lower_case"] is is_fast
    assert tokenizer_config.get("strip_accents") is (None if is_fast else True)
    assert subset.tokenizer_files["vocab.txt"] == path.read_bytes()
