"""Reads a KEDA ScaledObject, with KEDA's defaults, from a manifest.

A field that would change a decision and is not supported is an error, and never silently skipped. This module
does not validate the rest of the manifest; KEDA's own schema does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from inferfleet.local.autoscaler.triggers import Mode, RabbitMQTrigger, Trigger, parse_trigger
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.names import job_queue, job_queues

KEDA_ANNOTATION = "autoscaling.keda.sh/"
PAUSED = KEDA_ANNOTATION + "paused"
PAUSED_REPLICAS = KEDA_ANNOTATION + "paused-replicas"

_QUEUES_OF_A_POOL = re.compile(re.escape(job_queues("POOL")).replace("POOL", r"((?:[a-z0-9_-]|\[\.\])+)"))

Count = Annotated[int, Field(ge=0)]
Window = Annotated[int, Field(ge=0, le=3600)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Policy(_Part):
    """A number of pods, or a percentage of them, per period."""

    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(ge=1)]
    period_seconds: Annotated[int, Field(ge=1, le=1800)]


class Rules(_Part):
    """How fast the HPA may scale in one direction. ``None`` is the HPA's own default."""

    policies: tuple[Policy, ...] | None = None
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    stabilization_window_seconds: Window | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None


class Behavior(_Part):
    """How fast the HPA may scale, up and down."""

    scale_up: Rules = Rules()
    scale_down: Rules = Rules()


class Fallback(_Part):
    """How many replicas to have while a trigger fails."""

    failure_threshold: Count
    replicas: Count
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"] = (
        "static"
    )


class _HpaConfig(_Part):
    name: str | None = None
    behavior: Behavior | None = None


class _Advanced(_Part):
    restore_to_original_replica_count: bool = False
    horizontal_pod_autoscaler_config: _HpaConfig = _HpaConfig()
    scaling_modifiers: dict[str, Any] = Field(default_factory=dict)


