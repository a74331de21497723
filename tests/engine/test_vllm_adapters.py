"""LoRA adapters on real vLLM: a request names one as its model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.engine.conftest import ON_CPU, Ask
from tests.engine.lora import write_adapter

from inferfleet.schemas import FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.vllm import adapters
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.ports import Engine, Generation, GenerationError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

NAMES = ("first", "second", "third", "fourth")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / name, seed=seed)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lora(
    folder: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmEngine]:
    """An engine with room for two adapters at a time."""
    elsewhere = write_adapter(tmp_path_factory.mktemp("elsewhere") / "x", seed=7)
    engine = VllmEngine(
        model=tiny_model,
        max_running=16,
        engine_args=ON_CPU
        | {
            "max_loras": 2,
            "max_cpu_loras": 2,
            "lora_modules": [{"name": "elsewhere", "path": str(elsewhere)}, "gone=/no/such/folder"],
        },
        adapters_dir=str(folder),
    )
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def ask(lora: VllmEngine, asking: Callable[[Engine], Ask]) -> Ask:
    return asking(lora)


def chat(model: str = "tiny", *, tokens: int = 40) -> dict[str, Any]:
    messages = [{"role": "user", "content": "tell me of the sea and of the first people who found it " * 3}]
    return {"messages": messages, "temperature": 0, "max_tokens": tokens, "model": model}


async def refusal_of(ask: Ask, model: str) -> str:
    with pytest.raises(GenerationError) as raised:
        await ask(chat(model))
    assert raised.value.code is FailureCode.INVALID_REQUEST
    assert not raised.value.code.retryable
    return str(raised.value)


async def test_each_adapter_says_something_else_and_the_model_what_it_says_without_adapters(
    ask: Ask, engine: VllmEngine, asking: Callable[[Engine], Ask]
) -> None:
    models: list[str] = []
    without = await asking(engine)(chat())
    base, *adapted = [
        await ask(chat(name), on_prompt=lambda *, model, tokens: models.append(model))
        for name in ("tiny", *NAMES, "elsewhere")
    ]
    assert base.text == without.text
    assert len({answer.text for answer in (base, *adapted)}) == 6
    # The same prompt with another model is not in the cache, though its tokens are the same.
    assert [answer.response["model"] for answer in adapted] == models[1:] == [*NAMES, "elsewhere"]
    assert (await ask(chat())).text == base.text


async def test_more_adapters_than_room_take_turns_and_each_keeps_its_answer(ask: Ask) -> None:
    models = ("tiny", *NAMES)
    alone = {name: (await ask(chat(name))).text for name in models}
    many = [name for name in models for _ in range(3)]
    together = await asyncio.gather(*(ask(chat(name)) for name in many))
    for name, answer in zip(many, together, strict=True):
        assert answer.text == alone[name]


async def test_the_prefix_cache_is_that_of_one_adapter(ask: Ask) -> None:
    prompt = {"prompt": [number % 40 + 100 for number in range(200)], "max_tokens": 1, "temperature": 0}
    first = await ask(prompt | {"model": "second"})
    again = await ask(prompt | {"model": "second"})
    other = await ask(prompt | {"model": "third"})
    base = await ask(prompt)
    assert again.usage.cached_tokens > 0
    assert (first.usage.cached_tokens, other.usage.cached_tokens, base.usage.cached_tokens) == (0, 0, 0)


async def test_an_answer_with_an_adapter_resumes_at_every_cut_as_if_uninterrupted(ask: Ask) -> None:
    whole = await ask(chat("third"))
    resumed = await asyncio.gather(
        *(ask(chat("third"), resume_token_ids=whole.token_ids[:cut]) for cut in range(1, 40))
    )
    for cut, answer in enumerate(resumed, 1):
        assert answer.text == whole.text
        assert answer.token_ids == whole.token_ids[cut:]


async def test_an_adapter_is_part_of_the_identity_by_its_contents(
    lora: VllmEngine, folder: Path, a_generation: Callable[..., Generation]
) -> None:
    assert lora.identity is not None
    identities = {name: await lora.identify(a_generation(chat(name))) for name in ("tiny", "first", "second")}
    assert identities["tiny"] == lora.identity
    assert len({identity.short for identity in identities.values()}) == 3
    shutil.copytree(folder / "second", folder / "copied")
    assert (await lora.identify(a_generation(chat("copied")))).short == identities["second"].short
    assert set(await lora.adapters()) == {*NAMES, "copied", "elsewhere", "gone"}


async def test_an_adapter_that_is_replaced_is_another_one_and_answers_keep_theirs(
    lora: VllmEngine, ask: Ask, folder: Path, a_generation: Callable[..., Generation]
) -> None:
    for name in ("replaced", "first"):
        write_adapter(folder / name, seed=20)
        before = await lora.identify(a_generation(chat(name)))
        said = (await ask(chat(name), adapter=before.adapter)).text

        write_adapter(folder / name, seed=21)

        after = await lora.identify(a_generation(chat(name)))
        assert after.short != before.short
        now, kept = await asyncio.gather(
            ask(chat(name), adapter=after.adapter), ask(chat(name), adapter=before.adapter)
        )
        assert kept.text == said != now.text
        # Nothing cached of the old version is taken for that of the new one.
        write_adapter(folder / "fresh", seed=21)
        assert (await ask(chat("fresh"))).text == now.text


async def test_versions_that_nobody_uses_are_forgotten_and_one_that_answers_is_not(
    lora: VllmEngine,
    ask: Ask,
    folder: Path,
    a_generation: Callable[..., Generation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapters, "KEPT", 2)
    versions: list[str] = []
    said: list[str] = []
    for seed in range(30, 33):
        write_adapter(folder / "trained", seed=seed)
        versions.append((await lora.identify(a_generation(chat("trained")))).adapter)
        said.append((await ask(chat("trained"), adapter=versions[-1])).text)
    loaded: Any = lora._loaded
    copies = Path(loaded.adapters._files._copies.name)
    assert {each.name for each in copies.iterdir()} == set(versions[-2:])
    with pytest.raises(GenerationError, match="was replaced before its answer began") as replaced:
        await ask(chat("trained"), adapter=versions[0])
    assert replaced.value.code.retryable

    # As an answer does while it runs.
    async with loaded.adapters.held(a_generation(chat("trained"), adapter=versions[-1])):
        for name in NAMES[:2]:
            await ask(chat(name))
        assert (await ask(chat("trained"), adapter=versions[-1])).text == said[-1]
    assert versions[-1] in {each.name for each in copies.iterdir()}
    for name in NAMES[:2]:
        await ask(chat(name))
    assert versions[-1] not in {each.name for each in copies.iterdir()}
    assert len(loaded.adapters._models.lora_requests) <= 3


@pytest.mark.parametrize(
    "name", ["../elsewhere", "..", ".", "/etc", "first/../second", "no", "x" * 5000, "a\0"]
)
async def test_a_name_that_is_no_adapter_is_refused_with_those_that_there_are(ask: Ask, name: str) -> None:
    message = await refusal_of(ask, name)
    assert message.startswith("model: this worker serves 'tiny' and the adapters '")
    assert "'elsewhere', 'first', " in message
    assert message.endswith(f", not {name!r}")


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        ("rank", "LoRA rank 32 is greater than max_lora_rank 16"),
        ("smaller", "it was made for another model: lora_A of model.layers.0.self_attn.q_proj is 4 x 64"),
        ("larger", "it was made for another model: lora_A of model.layers.0.self_attn.q_proj is 4 x 256"),
        ("modules", "expected target modules in"),
        ("no weights", "doesn't contain tensors"),
        ("cut", "its weights cannot be read"),
        ("no json", "Expecting property name"),
        ("dora", "vLLM does not yet support DoRA"),
    ],
)
async def test_an_adapter_that_does_not_fit_fails_its_job_and_nothing_else(
    ask: Ask, folder: Path, problem: str, says: str
) -> None:
    running = asyncio.ensure_future(ask(chat("second", tokens=300)))
    sizes = {"smaller": {"hidden": 64}, "larger": {"hidden": 256}, "rank": {"rank": 32}}
    bad = write_adapter(folder / "bad", seed=1, **sizes.get(problem, {}), use_dora=problem == "dora")
    weights, config = bad / "adapter_model.safetensors", bad / "adapter_config.json"
    match problem:
        case "no weights":
            weights.unlink()
        case "cut":
            weights.write_bytes(weights.read_bytes()[:500])
        case "no json":
            config.write_text("{")
        case "modules":
            weights.write_bytes(weights.read_bytes().replace(b"self_attn.q_proj", b"self_attn.x_proj"))
    message = await refusal_of(ask, "bad")
    assert message.startswith("model: the adapter 'bad' cannot be used: ")
    assert says in message
    assert str(bad.parent) not in message
    # Mended, it answers.
    write_adapter(bad, seed=1)
    assert (await ask(chat("bad"))).text == (await ask(chat("second"))).text
    assert (await running).usage.completion_tokens == 300


async def test_a_name_without_an_adapter_says_where_it_should_be(ask: Ask) -> None:
    message = await refusal_of(ask, "gone")
    assert "adapter 'gone', lora_modules names '/no/such/folder', which is neither a folder with" in message


async def test_an_adapter_of_the_hub_is_found_by_its_name(
    lora: VllmEngine, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: str
) -> None:
    # Given the cache that a download leaves
    cached = tmp_path / "models--org--adapter"
    write_adapter(cached / "snapshots" / COMMIT, seed=2)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = lora._loaded  # pyright: ignore[reportPrivateUsage]
    assert loaded is not None
    monkeypatch.setattr(loaded.adapters._files, "_named", {"hub": "org/adapter"})  # pyright: ignore
    assert (await ask(chat("hub"))).text == (await ask(chat("third"))).text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"adapters_dir": "/no/such"}, "INFERFLEET_ADAPTERS_DIR: '/no/such' is not a folder"),
        ({"engine_args": {"lora_modules": ["x"]}}, "lora_modules should be a list of 'name=path'"),
        ({"engine_args": {"enable_lora": False, "lora_modules": ["x=y"]}}, "enable_lora is False and should"),
    ],
)
async def test_settings_that_cannot_be_are_refused_before_the_model_loads(
    tiny_model: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        VllmEngine(**{"model": tiny_model, "max_running": 1, "engine_args": {}, **options})
