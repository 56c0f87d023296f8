"""Text as data: every document in one split, every token in one row, whatever stops or shares."""

import gzip
import itertools
import json
import lzma
import platform
import subprocess
import sys
import threading
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train import config, serialise
from train.check import check
from train.config import ConfigError, LabelledText, Text
from train.data import corpora, labelled, packing, text, tokens
from zoo.text import ByteTokenizer, families, train_bpe

EOS = 256
N = 16  # tokens of a row
WORDS = ("def", "return", "café", "naïve", "数", "𝄞", "x", "self", "import", "\n", "  ")
SPLITS = ("train", "validation", "test")


def sentence(rng, low=1, high=40):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def write_files(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty text files in three folders."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    write_files(root, {f"{i % 3}/{i:02}.txt": f"{i} {sentence(rng)}" for i in range(60)})
    return root


@pytest.fixture(scope="module")
def cfg(folder, tmp_path_factory):
    return Text(
        source=f"text:{folder}/**/*.txt",
        holdout=0.2,
        length=N,
        batch_size=4,
        cache=str(tmp_path_factory.mktemp("cache")),
    )


@pytest.fixture(scope="module")
def data(cfg):
    return cfg.open()


def contents(cfg):
    """{split: {document: its text}}, as the corpus divides them."""
    found = {split: {} for split in SPLITS}
    for piece in corpora.divided(corpora.open_corpus(cfg), cfg):
        known = found[piece.split].get(piece.name, "")
        assert piece.begins == (not known)
        found[piece.split][piece.name] = known + piece.text
    return found


def documents(files, split):
    """The ids of each document of a token file, as a list."""
    held = files.splits[split]
    return [held.ids[a:b].tolist() for a, b in itertools.pairwise(held.starts)]


def stacked(batches, key):
    return np.concatenate([batch[key] for batch in batches])


def same(batches, others):
    pairs = list(zip(batches, others, strict=True))
    return all(np.array_equal(a[k], b[k]) for a, b in pairs for k in a.keys() | b.keys())


# ---- the standard library ----


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    cfg = Text(cache=str(tmp_path_factory.mktemp("stdlib")))
    return cfg.open(), contents(cfg)


@pytest.mark.quick
def test_the_standard_library_is_split_by_file_at_the_stated_share(stdlib):
    data, found = stdlib
    total = sum(len(some) for some in found.values())
    assert total > 300
    for split in ("validation", "test"):
        assert 0.02 < len(found[split]) / total < 0.09
    for split, some in found.items():
        facts = data.statistics(split)
        size = sum(len(content.encode()) for content in some.values())
        assert (facts["documents"], facts["bytes"]) == (len(some), size)
        assert facts["tokens"] == size + len(some) == len(data.files.splits[split])
        assert facts["python"] == platform.python_version()
    assert len({data.statistics(split)["sha256_of_names"] for split in SPLITS}) == 3


@pytest.mark.quick
def test_the_standard_library_comes_without_tests_tables_and_what_is_installed(stdlib):
    names = [name for some in stdlib[1].values() for name in some]
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= {*names}
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data"}
    assert not {"_pydecimal.py", "html/entities.py", "keyword.py"} & {*names}


SOURCE = "".join(f"    line_{i} = {i}\n" for i in range(50))
LIBRARY = {
    "a.py": SOURCE,
    "b.py": "import os\n" * 3,
    "pkg/c.py": SOURCE.replace("    ", "\t") + "one = 1\n",
    "pkg/test/d.py": "left out",
    "site-packages/e.py": "left out",
    "encodings/cp1.py": "left out",
    "empty.py": "",
    "latin.py": b"# caf\xe9",
    "long.py": "#" * 200_001,
    "notes.txt": "left out",
}


def test_what_is_left_out_of_the_library_and_what_belongs_together(tmp_path, monkeypatch):
    write_files(tmp_path, LIBRARY)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    monkeypatch.setattr(corpora, "stdlib_root", lambda: tmp_path)
    corpus = corpora.open_corpus(Text())
    found = {document.name: document.kin for document in corpus.documents()}
    assert found == {"a.py": "a.py", "b.py": "b.py", "pkg/c.py": "a.py"}
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        pieces = corpora.by_hash(corpus, ("test",), share)
        splits = {piece.name: piece.split for piece in pieces}
        assert splits["a.py"] == splits["pkg/c.py"]


def test_families_are_the_closure_of_likeness():
    rng = np.random.default_rng(1)
    texts = {}
    for i in range(30):  # chains, each text a few lines away from one before
        lines = list(texts.values())[rng.integers(i)].split("\n") if i % 10 else [f"{i}"] * 2
        lines = [*lines[rng.integers(3) :], *(f"{i} {k}" for k in range(rng.integers(4)))]
        texts[f"{i:02}"] = "\n".join(lines if i % 10 else [f"{i} {k}" for k in range(20)])
    sets = {name: {line.strip() for line in content.split("\n")} for name, content in texts.items()}
    family = {name: {name} for name in texts}
    for _ in texts:
        for a, b in itertools.combinations(texts, 2):
            if len(sets[a] & sets[b]) > 0.8 * len(sets[a] | sets[b]):
                family[a] = family[b] = family[a] | family[b]
    expected = {name: min(members) for name, members in family.items()}
    assert corpora.families(texts) == expected
    assert 3 < len(set(expected.values())) < 25


def test_a_text_that_is_like_two_families_joins_them():
    def lines(first, last):
        return "\n".join(map(str, range(first, last)))

    texts = {"a": lines(0, 20), "b": lines(3, 23), "c": lines(50, 70), "d": lines(4, 24)}
    assert corpora.families(texts) == {"a": "a", "b": "b", "c": "c", "d": "b"}
    texts["e"] = lines(1, 21)  # 18 of 22 lines are those of "b", 19 of 21 those of "a"
    assert corpora.families(texts) == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "a"}


# ---- splits ----


