"""Makes the engine that the settings name, from the entry points of installed packages, ours included.

A package offers an engine in the group ``inferfleet.engines``. The entry point's name is the value of
``--engine``; its object is a callable that takes the ``WorkerSettings`` and returns an ``Engine``. Only the
chosen engine is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.foreign_code import raised_by
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.ports import Engine, as_adapter_engine

ENTRY_POINT_GROUP = "inferfleet.engines"

EngineFactory = Callable[[WorkerSettings], Engine]


def make_engine(settings: WorkerSettings) -> Engine:
    """Make the engine that the settings name.

    Raises:
        ConfigurationError: No installed package has this engine, it cannot be imported, or it does not accept
            a setting.

    """
    found = find_engine(settings.engine)
    try:
        make: EngineFactory = found.load()
    except (Exception, SystemExit) as error:
        said = error if isinstance(error, ImportError | AttributeError) else raised_by(error)
        raise ConfigurationError(
            f"the engine {found.name!r} ({found.value}, of the package {_package(found)}) "
            f"cannot be imported: {said}"
        ) from error
    engine = make(settings)
    if settings.adapters_dir and as_adapter_engine(engine) is None:
        raise ConfigurationError(
            f"INFERFLEET_ADAPTERS_DIR: the engine {found.name!r} has no LoRA adapters, so it cannot use "
            f"those in {settings.adapters_dir!r}; leave the setting out, or use --engine vllm"
        )
    return engine


def find_engine(name: str) -> EntryPoint:
    """Find an engine among the installed packages, without importing it.

    Raises:
        ConfigurationError: No package has an engine of this name, or two packages have one.

    """
    installed = entry_points(group=ENTRY_POINT_GROUP)
    match tuple(installed.select(name=name)):
        case (found,):
            return found
        case ():
            names = sorted(installed.names)
            raise ConfigurationError(
                f"no engine is named {name!r}{did_you_mean(name, names)}; "
                f"installed are: {', '.join(names) or 'none'}"
            )
        case several:
            packages = " and ".join(sorted(map(_package, several)))
            raise ConfigurationError(
                f"several packages have an engine named {name!r}: {packages}; uninstall all but one"
            )


def _package(engine: EntryPoint) -> str:
    return "?" if engine.dist is None else engine.dist.name
