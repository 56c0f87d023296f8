"""From a picture to a prediction: what published pipelines make of it, and what is printed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.golden.photograph import photograph
from train.config import Images
from train.data import augment
from train.data.images import open_images
from zoo.__main__ import chart, main
from zoo.card import Card, Preprocess, stated
from zoo.models import gpt, resnet
from zoo.preprocess import CONVENTIONS, Unreadable, decode, fit, prepare, resized

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden"
RECORDED = {library: np.load(GOLDEN / f"preprocess_{library}.npz") for library in ("hf", "timm")}
META = {library: json.loads(str(file["meta"])) for library, file in RECORDED.items()}
CASES = [
    (library, case, picture)
    for library, meta in META.items()
    for case in meta["facts"]
    for picture in meta["pictures"]
]
# Pillow resizes in whole numbers and the rest is done in the same order: all corners are equal bit
# for bit, but for those of "levels", which are divided by 255 here and not there (1.2e-7 measured).
TOLERANCE = 1e-6


def card_of(library: str, case: str) -> Preprocess:
    facts = META[library]["facts"][case]
    read = stated({}, facts) if library == "hf" else stated({"pretrained_cfg": facts}, {})
    return read["preprocess"]


@pytest.mark.parametrize("library, case, picture", CASES)
def test_pictures_are_prepared_as_the_published_pipelines_do(library, case, picture):
    drawn = photograph(picture, *META[library]["pictures"][picture])
    (found,) = prepare([drawn], card_of(library, case))
    recorded = {
        name: RECORDED[library][f"{case}/{picture}/{name}"] for name in ("corner", "moments")
    }
    moments = np.stack([f(found, (0, 1), np.float64) for f in (np.mean, np.std)])
    assert np.abs(found[:8, :8] - recorded["corner"]).max() < TOLERANCE
    assert np.abs(moments - recorded["moments"]).max() < TOLERANCE


# The trainer's pictures.


@pytest.mark.parametrize("size", [8, 28, 30, 32, 100, 224, 288])
def test_sides_are_resized_as_the_trainer_resizes_them(size):
    for height in range(5, 700, 31):
        for width in range(5, 700, 17):
            scale = round(size / augment.CROP_RATIO) / min(height, width)
            expected = (round(height * scale), round(width * scale))
            assert resized((height, width), Preprocess(size)) == expected, (height, width)


@pytest.mark.parametrize(
    "size, shape", [(32, (32, 32)), (32, (47, 33)), (28, (20, 61)), (8, (8, 8))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_cut_as_the_trainer_evaluates_it(size, shape, channels):
    picture = photograph("trainer", *shape)[..., :channels]
    expected = augment.evaluation_transform(picture, size)
    np.testing.assert_array_equal(fit(picture, Preprocess(size)), expected, strict=True)


def test_the_digits_that_are_evaluated_are_those_that_are_predicted():
    data = open_images(Images("digits", batch_size=8, mean=(0.3,), std=(0.35,)))
    batch = next(data.evaluate("test")[0])
    expected = np.asarray(data.normalise(jnp.asarray(batch["image"])))
    found = prepare(batch["image"], data.preprocess, channels=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Files.


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def modes(folder: Path) -> dict[str, Path]:
    """One picture in every mode that files have."""
    rgb = Image.fromarray(photograph("modes", 11, 7))
    grey = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(photograph("alpha", 11, 7)[..., 0]))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    return {
        "rgb": saved(folder / "rgb.png", rgb),
        "grey": saved(folder / "grey.png", grey),
        "alpha": saved(folder / "alpha.png", alpha),
        "grey alpha": saved(folder / "la.png", alpha.convert("LA")),
        "palette": saved(folder / "p.png", rgb.convert("P")),
        "palette with a transparent colour": saved(
            folder / "tp.png", rgb.convert("P"), transparency=0
        ),
        "16 bits": saved(folder / "deep.png", deep),
        "black and white": saved(folder / "one.png", rgb.convert("1")),
        "print colours": saved(folder / "cmyk.jpg", rgb.convert("CMYK")),
        "turned": saved(folder / "turned.jpg", rgb, exif=turned, quality=95),
    }


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_path_a_text_and_bytes_are_one_picture(channels, tmp_path):
    for name, path in modes(tmp_path).items():
        expected = decode(path, channels)
        for picture in (str(path), path.read_bytes()):
            np.testing.assert_array_equal(decode(picture, channels), expected, name, strict=True)


def test_a_picture_is_the_same_as_its_file(tmp_path):
    for name, path in modes(tmp_path).items():
        with Image.open(path) as picture:
            np.testing.assert_array_equal(decode(picture, 3), decode(path, 3), name)


def test_a_picture_that_lies_on_its_side_is_turned_up(tmp_path):
    assert decode(modes(tmp_path)["turned"]).shape == (7, 11, 3)


def test_a_transparent_pixel_is_white_and_16_bits_keep_their_upper_byte(tmp_path):
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (decode(saved(tmp_path / "clear.png", clear)) == 255).all()
    deep = Image.fromarray(np.full((2, 2), 0x80FF, np.uint16))
    np.testing.assert_array_equal(decode(saved(tmp_path / "deep.png", deep)), 0x80)


def test_one_picture_several_and_an_array_of_them_are_prepared_alike(tmp_path):
    pixels = np.stack([photograph("one", 40, 50), photograph("two", 40, 50)])
    paths = [saved(tmp_path / f"{i}.png", Image.fromarray(x)) for i, x in enumerate(pixels)]
    both = prepare(paths, Preprocess(32))
    assert both.shape == (2, 32, 32, 3) and both.dtype == np.float32
    np.testing.assert_array_equal(prepare(pixels, Preprocess(32)), both)
    np.testing.assert_array_equal(prepare(str(paths[1]), Preprocess(32)), both[1:])
    np.testing.assert_array_equal(prepare(pixels[1], Preprocess(32)), both[1:])
    assert prepare([], Preprocess((6, 8)), channels=3).shape == (0, 6, 8, 3)


DAMAGED = {
    "no picture format that Pillow knows": b"text",
    "no picture format that Pillow knows (0 bytes)": b"",
    "truncated": None,
}


@pytest.mark.parametrize("reason", DAMAGED)
def test_a_damaged_file_is_named(reason, tmp_path):
    whole = saved(tmp_path / "whole.png", Image.fromarray(photograph("whole", 90, 90)))
    file = tmp_path / "damaged.png"
    file.write_bytes(whole.read_bytes()[:3000] if DAMAGED[reason] is None else DAMAGED[reason])
    with pytest.raises(Unreadable, match=r"damaged\.png") as error:
        prepare([whole, file], Preprocess(32))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "pictures, preprocess, channels, message",
    [
        (np.zeros((4, 4, 3), np.float32), Preprocess(4), 3, r"float32 \(4, 4, 3\) is not uint8"),
        (np.zeros((4, 4, 2), np.uint8), Preprocess(4), 3, r"is not uint8 \[h, w, 1 or 3\]"),
        (np.zeros((4, 4), np.uint8), Preprocess(4), 1, "mean has 3 values for 1 channels"),
        (np.zeros((4, 4), np.uint8), Preprocess(4), 4, "1 or 3 channels, not 4"),
        (np.zeros((1, 1600), np.uint8), Preprocess(224), 3, "would become"),
        (Path("none.png"), Preprocess(4), 3, "none.png: No such file"),
    ],
)
def test_what_cannot_be_prepared_is_refused(pictures, preprocess, channels, message):
    with pytest.raises(ValueError, match=message):
        prepare(pictures, preprocess, channels=channels)


# What others state.

VIT = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
READ = {  # preprocessor_config.json, model_type → size, crop, interpolation, mode
    "google/vit-base-patch16-224-in21k": (
        {"size": 224, "resample": 2, "do_normalize": True, "do_resize": True},
        "vit",
        (224, 1.0, "bilinear", "squash"),
    ),
    "google/vit-base-patch16-224": (
        {"image_processor_type": "ViTFeatureExtractor", "size": {"height": 224, "width": 224}}
        | {"rescale_factor": 0.00392156862745098},
        "vit",
        (224, 1.0, "bilinear", "squash"),
    ),
    "facebook/deit-base-patch16-224": (
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}
        | {"resample": 3, "do_center_crop": True},
        "deit",
        (224, 0.875, "bicubic", "squash"),
    ),
    "facebook/dinov2-small": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}
        | {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
        "dinov2",
        (224, 0.875, "bicubic", "crop"),
    ),
    "microsoft/resnet-50": (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875},
        "resnet",
        (224, 0.875, "bicubic", "crop"),
    ),
    "google/siglip-base-patch16-224": (
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}}
        | {"resample": 3, "do_normalize": True, "rescale_factor": 0.00392156862745098},
        "siglip",
        (224, 1.0, "bicubic", "squash"),
    ),
    "no class": ({"size": {"shortest_edge": 384}}, "resnet", (384, 1.0, "bicubic", "squash")),
    "fast": (
        {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 96, "width": 160}},
        "vit",
        ((96, 160), 1.0, "bilinear", "squash"),
    ),
    "null": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}
        | {"crop_size": 224, "do_center_crop": None, "resample": None, "crop_pct": 0.1},
        "dinov2",
        (224, 0.875, "bicubic", "crop"),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_old_and_new_forms_of_a_processor_are_read(name):
    processor, model_type, (size, crop, interpolation, mode) = READ[name]
    expected = Preprocess(size, crop, interpolation, (0.5,) * 3, (0.5,) * 3, mode, "transformers")
    assert stated({"model_type": model_type}, {**processor, **VIT})["preprocess"] == expected


BIT = {"image_processor_type": "BitImageProcessor", "crop_size": 224, **VIT}
UNREAD = {  # a reason in the notes → what states it
    "no class is none of those known": {"size": 224},
    "BeitImageProcessor is none of those known": {"image_processor_type": "BeitImageProcessor"},
    "do_resize is false": {**BIT, "size": 256, "do_resize": False},
    "sizes would differ": {**BIT, "size": 256, "do_center_crop": False},
    "pads the picture": {**BIT, "size": 200},
    "has another shape": {**BIT, "size": 256, "crop_size": {"height": 224, "width": 192}},
    "resample is 9": {**BIT, "size": 256, "resample": 9},
    "size is not stated": BIT,
    "image_mean is not stated": {**BIT, "size": 256, "image_mean": None},
    "size is {'longest_edge': 224}": {**BIT, "size": {"longest_edge": 224}},
    "size is {'height': 224}": {**BIT, "size": {"height": 224}},
    "takes a shortest_edge alone": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"height": 224, "width": 224},
    },
}
TIMM_UNREAD = {
    "crop_mode 'border' pads": {"input_size": [3, 8, 8], "crop_mode": "border"},
    "interpolation 'random'": {"input_size": [3, 8, 8], "interpolation": "random"},
}


@pytest.mark.parametrize("reason", [*UNREAD, *TIMM_UNREAD])
def test_what_cannot_be_represented_is_left_out_with_its_reason(reason):
    timm = TIMM_UNREAD.get(reason)
    known = stated({"pretrained_cfg": timm}, {}) if timm else stated({}, UNREAD[reason])
    assert "preprocess" not in known
    (note,) = known["notes"]
    assert reason in note
    assert Card.from_json(json.loads(json.dumps(Card("m", {}, **known).to_json()))).notes == (note,)


def test_every_cut_of_every_resized_side_is_exact():
    for side in range(1, 400):
        for cut in range(1, side + 1, 7):
            facts = {**BIT, "size": side, "crop_size": cut}
            found = stated({}, facts)["preprocess"]
            assert resized((999, 999), found) == (side, side), (side, cut)


def test_what_timm_leaves_out_is_as_in_timm():
    cfg = {"input_size": [3, 240, 240], "test_input_size": [3, 320, 320], "test_crop_pct": 1.0}
    expected = Preprocess(240, 0.875, "bicubic", convention="timm")
    assert stated({"pretrained_cfg": cfg | {"crop_pct": None}}, {})["preprocess"] == expected
    flat = {"architecture": "x", **cfg}  # the older form
    assert stated(flat, {})["preprocess"] == expected


def test_labels_are_read_in_each_form_and_numbers_are_no_names():
    cfg = {"input_size": [3, 8, 8]}
    described = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "tench"}}
    gaps = {"label_names": {"0": "a", "2": "c"}}
    assert stated({"pretrained_cfg": cfg, **described}, {})["labels"] == ("tench", "n2")
    assert stated({"pretrained_cfg": cfg | gaps}, {})["labels"] == ("a", "class 1", "c")
    assert stated({"id2label": {"10": "k", "9": "j"}}, {})["labels"] == ("j", "k")
    assert "labels" not in stated({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {})


@pytest.mark.parametrize(
    "readme, licence",
    [
        ("---\nlicense: apache-2.0\ntags:\n- a\n---\n# T", "apache-2.0"),
        ("---\r\nlicense: 'mit'  \r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ("# license: mit\n---\nlicense: mit\n---\n", ""),
        ("---\nlicense:\n- mit\n---\n", ""),
    ],
)
def test_the_licence_is_that_of_the_front_matter(readme, licence):
    assert stated({}, {}, readme).get("licence", "") == licence


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": "big"},
        {"size": (1, 2, 3)},
        {"crop": 0},
        {"crop": 1.5},
        {"std": (0.0,)},
        {"mean": ()},
        {"mode": "border"},
        {"convention": "torch"},
        {"interpolation": "cubic"},
    ],
)
def test_a_preprocessing_that_no_picture_can_go_through_is_refused(change):
    (key,) = change
    with pytest.raises(ValueError, match=f"preprocess: .*{key}"):
        replace(Preprocess(), **change)


def test_a_card_written_before_there_were_modes_is_read():
    old = {"size": 32, "crop": 1.0, "interpolation": "bicubic", "mean": [0.5], "std": [0.5]}
    card = Card.from_json({"model": "resnet20", "config": {}, "preprocess": old})
    assert card.preprocess == Preprocess(32, 1.0, "bicubic", (0.5,), (0.5,), "crop", "zoo")
    new = Card("m", {}, preprocess=Preprocess((96, 160), mode="squash", convention="timm"))
    assert Card.from_json(json.loads(json.dumps(new.to_json()))) == new


def test_every_convention_has_its_arithmetic():
    assert CONVENTIONS.keys() == {"zoo", "transformers", "timm"}


# What is printed.


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A model of grey 8×8 pictures: the brighter a picture, the higher its class."""
    folder = tmp_path_factory.mktemp("digits")
    config = replace(resnet.TINY, stem="cifar", in_channels=1, num_classes=10)
    model = zoo.module_class(resnet)(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables["params"]["head"]["bias"] = np.log(np.arange(1, 11) / 55, dtype=np.float32)
    preprocess = Preprocess(8, 1.0, mean=(0.3,), std=(0.35,))
    card = Card("resnet20", {}, preprocess=preprocess, labels=tuple("ABCDEFGHIJ"))
    zoo.save(model, variables, folder / "model", card=card)
    zoo.save(model, variables, folder / "unnamed", card=replace(card, labels=()))
    zoo.save(model, variables, folder / "raw", card=replace(card, preprocess=None, notes=("why",)))
    saved(folder / "8.png", Image.fromarray(photograph("8", 8, 8)).convert("L"))
    saved(folder / "wide.jpg", Image.fromarray(photograph("wide", 20, 40)))
    (folder / "text.png").write_text("no picture")
    return folder


def test_predict_prints_the_likeliest_classes_of_each_picture(digits, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    pictures = [str(digits / "8.png"), str(digits / "wide.jpg")]
    assert main(["predict", str(digits / "model"), *pictures, "--top", "3"]) == 0
    first, second = capsys.readouterr().out.rstrip("\n").split("\n\n")
    name, *lines = first.splitlines()
    assert name == pictures[0] and second.splitlines()[0] == pictures[1]
    assert [line.split()[:2] for line in lines] == [["J", "18.2%"], ["I", "16.4%"], ["H", "14.5%"]]
    assert second.splitlines()[1:] == lines


def test_a_class_without_a_name_is_called_by_its_number(digits, capsys):
    assert main(["predict", str(digits / "unnamed"), str(digits / "8.png")]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["9", "8", "7", "6", "5"]
    assert lines[0].startswith("  class 9   18.2%  █")


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_bars_are_as_long_as_the_terminal_allows(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    probabilities = np.array([0.125, 0.0, 0.375, 0.5], np.float32)
    lines = chart(probabilities, ("a", "b" * 300, "c", "d"), 9).splitlines()
    assert [line.split()[0][0] for line in lines] == ["d", "c", "a", "b"]
    assert max(map(len, lines)) <= columns
    space = (columns - 12) / 2  # the other half is the label's
    for line, share in zip(lines, (0.5, 0.375, 0.125, 0.0), strict=True):
        assert line.count("█") == int(share * space), line


FAILED = {  # arguments → parts of the one message
    "predict FOLDER/model FOLDER/none.png": ("there is no picture FOLDER/none.png",),
    "predict FOLDER/model FOLDER/8.png FOLDER": ("there is no picture FOLDER",),
    "predict FOLDER/model FOLDER/8.png FOLDER/text.png": ("FOLDER/text.png: no picture format",),
    "predict FOLDER/raw FOLDER/8.png": ("FOLDER/raw: why", "Preprocess of zoo.card"),
    "predict FOLDER/headless FOLDER/8.png": ("FOLDER/headless has no head", "num_classes="),
    "predict FOLDER/nowhere FOLDER/8.png": ("FOLDER/nowhere is neither a path",),
    "predict resnet50.x FOLDER/8.png": ("resnet50.x is neither a path",),
    "predict no/such FOLDER/8.png": ("could not fetch no/such (revision main)",),
    "predict no/such FOLDER/8.png --revision v2": ("could not fetch no/such (revision v2)",),
    "predict FOLDER FOLDER/8.png": ("FOLDER holds neither model.safetensors",),
}


@pytest.mark.parametrize("call", FAILED)
def test_what_cannot_be_predicted_is_one_message_and_exit_code_2(call, digits, capsys):
    headless = digits / "headless"
    if "headless" in call and not headless.exists():
        model, variables = zoo.load(digits / "model", num_classes=0)
        zoo.save(model, variables, headless, card=zoo.card(digits / "model"))
    assert main(call.replace("FOLDER", str(digits)).split()) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("error: ") == 1
    for part in FAILED[call]:
        assert part.replace("FOLDER", str(digits)) in shown.err


def test_a_model_that_takes_no_pictures_says_what_it_takes(tmp_path, digits, capsys):
    model = gpt.GPT(gpt.TINY)
    zoo.save(model, zoo.init(model, jax.random.key(0)), tmp_path / "gpt")
    assert main(["predict", str(tmp_path / "gpt"), str(digits / "8.png")]) == 2
    assert "is no classifier of pictures, but a model of GPT, which takes tokens" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_a_number_of_classes_that_cannot_be_is_refused(top, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "m", "x.png", "--top", top])
    assert "no positive whole number" in capsys.readouterr().err


def test_probabilities_sum_to_one(digits, capsys):
    assert main(["predict", str(digits / "model"), str(digits / "8.png"), "--top", "99"]) == 0
    shares = [float(line.split()[1][:-1]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(shares) == 10 and math.isclose(sum(shares), 100, abs_tol=0.5)
