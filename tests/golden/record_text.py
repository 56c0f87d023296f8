"""Record the ids that independent tokenizers give to a thousand strings; `test_text.py` replays.

    python tests/golden/record_text.py --ranks gpt2.tiktoken --merges bpe_simple_vocab_16e6.txt.gz

None of the references is the tokenizers library: tiktoken (Rust, its own), open_clip's
SimpleTokenizer (Python; without its repair of texts by ftfy and HTML), sentencepiece (C++), and the
slow tokenizers of transformers 4 (Python), in Python 3.11 with

    pip install tiktoken==0.14.0 sentencepiece==0.2.3 protobuf==7.36.2 transformers==4.57.6
    pip install open-clip-torch==3.3.0

gpt2.tiktoken lies in the sdist of openai-whisper 20250625, the merges in open-clip-torch; both are
others' and are not copied. The small vocabularies here are trained on this project's own sources.

    text_strings.json.gz        the strings; where the file is there, they are kept
    text_KIND.json.gz           versions, ids of each string, and where it is ours the vocabulary
"""

import argparse
import gzip
import io
import json
import random
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIMIT = 100_000  # bytes of a file
VOCABULARY = 1000  # ids of a vocabulary of ours

SAMPLES = [  # short, and each with something that tokenizers treat in its own way
    *("Hello, world!", "It's 5 o'clock; they'll've said so, won't they?", "I'M SHOUTING, DON'T"),
    *("3.14159 1,000,000 0x1F 10⁻³ ½ Ⅷ ٣٤٥ 五百", "e.g. a@b.org http://x.y/z?q=1&r=2#s"),
    *("Straße STRASSE ẞ ﬁn ﬂy İstanbul ıIiİ ΟΔΥΣΣΕΥΣ Ὀδυσσεύς", "ǅ ǆ Ǆ Ａｂｃ１２３ ㎏ ℌ ℵ"),
    *("naïve café Ångström résumé", "Zürich Łódź Đà Nẵng", "Việt Nam: tiếng Việt có dấu"),
    *("Привет, мир! Ёж и щука.", "Γειά σου Κόσμε", "שלום עולם, מה שלומך?", "مرحبا بالعالم ١٢٣"),
    *("नमस्ते दुनिया", "สวัสดีชาวโลก", "你好,世界。", "こんにちは世界ｶﾀｶﾅ", "안녕하세요 세계"),
    *("გამარჯობა მსოფლიო", "Բարեւ աշխարհ", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "𐍈𐌰𐌹𐍂𐌾𐌰 𝔘𝔫𝔦 𝒞𝓸𝓭𝓮", "ဟယ်လို", "ជំរាបសួរ"),
    *("👩‍👩‍👧‍👦 family", "👍🏽 thumbs", "🏳️‍🌈🏴‍☠️", "🇩🇪🇯🇵🇧🇷", "☃️ ✂︎ #️⃣ 1️⃣", "😀😃😄"),
    *("e\u0301 o\u0308 n\u0303", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘", "\u0301 alone", "가 가"),
    *("tab\tand\nline\r\nand\rmore\x0b\x0c", "\x00\x01\x02 nul", "bell\x07 esc\x1b[0m del\x7f"),
    *("\x1c\x1d\x1e\x1f sep", "\x85next\u2028line\u2029para", "no\u00a0break\u202fthin\u3000wide"),
    *("zero\u200bwidth\u200cnon\u200djoin\u2060\ufeff", "\u202eright to left\u202c", "\ufeffBOM"),
    *(
        "",
        " ",
        "  ",
        "   a",
        "a   ",
        " a b  c   d    e",
        "\n\n\n",
        " \n \n ",
        "\t\t\tx",
        "x\n  y\n",
    ),
    *(
        "\ufffd replacement \ufffd\ufffd",
        "\ufffe\uffff\U0001fffe",
        "Ã©tÃ© mojibake â€œquoteâ€\u009d",
    ),
    *("<0x41><0xFF> <0x0A>", "##ing un##aff", "▁under▁bar ▁", "a</w>b </w>", "Ġhello Ċ ĉ"),
    *("<unk> <pad>", "&lt;b&gt; &amp;amp; &#39;", "{{ x }} {% y %}", "\\ud800 \\x00 %00 \\n"),
    *("a" * 70, "ab" * 40, "!" * 60, "-" * 30 + "=" * 30, "é" * 40, "🙂" * 20, "9" * 50),
    *(" " * 40 + "x", "x" + " " * 63, "\n" * 30, " \t" * 20, "        return x", "x  # y   "),
    "supercalifragilisticexpialidocious" * 4,  # over a hundred characters in a word
]


def strings() -> list[str]:
    """A thousand texts of up to some sixty characters, the same on every machine."""
    rng = random.Random(0)
    code = [line for path in sources() for line in path.read_text().splitlines()]
    code = [line[:60] for line in code if len(line) > 20]
    # Characters that have been what they are since Unicode 3.2: tables differ in later ones.
    old = unicodedata.ucd_3_2_0.category
    stable = [c for c in map(chr, range(0x30000)) if old(c) == unicodedata.category(c)]
    stable = [c for c in stable if unicodedata.category(c) not in {"Cn", "Cs", "Co"}]
    low = [c for c in stable if ord(c) < 0x600]
    pieces = (
        "\x00 \x20 \u00a0 \u0301 \u200d \ufeff ' s S ß Σ 1 ² 中 _ ▁ Ġ \n \t . , ( é İ 🙂".split(" ")
    )
    makers: list[Callable[[], str]] = [
        lambda: rng.choice(code),
        lambda: "".join(rng.choices(stable, k=rng.randint(1, 12))),
        lambda: "".join(rng.choices(low, k=rng.randint(1, 24))),
        lambda: "".join(rng.choices([*pieces, "", " ", "'"], k=rng.randint(1, 24))),
        lambda: " ".join(rng.choice(SAMPLES)[: rng.randint(1, 30)] for _ in range(2)),
        lambda: "".join(map(chr, rng.choices(range(0x20, 0x7F), k=rng.randint(1, 30)))),
    ]
    found = dict.fromkeys(SAMPLES)
    while len(found) < 1000:
        found[makers[len(found) % len(makers)]()] = None
    return list(found)


def sources() -> list[Path]:
    return [path for name in ("zoo", "train") for path in sorted((ROOT / name).rglob("*.py"))]


def corpus(texts: Sequence[str]) -> list[str]:
    """What the small vocabularies are trained on."""
    lines = [line for path in sources() for line in path.read_text().splitlines()]
    return [*lines[:6000], *texts]


# The references: each gives the ids of every string, and its vocabulary where that is ours.


def gpt2(texts: Sequence[str], ranks: Path) -> dict[str, Any]:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext.openai_public import r50k_pat_str

    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=load_tiktoken_bpe(str(ranks)),
        special_tokens={"<|endoftext|>": 50256},
    )
    return {"versions": versions("tiktoken"), "ids": [encoding.encode(t) for t in texts]}


