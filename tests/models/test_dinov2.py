import pytest

from tests.golden.replay import Case, check_evaluation, check_training, plant
from zoo.models import dinov2

CASES = {
    name: Case(name, dinov2, format)
    for name, format in {
        "dinov2_hf_up": "hf",
        "dinov2_hf_swiglu": "hf",
        "dinov2_hf_registers": "hf",
        "dinov2_hf_masked": "hf",
        "dinov2_timm": "timm",
        "dinov2_timm_registers": "timm",
    }.items()
}
TRAINING = Case("dinov2_hf_train", dinov2, "hf")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_block_agrees_with_the_reference(case):
    check_evaluation(case)


def test_a_training_step_agrees_with_the_reference():
    check_training(TRAINING)