def test_a_document_keeps_its_split_when_others_come(cfg, folder, tmp_path):
    before = contents(cfg)
    assert all(before.values())
    for name in (name for some in before.values() for name in some):
        write_files(tmp_path, {name: (folder / name).read_bytes()})
    write_files(tmp_path, {f"3/{i}.txt": f"{i}" for i in range(40)})
    after = contents(replace(cfg, source=f"text:{tmp_path}/**/*.txt"))
    for split in SPLITS:
        assert before[split].items() <= after[split].items()
    assert sum(map(len, after.values())) == 100


def test_a_cut_by_position_keeps_the_order_and_every_character(cfg):
    cfg = replace(cfg, split="position", holdout=0.1)
    whole = [*itertools.chain(*(some.items() for some in contents(replace(cfg)).values()))]
    texts = {
        name: path.read_text() for name, path in corpora.found_files(cfg.source[5:], cfg).items()
    }
    assert "".join(content for _, content in whole) == "".join(texts.values())
    sizes = [len("".join(some.values()).encode()) for some in contents(cfg).values()]
    for size, share in zip(sizes, (0.8, 0.1, 0.1), strict=True):
        assert abs(size - share * sum(sizes)) <= 4
    files = cfg.open().files  # and in the token file documents keep their order
    expected = [[EOS, *content.encode()] for content in contents(cfg)["train"].values()]
    assert documents(files, "train") == expected


@pytest.mark.parametrize("split", ["hash", "position"])
def test_a_document_in_pieces_is_one_document(split, cfg, monkeypatch, tmp_path):
    cfg = replace(cfg, split=split)
    whole = cfg.open().files
    monkeypatch.setattr(corpora, "PIECE", 10)
    pieces = replace(cfg, cache=str(tmp_path)).open().files
    for name in SPLITS:
        assert documents(pieces, name) == documents(whole, name)


@pytest.mark.parametrize("start", range(6))
def test_a_character_on_the_cut_belongs_to_what_follows(start):
    parts = dict(corpora._cut("aé数𝄞b", 0, {"train": start, "test": 11}))
    assert "".join(parts.values()) == "aé数𝄞b"
    whole = {0: "", 1: "a", 2: "a", 3: "aé", 4: "aé", 5: "aé"}
    assert parts.get("train", "") == whole[start]


def test_a_split_without_documents_is_refused_with_the_way_out(tmp_path):
    write_files(tmp_path, {"all.txt": "the only document"})
    cfg = Text(source=f"text:{tmp_path}/all.txt", cache=str(tmp_path / "cache"), length=4)
    with pytest.raises(ConfigError, match='raise it, .*: data.split = "position"'):
        cfg.open()
    with pytest.raises(ConfigError, match="leaves train .* lower it"):
        replace(cfg, holdout=1.0).open()
    cut = replace(cfg, split="position", holdout=0.2)
    assert [*contents(cut)["train"].values()] == ["the only d"]
    assert cut.open().statistics("test")["documents"] == 1
    with pytest.raises(ConfigError, match="between 0 and 0.5"):
        replace(cut, holdout=0.0).open()
    assert len([*(tmp_path / "cache").iterdir()]) == 1  # what was refused left nothing


# ---- files ----


def test_a_file_in_pieces_is_the_same_text_cut_before_line_ends(tmp_path, monkeypatch):
    content = "one é\r\ntwo 数 𝄞\n\n" * 20 + "a line without an end " * 5
    (tmp_path / "a.txt").write_bytes(content.encode())
    whole = [*corpora.read_text(tmp_path / "a.txt")]
    assert whole == [content]
    for size in range(7, 40):
        monkeypatch.setattr(corpora, "PIECE", size)
        pieces = [*corpora.read_text(tmp_path / "a.txt")]
        assert "".join(pieces) == content and len(pieces) > 5
        assert sum(piece.startswith("\n") for piece in pieces) > 5


@pytest.mark.parametrize("piece", [5, 2**22])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"caf\xe9 au lait", 3),
        ("数𝄞é".encode() + b"\xff\n", 9),
        (b"ok\nok\n" + "𝄞".encode()[:3], 6),
    ],
)
def test_a_file_that_is_not_utf8_is_named_with_the_offset(
    content, offset, piece, tmp_path, monkeypatch
):
    monkeypatch.setattr(corpora, "PIECE", piece)
    write_files(tmp_path, {"a.txt": "good", "bad.txt": content})
    cfg = Text(source=f"text:{tmp_path}/*.txt", cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=rf"bad\.txt is not UTF-8: byte 0x.. at offset {offset};"):
        cfg.open()


