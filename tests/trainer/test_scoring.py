from __future__ import annotations

import pytest

from segclip.trainer.config import EvaluationConfig
from segclip.trainer.scoring import check_evaluation, score_entry


@pytest.mark.parametrize(
    ("protocol", "published"), [("photo", "photo"), ("/home/somebody/mine.yaml", "mine.yaml")]
)
def test_a_model_card_does_not_tell_where_a_protocol_lies(protocol, published) -> None:
    entry = score_entry(EvaluationConfig(dataset="scenes", protocol=protocol), 0.5)
    assert entry == {"dataset": "scenes", "protocol": published, "miou": 0.5}


def test_a_score_while_training_needs_a_data_set() -> None:
    with pytest.raises(ValueError, match=r"evaluation.every is 100, so evaluation.dataset must name"):
        check_evaluation(EvaluationConfig(every=100))
