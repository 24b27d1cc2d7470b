"""Tests of parsing ids of the hub's models, and of their folders in the hub's cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import hub_id
from pipeline.base.errors import InputError
from pipeline.base.hub_id import HubModel
from pipeline.base.location import Location
from pipeline.base.settings import parse_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "hfl/chinese-roberta-wwm-ext-large",
            HubModel("hfl/chinese-roberta-wwm-ext-large"),
        ),
        ("BAAI/bge-small-zh-v1.5@main", HubModel("BAAI/bge-small-zh-v1.5", "main")),
        ("org/name@refs/pr/1", HubModel("org/name", "refs/pr/1")),
        (f"org/name@{COMMIT}", HubModel("org/name", COMMIT)),
        ("bert-base-uncased", HubModel("bert-base-uncased")),
        ("albert-base-v2@v1", HubModel("albert-base-v2", "v1")),
        ("hf://org/name", HubModel("org/name")),
        ("hf://org/name@v1.0/", HubModel("org/name", "v1.0")),
        ("hf://bert", HubModel("bert")),
        ("https://huggingface.co/org/name", HubModel("org/name")),
        ("https://huggingface.co/org/name/", HubModel("org/name")),
        ("https://hf.co/org/name/tree/v1", HubModel("org/name", "v1")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", HubModel("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name?library=transformers#x", HubModel("org/name")),
        ("https://huggingface.co/bert-base-uncased", HubModel("bert-base-uncased")),
    ],
)
def test_ids_and_urls_name_models_of_the_hub(text: str, expected: HubModel) -> None:
    assert hub_id.parse(text, "teacher") == expected
    assert hub_id.parse(text, "teacher").setting == "teacher"


@pytest.mark.parametrize(
    "text",
    [
        "/org/name",
        "./org/name",
        "../name",
        "~/name",
        "org/name/",
        "org/name/more",
        "name/",
        ".",
        "teacher",
        "teacher_2",
        "vocab.txt",
        "my-vocab.txt",
        "data/vocab.txt",
        "data/Tokenizer.JSON",
        "models/bert_model.ckpt",
        "org/-name",
        "org/na--me",
        "org/na..me",
        "org/name@",
        "org/name@../../x",
        "org/name@/x",
        "org/name@a b",
        "org/имя",
        f"org/{'n' * 100}",
        "gs://bucket/name",
        "",
    ],
)
def test_text_that_looks_like_a_path_names_no_model(text: str) -> None:
    assert hub_id.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://org/name/more",
        "hf://org/../name",
        "https://example.com/org/name",
        "https://huggingface.co/",
        "https://huggingface.co/org/name/blob/main/config.json",
        "https://huggingface.co/datasets/org/name",
    ],
)
def test_urls_that_name_no_model_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_model(text)
    assert caught.value.subject == text and "hf://" in caught.value.expected


def test_page_of_hf_endpoint_names_a_model(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.com/hub/")
    page = "https://mirror.example.com/hub/org/name/tree/v1"
    assert hub_id.parse(page) == HubModel("org/name", "v1")


def test_existing_path_takes_precedence_over_an_id(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(parse_model("org/name"), HubModel)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "bert-base").mkdir()
    assert parse_model("org/name") == Location.parse("org/name")
    assert parse_model("bert-base") == Location.parse("bert-base")
    # With a revision the text is not an existing path. A URL always names the hub.
    assert parse_model("org/name@v1") == HubModel("org/name", "v1")
    assert parse_model("hf://org/name") == HubModel("org/name")


_NAMES = st.from_regex(
    r"[A-Za-z0-9]([A-Za-z0-9._]|-(?!-)){0,20}[A-Za-z0-9]", fullmatch=True
).filter(lambda name: ".." not in name)


@given(organization=_NAMES, name=_NAMES)
def test_snapshot_folder_names_its_model_and_commit(organization: str, name: str) -> None:
    model = HubModel(f"{organization}/{name}", COMMIT)
    folder = hub_id.snapshot_folder(Location.parse("/cache"), model, COMMIT)
    assert hub_id.snapshot_of(folder) == model
    assert hub_id.display_name(folder) == model.id
    # `huggingface_hub` uses the same layout.
    from huggingface_hub.file_download import repo_folder_name

    expected = repo_folder_name(repo_id=model.id, repo_type="model")
    assert str(folder) == f"/cache/{expected}/snapshots/{COMMIT}"


@given(st.text(st.sampled_from("abc./-@_: "), max_size=12))
def test_no_text_names_a_folder_outside_the_cache(text: str) -> None:
    try:
        model = hub_id.parse(text)
    except InputError:
        return
    if model is not None:
        folder = hub_id.snapshot_folder(Location.parse("/cache"), model, model.revision or "x")
        assert folder.resolve().is_relative_to("/cache/")


@pytest.mark.parametrize(
    "path",
    ["/x/teacher", f"/x/snapshots/{COMMIT}", f"/x/models--a--b/refs/{COMMIT}", "snapshots/main"],
)
def test_other_folders_are_not_snapshots(path: str) -> None:
    assert hub_id.snapshot_of(Location.parse(path)) is None
    assert hub_id.display_name(Location.parse(path)) == Location.parse(path).name
