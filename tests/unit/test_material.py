"""What a model is calibrated with is not what it is judged on; where that cannot be, the report says so."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from host.compress.data.dataset import Dataset
from host.compress.data.inputs import own_samples
from host.compression import material_for
from host.model import Golden, Ingested, Tensors
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos


def ingested(count: int, *, holdout: int = 0, groups: tuple[str, ...] = ()) -> Ingested:
    model = model_of(conv_net())
    samples = photos(count)
    golden = Golden(inputs=samples[0], outputs=Reference(model).run(samples[0]))
    return Ingested(
        model=model,
        samples=tuple(samples),
        golden=(golden,),
        holdout=tuple(photos(holdout, seed=2)) if holdout else (),
        holdout_groups=groups,
    )


def keys(samples: Iterable[Tensors]) -> set[bytes]:
    return {np.asarray(sample["x"]).tobytes() for sample in samples}


def test_many_samples_of_its_own_are_shared_out() -> None:
    material = material_for(ingested(40), None, own_inputs=True)
    asked = keys(sample.inputs for sample in material.dataset)
    assert (len(material.calibration), len(asked)) == (20, 20)
    assert not asked & keys(material.calibration)


def test_few_samples_of_its_own_are_for_both_and_the_name_says_so() -> None:
    material = material_for(ingested(8), None, own_inputs=True)
    assert (len(material.calibration), len(material.dataset)) == (8, 8)
    assert material.dataset.name == "the samples that it was calibrated with"


def test_a_holdout_is_judged_on_and_its_sources_count_once() -> None:
    material = material_for(ingested(40, holdout=4, groups=("a", "a", "b", "b")), None, own_inputs=True)
    assert len(material.calibration) == 40
    assert material.dataset.groups == ("a", "a", "b", "b")
    assert own_samples(ingested(40, holdout=4)).groups is None


def test_a_part_of_the_data_calibrates_what_brings_few_samples() -> None:
    data = Dataset.held(photos(40, seed=3), name="data")
    material = material_for(ingested(4), data, own_inputs=False)
    asked = keys(sample.inputs for sample in material.dataset)
    assert (len(material.calibration), len(asked)) == (10, 30)
    assert not asked & keys(material.calibration)


def test_given_inputs_calibrate_and_all_of_the_data_is_judged_on() -> None:
    data = Dataset.held(photos(40, seed=3), name="data")
    for model, own_inputs in ((ingested(4), True), (ingested(32), False)):
        material = material_for(model, data, own_inputs=own_inputs)
        assert (material.calibration, material.dataset) == (model.samples, data)
