"""The Docker images. They are built here, so these tests need an engine, the base image and pip's index."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.integration.tracing.collector import collecting
from tests.patience import PATIENCE_S

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.producer import Fleet
from inferfleet.schemas.journal import RunningEntry, TokensEntry
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import expected_text

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
CONTEXT = (
    "Dockerfile",
    ".dockerignore",
    "pyproject.toml",
    "deploy/docker",
    "schemas/inferfleet",
    "wire/inferfleet",
    "producer/inferfleet",
    "exporter/inferfleet",
    "worker/inferfleet",
    "gateway/inferfleet",
    "agents/inferfleet",
    "cli/inferfleet",
    "local/inferfleet",
    "testing/inferfleet",
)
BASE = "python:3.13-slim"
USER_ID = "10001"

Build = Callable[..., str]


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # An engine without BuildKit has only the classic builder, and must be told to use it.
    buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)
    environment = os.environ if buildx.returncode == 0 else {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        ["docker", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    if shutil.which("docker") is None or docker("info", check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    if (
        docker("image", "inspect", BASE, check=False).returncode != 0
        and docker("pull", BASE, check=False).returncode != 0
    ):
        pytest.skip(f"the image {BASE} is not here and cannot be pulled")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, which a test may change."""
    folder = tmp_path_factory.mktemp("context")
    for name in CONTEXT:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    certificates = os.environ.get("PIP_CERT")
    if certificates:
        shutil.copy(certificates, folder / "ca-bundle.crt")
    return folder


@pytest.fixture(scope="module")
def build(context: Path) -> Iterator[Build]:
    """Build a target and return its tag; all tags are removed at the end."""
    tags: list[str] = []

    def run(target: str, *, base: str = BASE, weights: str | None = None) -> str:
        tag = f"inferfleet-test-{target}:{uuid.uuid4().hex[:8]}"
        indexes = [name for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if name in os.environ]
        given = [f"WEIGHTS={weights}"] if weights is not None else []
        arguments = [f"--build-arg={argument}" for argument in (f"BASE={base}", *given, *indexes)]
        docker("build", "--network=host", *arguments, f"--target={target}", f"--tag={tag}", str(context))
        tags.append(tag)
        return tag

    yield run
    docker("rmi", *tags)


@pytest.fixture(scope="module")
def producer(build: Build) -> str:
    return build("producer")


@pytest.fixture(scope="module")
def base_with_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Stands for vLLM's image: a base that has a package installed, and a user of its own."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "Dockerfile").write_text(
        f"FROM {BASE}\n"
        "RUN python3 -c \"import sysconfig; open(sysconfig.get_path('purelib') + '/vllm.py', 'w')\"\n"
        'USER nobody\nENTRYPOINT ["vllm", "serve"]\nCMD ["--help"]\n'
    )
    tag = f"inferfleet-test-base:{uuid.uuid4().hex[:8]}"
    docker("build", f"--tag={tag}", str(folder))
    yield tag
    docker("rmi", tag)


@pytest.fixture(scope="module")
def worker(build: Build, base_with_vllm: str) -> str:
    return build("worker", base=base_with_vllm)


def test_the_producer_image_is_the_command_line(producer: str) -> None:
    said = docker("run", "--rm", producer, "--version").stdout
    assert said == f"{version('inferfleet')}\n"


def test_the_producer_image_says_what_a_worker_would_need(producer: str) -> None:
    refused = docker("run", "--rm", producer, "worker", "--model", "some", check=False)
    assert refused.returncode == 2
    assert "pip install 'inferfleet[vllm]'" in refused.stderr


def test_the_producer_image_has_what_a_gateway_needs(producer: str) -> None:
    assert "INFERFLEET_HTTP_PORT" in docker("run", "--rm", producer, "gateway", "--help").stdout


def test_the_producer_image_has_what_an_exporter_needs(producer: str) -> None:
    assert "INFERFLEET_MANAGEMENT_URL" in docker("run", "--rm", producer, "exporter", "--help").stdout
    docker("run", "--rm", "--entrypoint=python3", producer, "-c", "import inferfleet.exporter.server")


@pytest.mark.parametrize("target", ["producer", "worker"])
def test_an_image_runs_as_an_ordinary_user(target: str, request: pytest.FixtureRequest) -> None:
    image: str = request.getfixturevalue(target)
    assert docker("run", "--rm", "--entrypoint=id", image, "-u").stdout == f"{USER_ID}\n"
    assert docker("image", "inspect", "--format={{.Config.User}}", image).stdout == f"{USER_ID}\n"


def test_the_producer_image_has_what_a_gateway_that_traces_needs(producer: str) -> None:
    needed = "import inferfleet.wire.span_export, opentelemetry.instrumentation.asgi"
    docker("run", "--rm", "--entrypoint=python3", producer, "-c", needed)


def test_a_worker_uses_the_packages_of_its_base(worker: str) -> None:
    docker("run", "--rm", "--entrypoint=python3", worker, "-c", "import vllm, inferfleet.worker.worker")


@pytest.fixture(scope="module")
def containers() -> Iterator[Services]:
    """RabbitMQ and Redis in containers, too."""
    with running_services(ServicesChoice.DOCKER) as services:
        yield services


