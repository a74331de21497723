"""What a batch is to do, and whether it can begin or continue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from inferfleet.producer.batch.files import BatchRecord, read_record, record_path
from inferfleet.producer.batch.line_ids import RETRIES, new_batch_id
from inferfleet.producer.batch.source import Fingerprint, fingerprint, survey
from inferfleet.producer.job_making import PROMPT_OPTIONS, JobOptions
from inferfleet.schemas.errors import BatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What a batch is to do.

    ``source`` has a request in OpenAI's format on each line, or a prompt; ``prompts`` says that it has
    prompts, and is needed only if the first one begins with ``{``. ``output`` gets the answers. ``errors``
    gets the lines without an answer; by default it is beside the output. ``options`` are those of every job;
    those of prompts are only for prompts.
    """

    source: Path
    output: Path
    options: JobOptions
    errors: Path | None = None
    prompts: bool = False

    @property
    def error_file(self) -> Path:
        """Where lines without an answer go."""
        beside = self.output.with_name(f"{self.output.stem}.errors{self.output.suffix}")
        return (self.errors or beside).absolute()


def begin(plan: BatchPlan, *, longest: int) -> BatchRecord:
    """Examine the input of a new batch, and make its record.

    Raises:
        BatchError: The input cannot become a batch, or a file is in the way.

    """
    if plan.output.absolute() == plan.error_file:
        raise BatchError(f"{plan.output} cannot be both the output and the error file")
    for path in (plan.output, plan.error_file):
        try:
            if not path.parent.is_dir():
                raise BatchError(f"{path.parent} is not a folder, so {path} cannot be written")
            if path.exists() and (not path.is_file() or path.stat().st_size):
                raise BatchError(
                    f"{path} exists, and is of no batch with the output {plan.output}: use another file, or "
                    "move it away"
                )
        except OSError as error:
            raise BatchError(f"cannot write {path}: {error.strerror}") from error
    if "on_late" in plan.options:
        raise BatchError("on_late: not for batches, whose jobs wait for each other; leave it out")
    if "retrieve" in plan.options:
        raise BatchError("retrieve: not for batches, which one failed search would end; leave it out")
    found = survey(plan.source, longest=longest, prompts=plan.prompts)
    if not found.prompts and (misplaced := {"endpoint", *PROMPT_OPTIONS}.intersection(plan.options)):
        raise BatchError(
            f"{', '.join(sorted(misplaced))}: only for prompts; each line of {plan.source} has its own body, "
            "so set it there"
        )
    return BatchRecord(
        id=new_batch_id(),
        source=plan.source.absolute(),
        size=found.fingerprint.size,
        sha256=found.fingerprint.sha256,
        prompts=found.prompts,
        lines=found.lines,
        last_line=found.last_line,
        errors=_beside(plan),
        options=_plain(plan.options),
    )


def require_record(output: Path) -> BatchRecord:
    """Read the record of the batch with this output.

    Raises:
        BatchError: There is no such batch.

    """
    if (record := read_record(output)) is None:
        raise BatchError(f"no batch has the output {output}: {record_path(output)} does not exist")
    return record


def retried(record: BatchRecord) -> BatchRecord:
    """Return the record of a batch whose failed lines run once more.

    Raises:
        BatchError: They have run as often as they may.

    """
    if record.retries == RETRIES:
        raise BatchError(
            f"the failed lines have run again {RETRIES} times already: put them into a new batch"
        )
    return record.model_copy(update={"retries": record.retries + 1})


def require_same(plan: BatchPlan, record: BatchRecord) -> None:
    """Make sure that a batch continues with the plan that it began with.

    Raises:
        BatchError: The input or an option differs, so that lines would be answered in two ways.

    """
    require_unchanged(record, source=plan.source)
    if plan.error_file != (began := record.error_file(plan.output)):
        raise BatchError(f"this batch began with the error file {began}, not {plan.error_file}")
    options = _plain(plan.options)
    for name in sorted(options.keys() | record.options.keys()):
        if options.get(name) != record.options.get(name):
            raise BatchError(
                f"this batch began with {name} = {record.options.get(name)!r}, not {options.get(name)!r}: "
                "continue it with the same options, or use another output"
            )


def require_unchanged(record: BatchRecord, *, source: Path) -> None:
    """Make sure that this file is the input that a batch began with.

    Raises:
        BatchError: It has changed, or cannot be read.

    """
    if fingerprint(source) != Fingerprint(record.size, record.sha256):
        raise BatchError(
            f"{source} is not what it was when this batch began: restore it, or use another output"
        )


def _beside(plan: BatchPlan) -> Path:
    folder = plan.output.absolute().parent
    inside = plan.error_file.is_relative_to(folder)
    return plan.error_file.relative_to(folder) if inside else plan.error_file


def _plain(options: JobOptions) -> dict[str, Any]:
    return cast("dict[str, Any]", orjson.loads(orjson.dumps(options)))
