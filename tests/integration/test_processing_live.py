"""A photo, a rendered line and sentences in, boxes, text and vectors out: three real models on live agents.

What is done before and after each model is the recipe that docs/processing.md shows, out of the bundle; the tokenizer
comes to the client from a device, block by block.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, Pin
from host.broker import start_broker
from host.bundle import OpenBundle
from host.fleet.blobs import BundleBlobs
from host.fleet.command import run_command
from host.fleet.local import LocalAgent, local_agents
from host.package import PackageRequest, package
from tests.command_line import shardwire
from tests.minilm import write_minilm
from tests.processing_examples import face_detector_file, face_photo, ppocr_file, write_example, write_line
from tests.zoo_inputs import TEXT

pytestmark = pytest.mark.slow

FLEET = "processing"
AGENTS = (LocalAgent(name="gate-1", profile="x86-gateway"), LocalAgent(name="gate-2", profile="x86-gateway"))
SENTENCES = (
    "This is an example sentence",
    "A man is eating food.",
    "A man is eating a meal.",
    "The stock market fell today.",
)
# What sentence-transformers prints for the first one, in the model's own documentation.
PUBLISHED = (0.06765687, 0.06349592, 0.04871312)


def packaged(name: str, source: Path, heading: str, folder: Path, *, inputs: str | None = None) -> OpenBundle:
    """A bundle with the recipe below a heading of the documentation."""
    request = PackageRequest(
        source=str(source),
        profile="x86-gateway",
        target=folder / name,
        quantize="none",
        inputs=inputs,
        processing=write_example(heading, folder),
        name=name,
        max_shards=2,
    )
    return package(request).bundle


def deploy(url: str, bundle: OpenBundle) -> None:
    """Put a bundle to work, its first layer on one agent and its last on the other; no coordinator stays."""
    ends = (0, len(bundle.manifest.layers) - 1)
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=bundle.manifest.name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(
            pins=tuple(Pin(layer=layer, device=agent.name) for layer, agent in zip(ends, AGENTS, strict=True))
        ),
        mode="default",
        reply_to="",
    )
    run_command(url, request, fleet=FLEET, blobs=BundleBlobs(bundle), on_change=lambda _: None)


def decoded(text: str) -> list[dict[str, Any]]:
    """The records that `--json` printed."""
    return msgspec.json.decode(text, type=list[dict[str, Any]])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with two agents and the three models on them."""
    folder = tmp_path_factory.mktemp("processing")
    bundles = (
        packaged("faces", face_detector_file(), "Faces", folder),
        packaged("reader", ppocr_file(), "A line of text", folder, inputs="tests.zoo_inputs:ppocr_rec"),
        packaged("sentences", write_minilm(folder / "minilm.onnx", length=32), "Sentences", folder),
    )
    with (
        start_broker("auto", folder=folder / "broker") as broker,
        local_agents(broker.url, AGENTS, folder=folder / "agents", fleet=FLEET),
    ):
        for bundle in bundles:
            deploy(broker.url, bundle)
        yield broker.url


def test_photos_lines_and_sentences_are_answered_as_the_bundles_declare(url: str, tmp_path: Path) -> None:
    fleet = ("--broker", url, "--fleet", FLEET)
    faces = shardwire("infer", "faces", face_photo(), *fleet, "--json")
    assert faces.code == 0, faces.err
    (record,) = decoded(faces.out)
    (face,) = record["answers"]["faces"]["items"]
    left, top, right, bottom = face["box"]
    assert face["score"] > 0.9
    assert record["answers"]["faces"]["unit"] == "pixels"
    assert (left, top, right, bottom) == pytest.approx((168, 145, 365, 342), abs=15)
    assert len(face["points"]) == 6
    assert len(record["stages"]) == 2

    line = shardwire("infer", "reader", write_line(TEXT, tmp_path / "line.png"), *fleet)
    assert line.code == 0, line.err
    assert line.out.startswith(f"line.png: {TEXT}, 0.99") or line.out.startswith(f"line.png: {TEXT}, 1.000")

    texts = [part for sentence in SENTENCES for part in ("--text", sentence)]
    sentences = shardwire("infer", "sentences", *texts, *fleet, "--json")
    assert sentences.code == 0, sentences.err
    vectors = np.array([record["answers"]["sentence"]["values"] for record in decoded(sentences.out)])
    assert vectors[0, :3] == pytest.approx(PUBLISHED, abs=1e-5)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    alike = vectors @ vectors.T
    assert alike[1, 2] > 0.9
    assert np.abs(alike[3, 1:3]).max() < 0.07, "a meal has nothing to do with the stock market"