def test_empty_files_are_left_out_and_counted(folder, cfg, tmp_path):
    write_files(tmp_path, {path.name: path.read_bytes() for path in folder.rglob("*.txt")})
    write_files(tmp_path, {"none.txt": "", "nil.txt": ""})
    data = replace(cfg, source=f"text:{tmp_path}/*.txt").open()
    assert data.statistics("train")["empty"] == 2
    assert sum(data.statistics(split)["documents"] for split in SPLITS) == 60


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("stdlob", "did you mean stdlib"),
        ("stdlib:3", "must have the form stdlib"),
        ("text", "must have the form text:GLOB"),
        ("text:/nowhere/*.txt", "no file is found by /nowhere/"),
        ("text:/tmp", r"a folder is written /tmp/\*\*/\*\.txt"),
        ("jsonl:/tmp", r"a folder is written /tmp/\*\*/\*\.jsonl"),
        ("text:/tmp/nowhere[1]/*.txt", r"part of a name is written \[\[\]"),
        ("jsonl:/nowhere.jsonl", "no file is found"),
        ("tfds:../x", "must have the form tfds:NAME"),
        ("digits", "unknown source"),
    ],
)
def test_a_bad_source_is_named_with_the_way_out(source, message):
    with pytest.raises(ConfigError, match=f"data.source = .*{message}"):
        Text(source=source).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "bpe:many"}, "bpe:SIZE"),
        ({"tokenizer": "/nowhere/tokenizer.json"}, "there is no file or directory"),
        ({"tokenizer": "gpt2"}, "there is no file or directory"),
        ({"tokenizer": "bpe:256"}, "SIZE must lie between 257 and 1048576"),
        ({"tokenizer": "bpe:257", "mask": 0.1}, "SIZE must lie between 258 and"),
        ({"tokenizer": "bpe:1099511627776"}, "SIZE must lie between 257 and 1048576"),
        ({"tokenizer": "~nobody-of-that-name/x"}, "data.tokenizer = .* cannot be a path"),
        ({"source": "text:~nobody-of-that-name/*.txt"}, "data.source = .* cannot be a path"),
        ({"source": "text:/" + "a" * 300}, "data.source = .* cannot be a path"),
        ({"mask": 0.15}, "the tokenizer 'bytes' has no mask token"),
        ({"mask": 0.15, "tokenizer": "bpe:300", "packing": "stream"}, "data.packing is stream"),
        ({"overlap": 256}, "a row has 256 tokens"),
        ({"overlap": 8, "mask": 0.15}, "data.overlap is context"),
        ({"length": 0}, "data.length is 0"),
        ({"overlap": -1}, "data.overlap is -1"),
        ({"mask": 1.5}, "data.mask is 1.5"),
        ({"packing": "rows"}, "did you mean"),
    ],
)
def test_a_bad_option_is_named_before_anything_runs(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(config.Experiment(data=Text(**changes)))


def test_text_is_checked_without_heavy_imports():
    program = (
        "import sys; from train.config import Text, LabelledText\n"
        "Text().check()\n"
        "LabelledText(source=f'jsonl:{sys.argv[1]}').check()\n"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'tensorflow'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    command = [sys.executable, "-c", program, __file__]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def test_an_experiment_with_text_survives_its_json():
    for data in (Text(length=64, tokenizer="bpe:300"), LabelledText(tagging=True)):
        written = json.loads(json.dumps(serialise.to_dict(config.Experiment(data=data))))
        assert serialise.from_dict(written).data == data


# ---- jsonl ----


def write_jsonl(path, objects):
    lines = "".join(json.dumps(each) + "\n" for each in objects).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def test_json_lines_packed_or_not_are_documents(tmp_path):
    rng = np.random.default_rng(2)
    texts = [f"{i} {sentence(rng)}" for i in range(50)]
    objects = [{"id": i, "body": content} for i, content in enumerate(texts)]
    write_jsonl(tmp_path / "a.jsonl", objects[:30])
    write_jsonl(tmp_path / "b.jsonl.gz", [*objects[30:], {"body": ""}])
    source = f"jsonl:{tmp_path}/*.jsonl*"
    cfg = Text(source=source, field="body", holdout=0.2, cache=str(tmp_path / "cache"))
    found = contents(cfg)
    names = {name: content for some in found.values() for name, content in some.items()}
    assert names["a.jsonl:3"] == texts[2] and names["b.jsonl.gz:1"] == texts[30]
    assert sorted(names.values()) == sorted(texts) and all(found.values())
    assert cfg.open().statistics("train")["documents"] == len(found["train"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"txt": "a"}', r"data.field = 'text': .*a\.jsonl, line 3 has 'txt' instead"),
        (b'{"text": 5}', r"line 3 holds 5, which is no text"),
        (b'{"text": "\\ud800"}', r"line 3 holds what is no Unicode text"),
        (b'{"text": "a"', r"a\.jsonl, line 3 is not JSON"),
        (b'["a"]', r"line 3 holds a JSON list, not an object"),
        (b'{"text": "caf\xe9"}', r"line 3 is not UTF-8: byte 0xe9 at offset 13 of the line"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    cfg = Text(source=f"jsonl:{tmp_path}/a.jsonl", cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=message):
        cfg.open()


@pytest.mark.parametrize("kind", [Text, LabelledText])
def test_lines_without_text_are_refused(kind, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    cfg = kind(source=f"jsonl:{tmp_path}/a.jsonl")
    cfg = replace(cfg, cache=str(tmp_path / "cache")) if kind is Text else cfg
    with pytest.raises(ConfigError, match="has no (document with text|example)"):
        cfg.open()


def test_what_cannot_be_read_while_it_is_tokenized_is_not_blamed_on_the_cache(
    tmp_path, monkeypatch
):
    def unreadable(path):
        raise PermissionError(13, "Permission denied", str(path))

    write_files(tmp_path, {"a.py": "a = 1"})
    monkeypatch.setattr(corpora, "stdlib_root", lambda: tmp_path)
    monkeypatch.setattr(corpora, "_utf8", unreadable)
    with pytest.raises(ConfigError, match=r"data.source = 'stdlib': cannot be read: .*a\.py"):
        Text(cache=str(tmp_path / "cache")).open()


def test_a_damaged_archive_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl.gz", [{"text": f"{i}" * 50} for i in range(50)])
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz cannot be read after line"):
        Text(source=f"jsonl:{tmp_path}/*.gz", cache=str(tmp_path / "cache")).open()


# ---- tfds ----


def prepare_tfds(folder, features, splits):
    """Writes a TFDS data set `tiny_texts`, with `features(tfds)`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration

    with skip_registration():

        class TinyTexts(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                found = tfds.features.FeaturesDict(features(tfds))
                return tfds.core.DatasetInfo(builder=self, features=found)

            def _split_generators(self, dl_manager):
                return {split: enumerate(some) for split, some in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError  # TFDS wants one; the splits above are made

    TinyTexts(data_dir=folder, file_format="array_record").download_and_prepare()


def test_a_tfds_data_set_keeps_its_splits_and_cuts_what_is_missing(tmp_path):
    texts = [f"number {i} é" for i in range(60)]
    examples = [{"text": each} for each in texts]
    splits = {"train": examples[:50], "validation": examples[50:]}  # which then is the test
    prepare_tfds(tmp_path, lambda tfds: {"text": tfds.features.Text()}, splits)
    cfg = Text(
        source="tfds:tiny_texts", data_dir=str(tmp_path), holdout=0.2, cache=str(tmp_path / "c")
    )
    found = contents(cfg)
    assert sorted(found["test"].values()) == texts[50:]
    assert sorted([*found["train"].values(), *found["validation"].values()]) == sorted(texts[:50])
    assert 3 < len(found["validation"]) < 20 and found["test"].keys() >= {"test:0", "test:9"}
    assert cfg.open().statistics("test")["documents"] == 10
    with pytest.raises(ConfigError, match="data.field = 'body' must be a text; it has text"):
        replace(cfg, field="body").open()


# ---- token files ----


@pytest.mark.parametrize("split", SPLITS)
def test_a_token_file_holds_every_document_once_after_an_end_of_text(data, cfg, split):
    expected = [[EOS, *content.encode()] for content in contents(cfg)[split].values()]
    found = documents(data.files, split)
    assert sorted(found) == sorted(expected)
    if split == "train":
        assert found != expected, "documents are not in a random order"


def test_a_tokenizer_with_two_ends_puts_one_on_either_side(data, cfg):
    bert = families.wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "."], {})
    assert tokens.ends(bert) == (2, 3)
    assert tokens.ends(ByteTokenizer()) == (EOS, None)


def test_documents_between_two_ends(tmp_path):
    bert = families.wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "."], {})
    pieces = [
        corpora.Piece("train", "x", "ab", True),
        corpora.Piece("train", "x", ".", False),
        corpora.Piece("train", "y", "a [SEP]", True),
        corpora.Piece("test", "z", "a", True),
    ]
    facts = tokens.write_splits(tmp_path, pieces, bert, shuffle=False)
    ids = np.fromfile(tmp_path / "train.bin", np.uint16).tolist()
    # "[SEP]" in a text is three words that this vocabulary does not know.
    assert ids == [2, 5, 6, 7, 3, 2, 5, 1, 1, 1, 3]
    assert np.load(tmp_path / "train.npy").tolist() == [0, 5, 11]
    assert np.fromfile(tmp_path / "test.bin", np.uint16).tolist() == [2, 5, 3]
    assert facts["splits"]["train"]["bytes"] == len("ab.a [SEP]")


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size = 2**16 + 1
    pieces = [corpora.Piece(split, "x", "ab", True) for split in SPLITS]
    tokens.write_splits(tmp_path, pieces, tokenizer, shuffle=True)
    assert np.fromfile(tmp_path / "train.bin", np.uint32).tolist() == [EOS, 97, 98]


def test_a_bpe_is_trained_on_the_training_split_alone_and_kept(cfg, monkeypatch, tmp_path):
    seen = []

    def spy(texts, size, **options):
        seen.append([*texts])
        return train_bpe(seen[-1], size, **options)

    monkeypatch.setattr(tokens.zoo_text, "train_bpe", spy)
    cfg = replace(cfg, tokenizer="bpe:300", cache=str(tmp_path))
    first, second = cfg.open(), cfg.open()
    assert [sorted(texts) for texts in seen] == [sorted(contents(cfg)["train"].values())]
    assert first.vocab_size == second.vocab_size == 300
    expected = [
        [first.tokenizer.specials.eos, *first.tokenizer.encode(content)]
        for content in contents(cfg)["test"].values()
    ]
    assert sorted(documents(second.files, "test")) == sorted(expected)

    monkeypatch.setattr(tokens, "LEARNED_FROM", 100)
    replace(cfg, holdout=0.1, tokenizer="bpe:258").open()
    assert 100 <= len("".join(seen[1]).encode()) < 600
    with pytest.raises(ConfigError, match="data.tokenizer = 'bpe:9000': .*too few|ask for fewer"):
        replace(cfg, tokenizer="bpe:9000").open()


def test_a_tokenizer_from_a_path_is_part_of_the_key(cfg, tmp_path):
    texts = list(contents(cfg)["train"].values())
    folders = set()
    for size in (280, 290):
        train_bpe(texts, size).save(tmp_path / "tokenizer")
        data = replace(cfg, tokenizer=str(tmp_path / "tokenizer")).open()
        folders.add(data.files.folder)
        assert data.vocab_size == size
    assert len(folders) == 2
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="data.tokenizer = .*tokenizer.json"):
        replace(cfg, tokenizer=str(tmp_path / "tokenizer")).open()


def test_a_special_token_in_a_text_is_text(tmp_path):
    write_files(tmp_path, {f"{i}.txt": f"{i} <|endoftext|> " * 9 for i in range(30)})
    cfg = Text(source=f"text:{tmp_path}/*", tokenizer="bpe:260", holdout=0.2, cache=f"{tmp_path}/c")
    files = cfg.open().files
    eos = files.tokenizer.specials.eos
    assert all(ids[1:].count(eos) == 0 for split in SPLITS for ids in documents(files, split))


def test_text_is_read_and_tokenized_a_little_at_a_time(cfg, monkeypatch, tmp_path):
    monkeypatch.setattr(tokens, "AT_ONCE", 200)
    read, lag, sizes = [], [], []
    whole = corpora.read_text

    def reading(path):
        read.append(path)
        return whole(path)

    def encode_batch(self, texts, **options):
        sizes.append(sum(map(len, texts)))
        lag.append(len(read) - sum(counts) - len(texts))
        counts.append(len(texts))
        return [list(each.encode()) for each in texts]

    counts = []
    monkeypatch.setattr(corpora, "read_text", reading)
    monkeypatch.setattr(ByteTokenizer, "encode_batch", encode_batch)
    small = replace(cfg, cache=str(tmp_path)).open()
    assert len(sizes) > 10 and max(sizes) < 500 and max(lag) <= 0
    assert small.statistics("train") == cfg.open().statistics("train")


# ---- caches that are damaged, shared or cannot be written ----


def damage(path, how):
    if how == "header":
        (path / "header.json").write_text("{}")
    elif how == "tokenizer":
        (path / "tokenizer" / "tokenizer_config.json").unlink()
    elif how == "foreign":
        header = json.loads((path / "header.json").read_text())
        header["key"]["split"] = ["position", 0.2]
        (path / "header.json").write_text(json.dumps(header))
    elif how.startswith("empty"):
        (path / how.split()[1]).write_bytes(b"")
    elif how.startswith("garbled"):
        file = path / how.split()[1]
        file.write_bytes(file.read_bytes().replace(b"'descr'", b"\"'(((''"))
    else:
        content = (path / how).read_bytes()
        (path / how).write_bytes(content[:-2])


DAMAGES = ["header", "tokenizer", "foreign", "train.bin", "test.npy", "header.json"]
DAMAGES += [f"empty {name}" for name in ("train.bin", "test.npy", "header.json")]
DAMAGES += ["garbled test.npy"]


@pytest.mark.parametrize("how", DAMAGES)
def test_files_that_are_cut_short_or_foreign_are_written_again(how, cfg, data, tmp_path):
    cfg = replace(cfg, cache=str(tmp_path))
    damage(cfg.open().files.folder, how)
    again = cfg.open()
    assert documents(again.files, "train") == documents(data.files, "train")
    assert again.files.header["key"]["split"] == ["hash", 0.2]
    assert [path.name for path in tmp_path.iterdir()] == [again.files.folder.name]
    assert again.files.folder.stat().st_mtime_ns == cfg.open().files.folder.stat().st_mtime_ns


def test_what_changes_makes_new_files(cfg, folder, tmp_path):
    write_files(tmp_path, {f"{i}.txt": f"number {i}" for i in range(60)})
    cfg = replace(cfg, source=f"text:{tmp_path}/*.txt", cache=str(tmp_path / "cache"))
    files = {cfg.open().files.folder}
    files.add(replace(cfg, seed=1, length=8, batch_size=2).open().files.folder)
    assert len(files) == 1
    files.add(replace(cfg, holdout=0.3).open().files.folder)
    write_files(tmp_path, {"5.txt": "other content"})
    files.add(cfg.open().files.folder)
    assert len(files) == 3


def test_several_at_once_write_one_folder(cfg, data, tmp_path):
    cfg, found, together = replace(cfg, cache=str(tmp_path)), [], threading.Barrier(4)

    def run():
        together.wait()
        found.append(cfg.open())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.files.folder for each in found} == {*tmp_path.iterdir()}
    for each in found:
        assert documents(each.files, "train") == documents(data.files, "train")


def test_losing_the_race_is_fine_and_a_bad_winner_is_replaced(tmp_path):
    for name in ("mine", "theirs"):
        write_files(tmp_path, {f"{name}/file": name})
    tokens.install(tmp_path / "mine", tmp_path / "theirs", lambda: True)
    assert (tmp_path / "theirs" / "file").read_text() == "theirs"
    tokens.install(tmp_path / "mine", tmp_path / "theirs", lambda: False)
    assert (tmp_path / "theirs" / "file").read_text() == "mine"


def test_a_cache_that_cannot_be_written_names_its_key(cfg, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="data.cache: token files cannot be written below"):
        replace(cfg, cache=str(tmp_path / "file")).open()


def test_the_cache_of_the_user_is_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert text.cache_root(Text()) == tmp_path / "flax-zoo" / "text"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert text.cache_root(Text()) == Path.home() / ".cache" / "flax-zoo" / "text"


def test_an_id_that_no_token_has_never_reaches_a_batch(cfg, tmp_path):
    data = replace(cfg, cache=str(tmp_path)).open()
    path = data.files.folder / "train.bin"
    ids = np.fromfile(path, np.uint16)
    ids[100] = EOS + 1
    ids.tofile(path)
    with pytest.raises(ConfigError, match=r"train\.bin holds the id 257, .* remove its folder"):
        [*itertools.islice(replace(cfg, cache=str(tmp_path)).open().train(), 100)]


# ---- rows ----


def rows(files, split="train", **changes):
    facts = {"length": N, "documents": True, "fill": EOS, "overlap": 0}
    return packing.Rows(files.splits[split], **facts | changes)


@pytest.mark.parametrize("length", [1, 5, N, 10_000])
def test_rows_match_a_python_loop(data, length):
    found = documents(data.files, "train")
    stream = [(i, d, p) for d, ids in enumerate(found) for p, i in enumerate(ids)]
    ids = [i for i, _, _ in stream] + [EOS]
    cut = rows(data.files, length=length)
    assert len(cut) == -(-len(stream) // length)
    for number, row in enumerate(cut):
        assert row.keys() == {"tokens", "targets", "segments", "positions", "index"}
        segment, position, last = 0, 0, None
        for k in range(length):
            place = number * length + k
            values = tuple(row[key][k] for key in ("tokens", "targets", "segments", "positions"))
            if place >= len(stream):
                assert values == (EOS, -1, 0, 0)
                continue
            token, document, _ = stream[place]
            segment, position = (segment, position) if document == last else (segment + 1, 0)
            assert values == (token, ids[place + 1], segment, position)
            position, last = position + 1, document
        assert row["index"] == number and row["index"].dtype == np.int64
        assert {row[key].dtype for key in row.keys() - {"index"}} == {np.dtype(np.int32)}
    stream_rows = rows(data.files, length=length, documents=False)
    assert stream_rows[0].keys() == {"tokens", "targets", "index"}
    assert all(
        np.array_equal(a["targets"], b["targets"]) for a, b in zip(cut, stream_rows, strict=True)
    )


@pytest.mark.parametrize("overlap", [0, 3, N - 1])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_scores_every_token_once(data, cfg, overlap, processes):
    cfg = replace(cfg, overlap=overlap)
    cut = packing.rows(data.files.splits["test"], data.tokenizer, cfg, overlap=overlap)
    runs = [
        [*packing.eval_batches(cut, None, cfg, process_index=i, process_count=processes)]
        for i in range(processes)
    ]
    assert len({len(run) for run in runs}) == 1
    batches = [batch for run in runs for batch in run]
    index, mask = stacked(batches, "index"), stacked(batches, "mask")
    assert mask.dtype == np.float32 and sorted(index[mask == 1]) == [*range(len(cut))]
    assert np.all(index[mask == 0] == -1) and np.all(stacked(batches, "targets")[mask == 0] == -1)
    assert len(mask) == -(-len(cut) // 4) * 4 and len(batches[0]["mask"]) == 4 // processes

    ids = [*data.files.splits["test"].ids, EOS]
    scored = Counter()
    for i, row, targets in zip(
        index, stacked(batches, "tokens"), stacked(batches, "targets"), strict=True
    ):
        for k in np.flatnonzero(targets >= 0):
            place = i * (N - overlap) + k
            scored[place] += 1
            assert (row[k], targets[k]) == (ids[place], ids[place + 1])
            assert k >= min(overlap, place)  # context stands before
    assert scored == Counter(range(len(ids) - 1))
    size = data.byte_lengths[[ids[place + 1] for place in scored]].sum()
    assert size == data.statistics("test")["bytes"]


def test_the_dataset_yields_what_its_spec_says(cfg):
    for packed in ("documents", "stream"):
        data = replace(cfg, packing=packed, overlap=2).open()
        batch, spec = next(data.train()), data.spec()
        assert {k: (v.shape, v.dtype) for k, v in spec.items()} == {
            k: (v.shape, v.dtype) for k, v in batch.items() if k != "index"
        }
        batches, skips = data.evaluate("validation")
        assert next(batches).keys() == {*spec, "index", "mask"}
        assert (skips.count, skips.length) == (0, len(data._rows("validation", overlap=2)))
    assert (data.vocab_size, data.length, data.source.name) == (257, N, cfg.source[5:])


# ---- the training stream ----


def take(stream, n):
    return [*itertools.islice(stream, n)]


def test_every_epoch_holds_every_token_once(data, cfg):
    cut = rows(data.files)
    seen = take(packing.train_stream(cut, None, cfg), len(cut))  # four epochs of batches of four
    every = Counter(data.files.splits["train"].ids.tolist())
    order = []
    for epoch in np.split(np.arange(len(cut) * 4), 4):
        tokens_, real = (stacked(seen, key)[epoch] for key in ("tokens", "segments"))
        assert Counter(tokens_[real > 0].tolist()) == every
        order.append(tuple(stacked(seen, "index")[epoch]))
        assert sorted(order[-1]) == [*range(len(cut))]
    assert len({*order}) == 4


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("tokenizer, mask", [("bytes", 0.0), ("bpe:300", 0.3)])
def test_a_stream_that_resumes_is_the_one_that_never_stopped(threads, tokenizer, mask, cfg):
    data = replace(cfg, threads=threads, tokenizer=tokenizer, mask=mask).open()
    total = len(data._rows("train")) // 4 + 3  # past the end of an epoch
    straight, states, batches = data.train(), [], []
    for _ in range(total + 2):
        states.append(json.loads(json.dumps(straight.state())))
        batches.append(next(straight))
    assert states[1].keys() == {"position", "examples", "content"}
    resumed = data.train()
    for t in reversed(range(total)):
        resumed.restore(states[t])
        assert same(take(resumed, 2), batches[t : t + 2]), f"after batch {t}"
    resumed.close()
    straight.close()


def test_a_stream_goes_on_in_its_own_data_alone(cfg, tmp_path):
    """Not in others that have as many rows; copies elsewhere are the same data."""
    for name, letter in (("a", "x"), ("copy", "x"), ("b", "y")):
        write_files(tmp_path / name, {f"{i}.txt": f"{i:02}{letter}" for i in range(60)})
        pairs = [(f"{i} {letter}", "yes") for i in range(30)]
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": t, "label": v} for t, v in pairs])
    for source, kind in (("text:{}/*.txt", cfg), ("jsonl:{}.jsonl", LabelledText(batch_size=2))):
        opened = {
            name: replace(kind, source=source.format(tmp_path / name), length=8).open()
            for name in ("a", "copy", "b")
        }
        state = opened["a"].train().state()
        opened["copy"].train().restore(state)
        with pytest.raises(ConfigError, match="train has as many examples .* but other ones"):
            opened["b"].train().restore(state)


@pytest.mark.parametrize("mask", [0.0, 0.3])
def test_processes_share_the_same_global_batches_whatever_the_threads(cfg, mask):
    data = replace(cfg, tokenizer="bpe:300", mask=mask).open()
    cut, masking = data._rows("train"), packing.masking(data.tokenizer, data.cfg)

    def run(count, threads):
        some = replace(cfg, threads=threads)
        streams = [
            packing.train_stream(cut, masking, some, process_index=i, process_count=count)
            for i in range(count)
        ]
        streams[0].restore({"position": 8, "examples": len(cut)})
        for stream in streams[1:]:
            stream.restore(streams[0].state())
        for parts in itertools.islice(zip(*streams, strict=True), 12):
            yield {
                k: np.stack([p[k] for p in parts], 1).reshape(4, *parts[0][k].shape[1:])
                for k in parts[0]
            }

    one = [*run(1, 0)]
    assert same(one, [*run(2, 0)]) and same(one, [*run(4, 2)])
    with pytest.raises(ConfigError, match="not a multiple of 3 processes"):
        packing.train_stream(cut, masking, cfg, process_count=3)


# ---- masking ----


@pytest.fixture(scope="module")
def bert(cfg, tmp_path_factory):
    """A data set with a BERT tokenizer, rows of 64."""
    words = sorted({*"".join(WORDS), *(f"##{c}" for c in "".join(WORDS)), *"0123456789"})
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join([*named, *filter(str.strip, words)]))
    return replace(cfg, tokenizer=str(path), mask=0.15, length=64).open()


def test_tokens_are_masked_as_bert_masks_them(bert):
    cut, masking = bert._rows("train"), packing.masking(bert.tokenizer, bert.cfg)
    rng, kinds, other = np.random.default_rng(0), Counter(), Counter()
    total = 0
    for _ in range(60):
        for row in cut:
            found = packing.masked(row, rng, masking)
            real = row["targets"] != -1
            picked = found["targets"] != -1
            assert picked.sum() == max(1, round(0.15 * (real & (row["tokens"] > 4)).sum()))
            assert np.array_equal(found["targets"][picked], row["tokens"][picked])
            assert np.array_equal(found["tokens"][~picked], row["tokens"][~picked])
            assert not {*range(5)} & {*found["targets"][picked].tolist()}
            assert all(np.array_equal(found[k], row[k]) for k in ("segments", "positions", "index"))
            now = found["tokens"][picked]
            kept = now == found["targets"][picked]
            kinds += Counter(mask=int((now == 4).sum()), kept=int(kept.sum()))
            other.update(now[(now != 4) & ~kept].tolist())
            total += picked.sum()
    assert abs(kinds["mask"] / total - 0.8) < 0.02
    # One in `words` of the tokens put for another is the token itself.
    assert abs(kinds["kept"] / total - 0.1 - 0.1 / len(masking.words)) < 0.015
    assert other.keys() == {*masking.words.tolist()} and not {*range(5)} & {*other}


def test_what_is_hidden_changes_with_the_epoch_and_not_in_evaluation(bert):
    first, second = ([*bert.evaluate("validation")[0]] for _ in range(2))
    assert same(first, second)
    assert np.any(stacked(first, "tokens") == bert.tokenizer.specials.mask)
    cut = len(bert._rows("train"))
    seen = take(bert.train(), cut)
    index, hidden = stacked(seen, "index"), stacked(seen, "targets") >= 0
    patterns = {tuple(hidden[at]) for at in np.flatnonzero(index == 0)}
    assert len(patterns) == 4


def test_masking_needs_a_mask_token_and_a_bpe_that_is_trained_gets_one(cfg):
    with pytest.raises(ConfigError, match="the tokenizer 'bytes' has no mask token: use bpe:SIZE"):
        replace(cfg, mask=0.15).open()
    data = replace(cfg, mask=0.15, tokenizer="bpe:300").open()
    specials = data.tokenizer.specials
    assert data.vocab_size == 300 and specials.mask is not None
    tokens_ = stacked(take(data.train(), 20), "tokens")
    assert np.any(tokens_ == specials.mask) and np.any(tokens_ == specials.eos)


# ---- compressors ----


def test_compressors_state_bits_per_byte_once(cfg, monkeypatch, tmp_path):
    cfg = replace(cfg, cache=str(tmp_path))
    data = cfg.open()
    train, held = ("".join(contents(cfg)[s].values()).encode() for s in ("train", "test"))

    def xz(content):
        return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))

    expected = {
        "zlib": 8 * len(zlib.compress(held, 9)) / len(held),
        "xz": 8 * xz(held) / len(held),
        "xz_seen": 8 * (xz(train + held) - xz(train)) / len(held),
    }
    assert data.compressors("test") == pytest.approx(expected)
    assert expected["xz_seen"] < expected["xz"]
    monkeypatch.setattr(text, "compressors", None)  # would raise if it were called again
    assert cfg.open().compressors("test") == pytest.approx(expected)
    monkeypatch.setattr(text, "COMPRESSED", len(train) + len(held) - 1)
    assert data.compressors("test") == {}


def test_byte_lengths_are_those_of_the_text(cfg):
    data = replace(cfg, tokenizer="bpe:300").open()
    lengths = data.byte_lengths
    assert lengths.dtype == np.int32 and lengths.shape == (300,)
    assert lengths[data.tokenizer.specials.eos] == 0
    for content in contents(cfg)["test"].values():
        assert lengths[data.tokenizer.encode(content)].sum() == len(content.encode())


# ---- texts with labels ----

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "very", "un", "##good"]
VERDICTS = [("very good", "yes"), ("bad", "no"), ("ungood very bad", "no"), ("", "yes")]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY))
    return str(path)


def write_verdicts(folder, **files):
    for name, pairs in files.items():
        write_jsonl(folder / f"{name}.jsonl", [{"text": t, "label": v} for t, v in pairs])
    return LabelledText(source=f"jsonl:{folder}/*.jsonl", length=5, batch_size=3)


def test_texts_become_rows_with_their_class(tmp_path, wordpiece):
    cfg = write_verdicts(tmp_path, my_train=VERDICTS, dev=VERDICTS[:2], test=VERDICTS[1:])
    data = replace(cfg, tokenizer=wordpiece).open()
    assert data.labels == ("no", "yes") and (data.vocab_size, data.length) == (10, 5)
    [first, second] = data.evaluate("test")[0], data.evaluate("validation")[0]
    [batch] = first
    assert batch["tokens"].tolist() == [[2, 6, 3, 0, 0], [2, 8, 9, 7, 3], [2, 3, 0, 0, 0]]
    assert batch["lengths"].tolist() == [3, 5, 2] and batch["label"].tolist() == [0, 0, 1]
    assert {k: (v.shape, v.dtype) for k, v in data.spec().items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items() if k not in ("index", "mask")
    }
    [batch] = second
    assert batch["mask"].tolist() == [1, 1, 0] and batch["index"].tolist() == [0, 1, -1]
    seen = take(data.train(), 4)
    assert Counter(stacked(seen, "index").tolist()) == Counter([*range(4)] * 3)


def test_files_without_a_split_in_their_names_are_cut(tmp_path):
    pairs = [(f"text {i}", i % 3) for i in range(40)]
    data = write_verdicts(tmp_path, all=pairs).open()
    sizes = {split: len(some) for split, some in data.source.splits.items()}
    assert sizes == {"train": 32, "validation": 4, "test": 4}
    assert data.labels == ("0", "1", "2")
    found = [(e["text"], e["label"]) for some in data.source.splits.values() for e in some]
    assert sorted(found) == sorted(pairs)


def test_an_empty_text_has_one_token_of_padding(tmp_path):
    cfg = write_verdicts(tmp_path, train=VERDICTS, dev=VERDICTS, test=VERDICTS)
    [batch, _] = cfg.open().evaluate("test")[0]
    assert batch["lengths"].min() >= 1
    rows_ = cfg.open()._rows["test"]
    assert rows_[3]["lengths"] == 1 and rows_[3]["tokens"].tolist() == [EOS] * 5


def test_a_bpe_for_labelled_texts_is_trained_on_their_training_split(tmp_path):
    cfg = write_verdicts(tmp_path, train=[*VERDICTS] * 9, test=[("zzzz zzzz zzzz", "no")] * 9)
    data = replace(cfg, tokenizer="bpe:264").open()
    assert len(data.tokenizer.encode("good")) < len(data.tokenizer.encode("zzzz"))


WORD_TAGS = (["very", "ungood", "\u200b", "bad"], ["A", "B", "O", "A"])


def tagging_rows(tokenizer, length, words=WORD_TAGS[0], tags=(0, 1, 2, 0)):
    cfg = LabelledText(tagging=True, length=length)
    return labelled.rows([{"text": [*words], "label": [*tags]}], tokenizer, cfg)[0]


def test_a_word_has_its_label_at_its_first_token(wordpiece):
    tokenizer = families.wordpiece(VOCABULARY, {})
    row = tagging_rows(tokenizer, 8)  # the third word has no token: BERT drops it
    assert row["tokens"].tolist() == [2, 7, 8, 9, 6, 3, 0, 0]
    assert row["labels"].tolist() == [-1, 0, 1, -1, 0, -1, -1, -1] and row["lengths"] == 6
    last = tagging_rows(tokenizer, 8, ["bad", "\u200b"], [1, 2])
    assert last["labels"].tolist() == [-1, 1, *[-1] * 6]
    short = tagging_rows(tokenizer, 4)
    assert short["tokens"].tolist() == [2, 7, 8, 3]
    assert short["labels"].tolist() == [-1, 0, 1, -1]


def test_byte_level_words_follow_a_space():
    tokenizer = train_bpe(["very good very bad very good"] * 9, 264)
    row = tagging_rows(tokenizer, 12, ["very", "good", "very"], [0, 1, 2])
    whole = [tokenizer.specials.eos, *tokenizer.encode("very good very")]
    assert row["tokens"][: row["lengths"]].tolist() == whole
    starts = np.flatnonzero(row["labels"] >= 0)
    assert row["labels"][starts].tolist() == [0, 1, 2]
    cuts = [*starts, len(whole)]
    parts = [tokenizer.decode(whole[a:b]) for a, b in itertools.pairwise(cuts)]
    assert parts == ["very", " good", " very"]


def test_tagged_lines_open(tmp_path, wordpiece):
    words, tags = WORD_TAGS
    cfg = write_verdicts(tmp_path, train=[(words, tags)] * 20)
    data = replace(cfg, tokenizer=wordpiece, tagging=True).open()
    assert data.labels == ("A", "B", "O")
    batch = next(data.train())
    assert batch["labels"].shape == (3, 5) == data.spec()["labels"].shape
    assert batch["labels"][0].tolist() == [-1, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("changes", "files", "message"),
    [
        ({}, {"train": [("a", "x")], "test": [("a", "y")]}, "test has 'y', but train has only 'x'"),
        ({}, {"train": [("a", 1.5)]}, r"train\.jsonl, line 1 holds 1.5: neither a text nor"),
        ({}, {"train": [("a", True)]}, "neither a text nor a whole number"),
        ({}, {"train": [("a", 1), ("a", "x")]}, "some labels of train are texts, others whole"),
        ({}, {"train": [(7, 1)]}, "line 1 holds 7, which is no text"),
        ({}, {"test": [("a", "x")]}, "has the splits test, but no train split"),
        ({}, {"train": [("a", "x")]}, "data.holdout"),
        ({"label_field": "verdict"}, {"train": [("a", "x")]}, "line 1 has no 'verdict', only text"),
        ({"tagging": True}, {"train": [("a b", ["x", "y"])]}, "needs a list 'text' of words"),
        ({"tagging": True}, {"train": [(["a"], ["x", "y"])]}, "of as many labels"),
        ({"tagging": True}, {"train": [([], [])] * 20}, "train has no label at all"),
        ({"tokenizer": "/nowhere"}, {"train": [("a", "x")] * 20}, "data.tokenizer = '/nowhere'"),
        ({"source": "stdlib"}, {}, "unknown source"),
    ],
)
def test_bad_labelled_texts_are_named(changes, files, message, tmp_path):
    cfg = replace(write_verdicts(tmp_path, **files), **changes)
    with pytest.raises(ConfigError, match=message):
        cfg.open()


def test_tfds_states_its_classes_and_hides_labels(tmp_path):
    def features(tfds):
        return {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["pos", "neg"]),
            "words": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"])),
        }

    def some(n, label=1):
        words = {"words": ["ein", "Wort"], "tags": [0, 1]}
        return [{"text": f"é {i}", "label": label, **words} for i in range(n)]

    splits = {"train": some(20), "validation": some(8), "test": some(4, -1)}
    prepare_tfds(tmp_path, features, splits)
    cfg = LabelledText(source="tfds:tiny_texts", data_dir=str(tmp_path), length=12, batch_size=2)
    data = cfg.open()
    sizes = {split: len(found) for split, found in data.source.splits.items()}
    assert data.labels == ("pos", "neg") and sizes == {"train": 18, "validation": 2, "test": 8}
    assert {"text": "é 3", "label": 1} in data.source.splits["test"]
    tagged = replace(cfg, field="words", label_field="tags", tagging=True).open()
    assert tagged.labels == ("O", "B")
    assert tagged.source.splits["test"][1] == {"text": ["ein", "Wort"], "label": [0, 1]}
    batch = next(tagged.train())
    assert bytes(batch["tokens"][0, 1:9].tolist()) == b"ein Wort"
    assert batch["labels"][0].tolist() == [-1, 0, -1, -1, 1, *[-1] * 7]


def test_a_label_that_names_no_class_and_a_text_in_another_encoding_are_refused():
    """Not the last of all classes, and no U+FFFD."""
    cfg = LabelledText()
    for label in (-1, 2, [0, -1]):
        with pytest.raises(ConfigError, match=r"here holds (-1|2), which is none of 2 classes"):
            labelled._named(label, ("pos", "neg"), "here", cfg)
    for text_, label in ((b"caf\xe9", b"x"), (b"x", b"caf\xe9")):
        with pytest.raises(ConfigError, match="here holds what is no Unicode text"):
            labelled._example(labelled._plain(text_), labelled._plain(label), "here", cfg)
    assert labelled._example(b"a", b"x", "here", cfg) == {"text": "a", "label": "x"}


def test_texts_begin_as_documents_do(tmp_path):
    """By the token that a model which is trained on documents has seen there."""
    cfg = write_verdicts(tmp_path, train=VERDICTS, dev=VERDICTS, test=VERDICTS)
    data = replace(cfg, tokenizer="bpe:260", length=30).open()
    eos, rows_ = data.tokenizer.specials.eos, data._rows["test"]
    for row, (content, _) in zip(rows_, VERDICTS, strict=True):
        expected = [eos, *data.tokenizer.encode(content)]
        assert row["tokens"][: row["lengths"]].tolist() == expected
