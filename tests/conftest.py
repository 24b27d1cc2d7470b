"""Shared fixtures of the tests: a tiny corpus, a vocabulary, a teacher, and caches made from them.

All data are generated from random weights and from sentences written for these tests.
"""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests must not download models.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import sentencepiece
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.base.local_mirror import CACHE_VARIABLE
from pipeline.base.location import BucketLocation, Location
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.storage.codecs import STATES

ROOT = pathlib.Path(__file__).parents[1]
_make_temporary = pytest.TempPathFactory.mktemp


def _make_location(factory: pytest.TempPathFactory, name: str, numbered: bool = True) -> Location:
    return Location.parse(_make_temporary(factory, name, numbered))


# `tmp_path` and `tmp_path_factory` give locations, because the library's functions take locations.
pytest.TempPathFactory.mktemp = _make_location

# Machines that run the tests may be busy, so a slow example is not a failure.
settings.register_profile("default", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("default")

SENTENCES = (
    "春天来了，院子里的桃树开满了花。",
    "老师在黑板上写下今天的题目，学生们认真地听讲。",
    "这家小店的面条又便宜又好吃，中午总是坐满了人。",
    "他每天早上六点起床，先跑步，然后读一个小时的书。",
    "火车晚点了两个小时，旅客们在车站里耐心地等待。",
    "我们用BERT模型处理文本，效果比以前好得多。",
    "图书馆周末不开门，所以她只好去咖啡馆写论文。",
    "山上的空气很新鲜，远处可以看见大海和船。",
    "The small model learns from the large one, step by step.",
    "请把这些数据放进文件夹，再运行第二个程序。",
    "雨停以后，孩子们跑到街上踩水，笑声传得很远。",
    "工程师检查了机器，发现是一颗螺丝松了。",
)
ENGLISH = (
    "The unbelievable weather made everyone happy, and nobody believed it.",
    "Hello, world! It is unbelievable how believable this weather is.",
)
RUSSIAN = (
    "Сегодня прекрасная погода, и неописуемая красота вокруг.",
    "Привет, мир! Неописуемо прекрасная погода стоит сегодня.",
)
LINES = [*SENTENCES, *ENGLISH * 8, *RUSSIAN * 8]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# The special tokens of a SentencePiece model, as settings of its trainer.
BERT_PIECES = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "pad_piece": "[PAD]",
    "unk_piece": "[UNK]",
    "control_symbols": ["[CLS]", "[SEP]"],
}
WORD_PIECES = ("the", "small", "model", "large", "one", "step", "by", "be", "##rt", "learn", "##s")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects opt-in tests unless -m is set; -m long selects long tests of the suite only."""
    opt_in = {"docs", "export", "peers", "ray", "remote", "shared", "slow", "tpu"}
    if not config.option.markexpr:
        opt_in.add("long")
    elif config.option.markexpr != "long":
        return
    selected = [item for item in items if not opt_in & {mark.name for mark in item.iter_markers()}]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected


def run_python(
    *arguments: str, check: bool = True, cwd: pathlib.Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a new process without this process's environment variables."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def make_text(seed: int, num_documents: int) -> list[str]:
    """Returns documents of 2 to 12 sentences, with one sentence per line."""
    random = np.random.default_rng(seed)
    return [
        "\n".join(random.choice(SENTENCES, size=random.integers(2, 13)))
        for _ in range(num_documents)
    ]


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[BucketLocation]:
    """An empty bucket in memory, whose local mirror is in the test's folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "copies"))
    path = Location.parse(f"memory://{uuid.uuid4().hex}")
    yield path
    for name in [name for name in MemoryFileSystem.store if name.startswith(f"/{path.key}/")]:
        del MemoryFileSystem.store[name]


def upload_folder(folder: pathlib.Path, target: BucketLocation) -> BucketLocation:
    """Uploads a folder with all its files, and returns the target."""
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).take(path)
    return target


