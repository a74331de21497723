"""From settings to an engine. An engine is an entry point of an installed package, ours like anybody's.

A package offers one in its group ``inferfleet.engines``: the entry point's name is what ``--engine`` takes,
its object a callable that gets the ``WorkerSettings`` and returns an ``Engine``. Only the engine that is
chosen is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.ports import Engine

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
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"the engine {found.name!r} ({found.value}, of the package {_package(found)}) "
            f"cannot be imported: {error}"
        ) from error
    return make(settings)


def find_engine(name: str) -> EntryPoint:
    """Look for an engine among the installed packages, without importing it.

    Raises:
        ConfigurationError: There is none of this name, or two packages have one.

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