def clip(texts: Sequence[str], merges: Path) -> dict[str, Any]:
    package = find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        sys.exit("pip install open-clip-torch==3.3.0")
    # The file alone: the package imports torchvision.
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = spec_from_file_location("open_clip_tokenizer", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    changed = sum(module.basic_clean(t) != unicodedata.normalize("NFC", t).strip() for t in texts)
    module.basic_clean = lambda text: unicodedata.normalize("NFC", text)
    tokenizer = module.SimpleTokenizer(str(merges))
    ids = [[49406, *tokenizer.encode(text), 49407] for text in texts]
    return {"versions": {"open_clip": "3.3.0", "texts it would repair": changed}, "ids": ids}


def bpe(texts: Sequence[str], class_name: str, specials: Sequence[str]) -> dict[str, Any]:
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        corpus(texts), VOCABULARY, show_progress=False, special_tokens=list(specials)
    )
    with tempfile.TemporaryDirectory() as folder:
        trained.save_model(folder)
        vocabulary = json.loads((Path(folder) / "vocab.json").read_text())
        merges = (Path(folder) / "merges.txt").read_text()
        slow = getattr(transformers, class_name).from_pretrained(folder)
        ids = [slow(text)["input_ids"] for text in texts]
    return {
        "versions": versions("transformers"),
        "ids": ids,
        "vocab": vocabulary,
        "merges": merges,
    }