@pytest.fixture
def start_worker(worker: str, containers: Services) -> Iterator[Callable[..., str]]:
    """Start a worker container; returns its id."""
    started: list[str] = []

    def start(pool: str, **settings: str) -> str:
        variables = {
            "INFERFLEET_AMQP_URL": containers.amqp_url,
            "INFERFLEET_REDIS_URL": containers.redis_url,
            "INFERFLEET_POOL": pool,
            **settings,
        }
        environment = [f"--env={name}={value}" for name, value in variables.items()]
        arguments = ("--engine", "simulated", "--http-port", "0")
        started.append(
            docker("run", "--detach", "--network=host", *environment, worker, *arguments).stdout.strip()
        )
        return started[-1]

    yield start
    if started:
        docker("rm", "--force", *started)


@pytest.fixture
async def fleet(containers: Services) -> AsyncIterator[Fleet]:
    urls: dict[str, Any] = {"amqp_url": containers.amqp_url, "redis_url": containers.redis_url}
    async with Fleet.connect(ProducerSettings(**urls)) as fleet:
        yield fleet


async def test_a_worker_container_answers_a_job_and_ends_well_on_docker_stop(
    start_worker: Callable[..., str], fleet: Fleet
) -> None:
    pool = f"images-{uuid.uuid4().hex[:8]}"
    async with collecting() as collector:
        container = start_worker(pool, INFERFLEET_TRACING="true", **collector.environment)
        await fleet.declare_pool(pool)
        job = await fleet.submit("Hello?", pool=pool)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
        assert result.raise_for_state().text
        await collector.attempts(job.id, 1)
    docker("stop", container)
    log = docker("logs", container).stderr
    assert docker("wait", container).stdout == "0\n", log
    assert "worker has stopped" in log


async def test_docker_stop_hands_a_running_job_over_to_another_container(
    start_worker: Callable[..., str], fleet: Fleet
) -> None:
    # Given a container in the middle of a long answer
    pool = f"images-{uuid.uuid4().hex[:8]}"
    first = start_worker(pool, INFERFLEET_WORKER_ID="first", INFERFLEET_DRAIN_TIMEOUT_S="0.5")
    await fleet.declare_pool(pool)
    body = {
        "messages": [{"role": "user", "content": "A long story, please."}],
        "simulated": {"tokens": 200, "step_delay_s": 0.02},
    }
    job = await fleet.submit(body, pool=pool, stream=True)
    attempts: list[RunningEntry] = []
    stopped = False
    async for line in fleet.stream(job):
        if isinstance(line.entry, RunningEntry):
            attempts.append(line.entry)
        if not stopped and isinstance(line.entry, TokensEntry) and line.entry.offset > 10:
            # When it is stopped, and another one is there
            docker("stop", first)
            assert docker("wait", first).stdout == "0\n", docker("logs", first).stderr
            start_worker(pool, INFERFLEET_WORKER_ID="second")
            stopped = True

    # Then the other one goes on behind what the first had written
    assert [attempt.worker_id for attempt in attempts] == ["first", "second"]
    assert attempts[1].resumed_from > 10
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.raise_for_state().text == expected_text(job.endpoint, job.body)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that has nothing but a model."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY model.safetensors /models/small/\n")
    (folder / "model.safetensors").write_bytes(os.urandom(2_000_000))
    tag = f"inferfleet-test-weights:{uuid.uuid4().hex[:8]}"
    docker("build", f"--tag={tag}", str(folder))
    yield tag
    docker("rmi", tag)


def test_weights_are_a_layer_of_their_own_below_the_code(
    build: Build, weights: str, base_with_vllm: str
) -> None:
    # Built right before: an engine may have several equal layers in its cache, from builds at the same time.
    light = build("worker", base=base_with_vllm)
    heavy = build("worker", base=base_with_vllm, weights=weights)

    before, after = layers(light), layers(heavy)
    assert len(before) == len(after)
    # The base and the dependencies stay; above the weights there is only the code.
    assert before[:-2] == after[:-2]
    assert before[-2] != after[-2]
    said = docker("run", "--rm", "--entrypoint=ls", heavy, "-l", "/models/small").stdout
    assert "2000000" in said
    assert "-rw-r--r--" in said, "the image's user can read it"


def test_a_change_of_code_makes_one_new_layer_of_less_than_three_megabytes(
    build: Build, base_with_vllm: str, context: Path
) -> None:
    # Built right before: an engine may have several equal layers in its cache, from builds at the same time.
    unchanged = build("worker", base=base_with_vllm)
    with (context / "worker/inferfleet/worker/worker.py").open("a") as code:
        code.write("# changed\n")
    changed = build("worker", base=base_with_vllm)

    before, after = layers(unchanged), layers(changed)
    assert len(before) == len(after)
    assert [old == new for old, new in zip(before, after, strict=True)].count(False) == 1
    assert before[-1] != after[-1]
    assert compressed_size(changed, "/app") < 3_000_000


def layers(image: str) -> list[str]:
    return json.loads(docker("image", "inspect", "--format={{json .RootFS.Layers}}", image).stdout)


def compressed_size(image: str, folder: str) -> int:
    """Bytes that a registry is sent for a layer with this folder."""
    packed = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint=tar", image, "-c", folder], capture_output=True, check=True
    )
    return len(gzip.compress(packed.stdout))
