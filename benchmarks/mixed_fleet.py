"""EfficientNet-Lite0 on a fleet of both runtimes: ONNX Runtime and LiteRT take turns in one pipeline, over mosquitto.

One bundle holds every layer for both, from the same weights: LiteRT's were converted by litert-torch or onnx2tf, one of
which must be installed. Two fleets of three agents, each in a process of its own and kept to one runtime, answer the
labelled photos; the whole model in one session of ONNX Runtime answers them in the same run.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.fleet import FLEET, PROFILE
from benchmarks.measure import Figure, Key, main_of, say
from benchmarks.photos import labels as labels_of
from benchmarks.unequal_fleet import split
from edge.client import Client
from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, Pin, Plan
from edge.formats.tensor import Array
from edge.processing.prepare import prepare_image
from host.answers import load_whole
from host.broker import start_broker
from host.bundle import OpenBundle
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.local import LocalAgent, local_agents
from host.ingest.zoo import INPUT, PREPROCESS, photo_paths
from host.package import PackageRequest, package

ORDERS: Mapping[str, Sequence[str]] = {
    "onnx_onnx_litert": ("onnxruntime", "onnxruntime", "litert"),
    "litert_onnx_litert": ("litert", "onnxruntime", "litert"),
}
NAME = "lite0-mixed"

KEYS = (
    Key(name="photos", meaning="labelled photos that the whole model gets right"),
    Key(name="right", meaning="of these, right through both fleets"),
    Key(name="max_abs_difference", meaning="largest difference of a logit to the whole model, both fleets, all photos"),
    Key(name="right_onnx_onnx_litert", meaning="right through ONNX Runtime, ONNX Runtime, LiteRT"),
    Key(name="max_abs_difference_onnx_onnx_litert", meaning="its largest difference"),
    Key(name="right_litert_onnx_litert", meaning="right through LiteRT, ONNX Runtime, LiteRT"),
    Key(name="max_abs_difference_litert_onnx_litert", meaning="its largest difference"),
    Key(name="same_label", meaning="photos of all to which both fleets give the whole model's label, right or wrong"),
    Key(name="photos_in_all", meaning="labelled photos"),
    Key(name="largest_logit", meaning="of the whole model's answers"),
    Key(name="tolerance", meaning="largest relative error that the bundle allows: difference / largest logit"),
    Key(name="shards", meaning="of each build"),
)


def pinned(bundle: OpenBundle, devices: Sequence[str]) -> Constraints:
    """Constraints that leave one plan: about the same work on each device, in this order."""
    layers, shards = bundle.manifest.layers, bundle.manifest.shards
    work = [float(sum(layer.macs for layer in layers[shard.first_layer : shard.stop_layer])) for shard in shards]
    bounds = split(len(shards), [1.0] * len(devices), work)
    pins = [
        Pin(layer=shards[index].first_layer, device=device)
        for device, (first, stop) in zip(devices, pairwise(bounds), strict=True)
        for index in range(first, stop)
    ]
    return Constraints(devices=tuple(devices), pins=tuple(pins), side_by_side=False)


def deploy(url: str, bundle: OpenBundle, name: str, constraints: Constraints) -> Plan:
    """Put the bundle to work under a name; return the plan."""
    course = Course(name=name)

    def watch(now: Course) -> None:
        nonlocal course
        course = now

    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=constraints,
        window=4,
        reply_to="",
    )
    run_command(url, request, fleet=FLEET, blobs=BundleBlobs(bundle), on_change=watch)
    if course.plan is None:
        raise RuntimeError(f"{name} has no plan")
    return course.plan


def through_fleet(
    url: str, folder: Path, bundle: OpenBundle, order: str, photos: Sequence[Mapping[str, Array]]
) -> list[Array]:
    """Answers of agents with these runtimes, in this order, to all photos."""
    agents = [
        LocalAgent(name=f"{order.replace('_', '-')}-{index}", profile=PROFILE, runtimes=(runtime,))
        for index, runtime in enumerate(ORDERS[order])
    ]
    names = [agent.name for agent in agents]
    with local_agents(url, agents, folder=folder, fleet=FLEET):
        plan = deploy(url, bundle, order.replace("_", "-"), pinned(bundle, names))
        for stage in plan.stages:
            takes = stage.takes or bundle.manifest.shard_format
            say(
                f"{stage.device}: shards {stage.first_shard}-{stage.stop_shard - 1} in {plan.runtimes[stage.device]}, "
                f"takes {takes}"
            )
        if [plan.runtimes[stage.device] for stage in plan.stages] != list(ORDERS[order]):
            raise RuntimeError(f"the plan does not run on {', '.join(ORDERS[order])}: {plan}")
        with Client.connect(url, fleet=FLEET) as client:
            results = client.stream(order.replace("_", "-"), photos, window=4)
            return [answer(result.outputs) for result in results]


def answer(outputs: Mapping[str, Array]) -> Array:
    """The only output, flat."""
    (logits,) = outputs.values()
    return logits.ravel()


def figures_of(
    labels: Sequence[int], whole: Sequence[Array], found: Mapping[str, Sequence[Array]]
) -> dict[str, Figure]:
    """Figures of the answers of both fleets beside the whole model's."""
    known = [index for index, label in enumerate(labels) if int(whole[index].argmax()) == label]
    figures: dict[str, Figure] = {"photos": len(known), "photos_in_all": len(labels)}
    for order, answers in found.items():
        figures[f"right_{order}"] = sum(int(answers[index].argmax()) == labels[index] for index in known)
        figures[f"max_abs_difference_{order}"] = max(
            float(np.abs(one - other).max()) for one, other in zip(answers, whole, strict=True)
        )
    figures["right"] = sum(all(int(each[i].argmax()) == labels[i] for each in found.values()) for i in known)
    figures["max_abs_difference"] = max(float(figures[f"max_abs_difference_{order}"]) for order in found)
    figures["same_label"] = sum(
        all(int(each[index].argmax()) == int(logits.argmax()) for each in found.values())
        for index, logits in enumerate(whole)
    )
    figures["largest_logit"] = max(float(np.abs(logits).max()) for logits in whole)
    return figures


def measure() -> dict[str, Figure]:
    """Take all figures."""
    paths = photo_paths()
    labels = [int(label) for label in labels_of(paths)]
    photos = [{INPUT: prepare_image(PREPROCESS, path.read_bytes(), where=str(path))} for path in paths]
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as temporary:
        folder = Path(temporary)
        say("packaging EfficientNet-Lite0 for ONNX Runtime and LiteRT")
        request = PackageRequest(
            source="", profile=PROFILE, target=folder / NAME, convert_twin=True, quantize="none", name=NAME
        )
        bundle = package(request).bundle
        stage = load_whole(bundle, runtime="onnxruntime")
        whole = [answer(stage.run(photo)) for photo in photos]
        stage.close()
        with start_broker("mosquitto", folder=folder / "broker") as broker:
            found = {order: through_fleet(broker.url, folder / order, bundle, order, photos) for order in ORDERS}
    figures = figures_of(labels, whole, found)
    figures |= {"tolerance": bundle.manifest.tolerance, "shards": len(bundle.manifest.shards)}
    return {key.name: figures[key.name] for key in KEYS}


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