class _Target(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str


class _Spec(_Part):
    scale_target_ref: _Target
    polling_interval: Annotated[int, Field(ge=1)] = 30
    cooldown_period: Count = 300
    initial_cooldown_period: Count = 0
    idle_replica_count: Count | None = None
    min_replica_count: Count = 0
    max_replica_count: Annotated[int, Field(ge=1)] = 100
    fallback: Fallback | None = None
    advanced: _Advanced = _Advanced()
    triggers: Annotated[list[dict[str, Any]], Field(min_length=1)]

    @model_validator(mode="after")
    def _counts_in_order(self) -> Self:
        if self.min_replica_count > self.max_replica_count:
            raise ValueError("minReplicaCount must be less than or equal to maxReplicaCount")
        if self.idle_replica_count is not None and self.idle_replica_count >= self.min_replica_count:
            raise ValueError("idleReplicaCount must be less than minReplicaCount")
        return self


class ScaledObject(BaseModel):
    """The fields that decide about the number of replicas. Periods are in seconds.

    ``behavior`` is ``None`` if the manifest has none; then the HPA's older rules apply. ``paused_replicas``
    is the number to stay at; with ``paused`` alone it is the current number.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    target: str = ""
    triggers: tuple[Trigger, ...]
    polling_interval_s: int = 30
    cooldown_period_s: int = 300
    initial_cooldown_period_s: int = 0
    idle_replicas: int | None = None
    min_replicas: int = 0
    max_replicas: int = 100
    fallback: Fallback | None = None
    behavior: Behavior | None = None
    paused: bool = False
    paused_replicas: int | None = None
    remarks: tuple[str, ...] = ()
    """Parts of the manifest that have no effect here, one line each."""

    @property
    def pool(self) -> str:
        """The pool whose queue the first RabbitMQ trigger watches.

        Raises:
            ConfigurationError: There is no such trigger.

        """
        prefix = job_queue("")
        for trigger in self.triggers:
            queue = getattr(trigger, "queue", "")
            if queue.startswith(prefix):
                return queue.removeprefix(prefix)
            if of_pool := _QUEUES_OF_A_POOL.fullmatch(queue):
                return of_pool[1].replace("[.]", ".")
        raise ConfigurationError(
            f"ScaledObject {self.name!r} has no rabbitmq trigger on a queue {prefix}POOL, so there is no "
            "telling which pool's workers to start"
        )


def read_scaled_object(path: Path, *, name: str | None = None) -> ScaledObject:
    """Read the ScaledObject in a YAML file, which may hold other objects too.

    Raises:
        ConfigurationError: There is none, there are several and ``name`` does not select one, or it has an
            invalid or unsupported field.

    """
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    found = [
        cast("Mapping[str, Any]", document)
        for document in documents
        if isinstance(document, Mapping) and cast("Mapping[str, Any]", document).get("kind") == "ScaledObject"
    ]
    names = [_name(document) for document in found]
    if name is not None:
        found = [document for document, its_name in zip(found, names, strict=True) if its_name == name]
    if not found:
        wanted = f"a ScaledObject {name!r}" if name is not None else "a ScaledObject"
        raise ConfigurationError(
            f"{path} holds no {wanted.removeprefix('a ')}; for a kustomization, render it first: "
            "kubectl kustomize DIR > FILE"
        )
    if len(found) > 1:
        raise ConfigurationError(
            f"{path} holds {len(found)} ScaledObjects; choose with --name: {', '.join(names)}"
        )
    return parse_scaled_object(found[0])


def _name(document: Mapping[str, Any]) -> str:
    return str(cast("Mapping[str, Any]", document.get("metadata") or {}).get("name", ""))


def parse_scaled_object(document: Mapping[str, Any]) -> ScaledObject:
    """Make a ScaledObject of a parsed manifest. See ``read_scaled_object``."""
    metadata = cast("Mapping[str, Any]", document.get("metadata") or {})
    name = _name(document)
    try:
        spec = _Spec.model_validate(document.get("spec"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(
            f"ScaledObject {name!r}: {where + ': ' if where else ''}{problem}"
        ) from error
    if spec.advanced.scaling_modifiers:
        raise ConfigurationError(f"ScaledObject {name!r}: scalingModifiers cannot be followed here")
    triggers = tuple(parse_trigger(trigger, number=number) for number, trigger in enumerate(spec.triggers))
    if spec.min_replica_count == 0 and any(
        isinstance(trigger, RabbitMQTrigger) and trigger.mode is Mode.CONSUMPTION_TIME for trigger in triggers
    ):
        raise ConfigurationError(
            f"ScaledObject {name!r}: minReplicaCount is 0, and with a trigger of the mode "
            f"{Mode.CONSUMPTION_TIME} KEDA 2.20 never scales to zero: write 1"
        )
    paused, paused_replicas = _paused(name, cast("Mapping[str, Any]", metadata.get("annotations") or {}))
    return ScaledObject(
        name=name,
        target=spec.scale_target_ref.name,
        triggers=triggers,
        polling_interval_s=spec.polling_interval,
        cooldown_period_s=spec.cooldown_period,
        initial_cooldown_period_s=spec.initial_cooldown_period,
        idle_replicas=spec.idle_replica_count,
        min_replicas=spec.min_replica_count,
        max_replicas=spec.max_replica_count,
        fallback=spec.fallback,
        behavior=spec.advanced.horizontal_pod_autoscaler_config.behavior,
        paused=paused,
        paused_replicas=paused_replicas,
        remarks=(
            ("restoreToOriginalReplicaCount means nothing here: there is no Deployment to restore",)
            if spec.advanced.restore_to_original_replica_count
            else ()
        ),
    )


def _paused(name: str, annotations: Mapping[str, Any]) -> tuple[bool, int | None]:
    unknown = [
        key for key in annotations if key.startswith(KEDA_ANNOTATION) and key not in {PAUSED, PAUSED_REPLICAS}
    ]
    if unknown:
        raise ConfigurationError(
            f"ScaledObject {name!r}: the annotation {unknown[0]} cannot be followed here"
        )
    replicas = annotations.get(PAUSED_REPLICAS)
    if replicas is not None:
        if not str(replicas).isdecimal():
            raise ConfigurationError(
                f"ScaledObject {name!r}: {PAUSED_REPLICAS} is {replicas!r}, not a number"
            )
        return True, int(replicas)
    return str(annotations.get(PAUSED, "false")).lower() == "true", None
