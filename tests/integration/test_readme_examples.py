"""Every example in the pages runs as it stands there, and prints what the page says.

A ``console`` block has commands after ``$`` and what they print; ``…`` stands for any text, alone on a line
for any lines. The commands of a page share one shell and folder, in the order of the page. A ``python``
block is a program; a ``text`` block right behind it is what it prints. A ``py`` block is a piece of one: it
runs where ``fleet`` is a client, ``session`` a session and ``TOOLS`` a list of tools. A worker with the
simulated engine serves the default pool. Blocks marked ``sh`` are not run here: they need a GPU or take long,
and ``tests/unit/test_readme.py`` checks what they name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import ForeignClient, StartWorker
from tests.patience import PATIENCE_S

from inferfleet.local.services import Services, ServicesChoice
from inferfleet.schemas.job import new_job_id

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"^```(?P<language>console|python|py|json)\n(?P<text>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE)
STAYS = re.compile(r"inferfleet (local up|worker --|agent run)")
"""Commands that run until they are told to end; each has a terminal of its own."""

WORKER = "inferfleet worker --engine simulated"
WORKER_SAYS = "…\n… INFO    ready…\n"

AROUND_PIECE = """\
import asyncio

from inferfleet.producer import Fleet

TOOLS = [{{"type": "function", "function": {{"name": "clock", "parameters": {{}}}}}}]


async def main() -> None:
    async with Fleet.connect() as fleet:
        session = fleet.session("a-page-of-the-documentation")
{piece}


asyncio.run(main())
"""

VECTOR_SETS = ROOT / "docs/how-to/retrieval.md"
"""The page whose examples need Redis 8."""

WATCHING = ROOT / "docs/how-to/watch-the-fleet.md"
"""The page whose doctor finds that the embedded services are for development."""

OTHER_LANGUAGES = (ROOT / "docs/how-to/publish-from-another-language.md").read_text(encoding="utf-8")

END = "--- end of output ---"
"""What the shell prints behind each command, so that its output is known to be whole."""


class Shell:
    """A shell that runs commands one after the other, with stdout and stderr as a terminal shows them."""

    def __init__(self, *, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The braces keep variables in this shell, and its stdin from the command.
        self._process.stdin.write(f"{{ {command}\n}} </dev/null\necho '{END}'\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            if line.endswith(f"{END}\n"):
                return printed + line.removesuffix(f"{END}\n")
            printed += line
        raise AssertionError(f"the shell ended in `{command}`, which printed:\n{printed}")

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def staying(command: str, expected: str, *, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a command in the background, once it has printed its lines; at the end, end it with SIGTERM."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = ""
        while not prints(printed, expected):
            line = process.stdout.readline()
            assert line, f"`{command}` ended, and had printed\n{printed}\nand not\n{expected}"
            printed += line
        # From here on somebody must read along, or it would stop when the pipe is full.
        rest: list[str] = []
        reading = threading.Thread(target=lambda: rest.extend(process.stdout or []))
        reading.start()
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
            reading.join()
        assert code == 0, f"`{command}` ended with {code}:\n{printed}{''.join(rest)}"


def prints(printed: str, expected: str) -> bool:
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…\n" else re.escape(line).replace("…", ".*")
        for line in expected.splitlines(keepends=True)
    )
    return re.fullmatch(pattern, printed) is not None


def assert_prints(command: str, printed: str, expected: str) -> None:
    assert prints(printed, expected), f"`{command}` printed\n{printed}\nand not\n{expected}"


@pytest.fixture
def readers_environment(environment: dict[str, str]) -> dict[str, str]:
    """What somebody has who follows the page, and started the services in another terminal."""
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "INFERFLEET_HTTP_PORT": "0",
        # As on a terminal, which the commands do not have here.
        "INFERFLEET_LOG_FORMAT": "console",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_print_what_it_says(
    page: Path,
    readers_environment: dict[str, str],
    services: Services,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if page == WATCHING and services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the page shows real services")
    if page == VECTOR_SETS:
        readers_environment["INFERFLEET_REDIS_URL"] = request.getfixturevalue("redis_8")
    blocks = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    with ExitStack() as stack:

        def leave_running(command: str, expected: str) -> None:
            running = staying(command, expected, folder=tmp_path, environment=readers_environment)
            stack.enter_context(running)

        def run(command: str, expected: str) -> None:
            assert_prints(command, shell.run(command), expected)

        def run_program(program: str, expected: str | None) -> None:
            (tmp_path / "example.py").write_text(program)
            printed = shell.run(f"{sys.executable} -W error example.py; echo $?")
            assert_prints(program, printed, ("…\n" if expected is None else expected) + "0\n")

        shell = Shell(folder=tmp_path, environment=readers_environment)
        stack.callback(shell.close)
        if any(block["language"] in {"python", "py"} for block in blocks):
            leave_running(WORKER, WORKER_SAYS)
        for block in blocks:
            match block["language"]:
                case "console":
                    for example in COMMAND.finditer(block["text"]):
                        stays = STAYS.match(example["command"])
                        (leave_running if stays else run)(example["command"], example["output"])
                case "python":
                    run_program(block["text"], block["output"])
                case "py":
                    run_program(AROUND_PIECE.format(piece=indent(block["text"], " " * 8)), block["output"])
                case _:
                    json.loads(block["text"])


@pytest.mark.usefixtures("fleet")  # declares the pool
async def test_a_job_published_as_the_page_says_is_answered_where_it_says(
    foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    (message,) = (block["text"] for block in BLOCK.finditer(OTHER_LANGUAGES) if block["language"] == "json")
    job = json.loads(message) | {"id": new_job_id()}
    reply_to = f"reader-{job['id']}"
    await start_worker()

    await foreign.publish(
        json.dumps(job).encode(),
        message_id=job["id"],
        priority=job["priority"],
        message_type="inferfleet.job.v1",
        reply_to=reply_to,
        delivery_mode=2,
    )

    answer: Any = await store.xread({f"inferfleet:reply:{{{reply_to}}}": "0"}, block=int(1000 * PATIENCE_S))
    ((_, ((_, line),)),) = answer
    assert line[b"job"].decode() == job["id"]
    result = json.loads(await store.get(f"inferfleet:job:{{{job['id']}}}:result") or "")
    assert result["state"] == "succeeded"
    assert result["response"]["object"] == "chat.completion"


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node.js with npm")
def test_the_program_for_node_prints_what_the_page_says(
    readers_environment: dict[str, str], tmp_path: Path
) -> None:
    program = re.search(r"^```js\n(.*?)^```\n+```text\n(.*?)^```$", OTHER_LANGUAGES, re.MULTILINE | re.DOTALL)
    (packages,) = re.findall(r"`npm install (.*?)`", OTHER_LANGUAGES)
    assert program
    if subprocess.run(["npm", "install", "--silent", "--prefix", tmp_path, *packages.split()]).returncode:
        pytest.skip(f"npm cannot install {packages}")
    (tmp_path / "program.mjs").write_text(program[1])

    with staying(WORKER, WORKER_SAYS, folder=tmp_path, environment=readers_environment):
        ended = subprocess.run(
            ["node", "program.mjs"],
            cwd=tmp_path,
            env=readers_environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    assert (ended.returncode, ended.stdout) == (0, program[2]), ended.stderr