def llama(texts: Sequence[str]) -> dict[str, Any]:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [text for text in corpus(texts) if text.strip() and "\0" not in text]
        ),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,  # the rest falls back to bytes
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [reference.id_to_piece(i) for i in range(len(reference))]
    return {
        "versions": versions("sentencepiece"),
        "ids": [[reference.bos_id(), *reference.encode(text)] for text in texts],
        "decoded": [reference.decode(reference.encode(text)) for text in texts],
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": spm_merges(pieces, reference),
    }


def spm_merges(pieces: Sequence[str], reference: Any) -> list[list[str]]:
    """All pairs of pieces that make a piece, in the order in which SentencePiece prefers them."""
    score = {piece: reference.get_score(i) for i, piece in enumerate(pieces)}
    words = [p for i, p in enumerate(pieces) if not reference.is_control(i) and len(p) > 1]
    words = [p for p in words if not reference.is_byte(pieces.index(p))]
    found = []
    for word in sorted(words, key=lambda word: -score[word]):
        splits = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
        found += [[left, right] for left, right in splits if left in score and right in score]
    return found


def bert(texts: Sequence[str], lower: bool) -> dict[str, Any]:
    import transformers
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer(lowercase=lower)
    trained.train_from_iterator(corpus(texts), VOCABULARY, show_progress=False, min_frequency=1)
    by_id = {i: token for token, i in trained.get_vocab().items()}
    vocabulary = "".join(f"{by_id[i]}\n" for i in range(len(by_id)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text(vocabulary, encoding="utf-8", newline="\n")
        slow = transformers.BertTokenizer(f"{folder}/vocab.txt", do_lower_case=lower)
        ids = [slow(text)["input_ids"] for text in texts]
        pair = slow(texts[0], texts[1])
    pairs = {"ids": pair["input_ids"], "types": pair["token_type_ids"]}
    return {
        "versions": versions("transformers"),
        "ids": ids,
        "vocab": vocabulary,
        "pair": pairs,
    }


def siglip(texts: Sequence[str]) -> dict[str, Any]:
    """Ids as the published vocabulary has them: 0 pads, 1 ends a text, 2 is unknown."""
    import sentencepiece
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text.lower() for text in corpus(texts) if "\0" not in text]),
            model_prefix=f"{folder}/spiece",
            model_type="unigram",
            vocab_size=VOCABULARY,
            normalization_rule_name="identity",
            character_coverage=0.98,  # the rest is unknown
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        slow = transformers.SiglipTokenizer(f"{folder}/spiece.model")
        pieces = slow.sp_model
        return {
            "versions": versions("transformers", "sentencepiece"),
            "ids": [slow(text)["input_ids"] for text in texts],
            "vocab": [[pieces.id_to_piece(i), pieces.get_score(i)] for i in range(len(pieces))],
        }


def versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names}


# Writing.


def write(name: str, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    packed = gzip.compress(text.encode(), mtime=0)
    if len(packed) > LIMIT:
        sys.exit(f"{name} has {len(packed):,} bytes, more than {LIMIT:,}")
    (HERE / f"text_{name}.json.gz").write_bytes(packed)
    print(f"text_{name}.json.gz: {len(packed):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=Path, required=True)
    parser.add_argument("--merges", type=Path, required=True)
    options = parser.parse_args()
    kept = HERE / "text_strings.json.gz"  # the sources change, the strings need not
    texts = json.loads(gzip.decompress(kept.read_bytes())) if kept.exists() else strings()
    roberta = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    kinds: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
        "gpt2": partial(gpt2, ranks=options.ranks),
        "clip": partial(clip, merges=options.merges),
        "bpe": partial(bpe, class_name="GPT2Tokenizer", specials=["<|endoftext|>"]),
        "roberta": partial(bpe, class_name="RobertaTokenizer", specials=roberta),
        "llama": llama,
        "bert": partial(bert, lower=True),
        "bert_cased": partial(bert, lower=False),
        "siglip": siglip,
    }
    write("strings", texts)
    for name, record in kinds.items():
        write(name, record(texts))


if __name__ == "__main__":
    main()