def read_objects(folder: BucketLocation) -> dict[str, bytes]:
    """Returns the contents of all objects below a URL, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.find()}


def read_folder(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the contents of all files below a folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def dense_logits(model: Any, features: dict[str, bytes], vocab_size: int) -> np.ndarray:
    """Returns a teacher's logits at one record's masked positions, unpadded: float64 [P, V]."""
    arrays = {
        feature.name: np.frombuffer(features[feature.name], feature.numpy_dtype(vocab_size))
        for feature in records.MASKED_EXAMPLE_FEATURES
    }
    length = len(arrays[records.INPUT_IDS])
    batch = {
        records.INPUT_IDS: arrays[records.INPUT_IDS],
        records.INPUT_MASK: np.ones(length),
        records.SEGMENT_IDS: np.arange(length) >= arrays[records.SEGMENT_LENGTHS][0],
        records.MASKED_LM_POSITIONS: arrays[records.MASKED_LM_POSITIONS],
    }
    batch = {name: value[None].astype("int32") for name, value in batch.items()}
    return np.asarray(model(batch))[0].astype(np.float64)


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A vocabulary of the sentences' characters, except one that becomes [UNK]."""
    characters = sorted(set("".join(SENTENCES).lower()) - set(" 螺"))
    pieces = [*WORD_PIECES, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, *characters, *pieces]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def vocab(vocab_file: pathlib.Path) -> list[str]:
    """The tokens of `vocab_file`."""
    return vocab_file.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Sixty documents in two text files."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = make_text(seed=1, num_documents=60)
    (folder / "a.txt").write_text("\n\n".join(documents[:40]) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text("\n\n".join(documents[40:]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def examples_config(corpus_dir: pathlib.Path, vocab_file: pathlib.Path) -> MaskedExamplesConfig:
    """The settings of the session's masked examples; replace `output_dir` to make others."""
    return MaskedExamplesConfig(
        corpora=(CorpusSource(input_dir=str(corpus_dir)),),
        output_dir="",
        vocab_file=str(vocab_file),
        max_seq_length=48,
        max_predictions_per_seq=8,
        doc_stride=30,
        dupe_factor=2,
        eval_fraction=0.2,
        num_shards=3,
    )


@pytest.fixture(scope="session")
def examples_dir(
    tmp_path_factory: pytest.TempPathFactory, examples_config: MaskedExamplesConfig
) -> pathlib.Path:
    """A complete directory of masked examples; read only."""
    folder = tmp_path_factory.mktemp("examples") / "masked"
    create_masked_examples(dataclasses.replace(examples_config, output_dir=str(folder)))
    return folder


@pytest.fixture(scope="session")
def windows_config(examples_config: MaskedExamplesConfig) -> MaskedExamplesConfig:
    """The settings of the session's unmasked windows, with the same text and seed."""
    return dataclasses.replace(
        examples_config, masking="dynamic", mask_smoothing=0.7, dupe_factor=None
    )


@pytest.fixture(scope="session")
def windows_dir(
    tmp_path_factory: pytest.TempPathFactory, windows_config: MaskedExamplesConfig
) -> pathlib.Path:
    """A complete directory of unmasked windows; read only."""
    folder = tmp_path_factory.mktemp("windows") / "unmasked"
    create_masked_examples(dataclasses.replace(windows_config, output_dir=str(folder)))
    return folder


def save_tiny_bert(
    folder: pathlib.Path,
    vocab_file: pathlib.Path,
    *,
    seed: int,
    num_layers: int = 3,
    **changes: Any,
) -> pathlib.Path:
    """Writes a random BERT with a vocabulary as a Hugging Face directory.

    `changes` replace fields of its configuration, for example `model_type`.
    """
    from pipeline.models.config import EncoderConfig
    from pipeline.models.formats.model_directory import save_hf
    from pipeline.models.masked_lm import MaskedLM

    config = EncoderConfig(
        vocab_size=len(vocab_file.read_text(encoding="utf-8").splitlines()),
        hidden_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="gelu",
        max_position_embeddings=64,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        # Weights are large enough that the output distribution is not uniform.
        initializer_range=0.3,
    )
    config = dataclasses.replace(config, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    save_hf(folder, MaskedLM(config, seed=seed))
    (folder / "vocab.txt").write_bytes(vocab_file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory, vocab_file: pathlib.Path) -> pathlib.Path:
    """A random three-layer teacher; read only."""
    return save_tiny_bert(tmp_path_factory.mktemp("teacher"), vocab_file, seed=7)


def make_cache(
    folder: pathlib.Path, examples: pathlib.Path, teacher: pathlib.Path, **changes: Any
) -> pathlib.Path:
    """Makes a teacher cache with k = 16 and changed settings; head states have no k."""
    from pipeline.teacher.capture import create_teacher_cache
    from pipeline.teacher.settings import TeacherCacheConfig

    inputs = {"output_dir": str(folder), "input_dir": str(examples), "teacher": str(teacher)}
    settings = {"truncation_factor": 16, "predict_batch_size": 8, **changes}
    if settings.get("logit_encoding") == STATES:
        del settings["truncation_factor"]
    create_teacher_cache(TeacherCacheConfig(**inputs, **settings))
    return folder


@pytest.fixture(scope="session")
def cache_dir(
    tmp_path_factory: pytest.TempPathFactory,
    examples_dir: pathlib.Path,
    teacher_dir: pathlib.Path,
) -> pathlib.Path:
    """A complete teacher cache with k = 16; read only."""
    return make_cache(tmp_path_factory.mktemp("cache") / "teacher", examples_dir, teacher_dir)


@pytest.fixture(scope="session")
def states_cache_dir(
    tmp_path_factory: pytest.TempPathFactory,
    examples_dir: pathlib.Path,
    teacher_dir: pathlib.Path,
) -> pathlib.Path:
    """A complete cache of head states in 8 bits; read only."""
    folder = tmp_path_factory.mktemp("states") / "cache"
    return make_cache(folder, examples_dir, teacher_dir, logit_encoding="states")


@pytest.fixture(scope="session")
def spiece_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece unigram model with BERT's special tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        character_coverage=1.0,
        **BERT_PIECES,
        user_defined_symbols=["[MASK]", "!"],
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spiece") / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


def train_fairseq(
    folder: pathlib.Path, family: str = "xlm-roberta", **settings: Any
) -> pathlib.Path:
    """Writes a SentencePiece model with the default first pieces, and a model's configuration."""
    model = io.BytesIO()
    settings = {"vocab_size": 330, "hard_vocab_limit": False, **settings}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        character_coverage=1.0,
        minloglevel=2,
        **settings,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def xlm_roberta_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece model in an XLM-RoBERTa's directory; read only."""
    return train_fairseq(tmp_path_factory.mktemp("xlm_roberta"))


@pytest.fixture(scope="session")
def camembert_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece model in a CamemBERT's directory; read only."""
    return train_fairseq(tmp_path_factory.mktemp("camembert"), "camembert")


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A byte-level BPE like RoBERTa's."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    # A file may enable truncation and padding, which must not change our text.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A BPE like Gemma's and mmBERT's: it writes spaces as ▁ and falls back to bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = FastTokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # In training, no token spans several words. The trained tokenizer merges without such cuts.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"\p{Han}|\p{P}"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *bytes_, "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    content = json.loads(tokenizer.to_str())
    # Bytes are tokens of the model, and HTML tags are found in the text unchanged.
    added = [token for token in content["added_tokens"] if token["content"] not in bytes_]
    content["added_tokens"] = [token | {"special": token["id"] < 5} for token in added]
    folder = tmp_path_factory.mktemp("gemma")
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {"tokenizer_class": "GemmaTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def olmo_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A byte-level BPE like ModernBERT's, with BERT's special tokens after its own."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([AddedToken("  ", normalized=True), AddedToken("   ", normalized=True)])
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    mask = AddedToken("[MASK]", lstrip=True, special=True)
    tokenizer.add_special_tokens([*names, mask])
    tokenizer.add_tokens([AddedToken("[unused0]", normalized=False)])
    folder = tmp_path_factory.mktemp("olmo")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder / "tokenizer.json"
