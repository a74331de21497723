"""Names are part of the contract: other languages publish to them, so they are spelt out here."""

from __future__ import annotations

import inspect
import re

import pytest

from inferfleet.schemas import names

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


SPELT = [
    (names.JOBS_EXCHANGE, "inferfleet.jobs"),
    (names.DEAD_EXCHANGE, "inferfleet.dead"),
    (names.CONTROL_EXCHANGE, "inferfleet.control"),
    (names.JOB_MESSAGE_TYPE, "inferfleet.job.v1"),
    (names.job_queue("chat"), "inferfleet.jobs.chat"),
    (names.dead_queue("chat"), "inferfleet.dead.chat"),
    (names.dead_lock("chat"), "inferfleet.dead-lock.chat"),
    (names.rollout_key("chat"), "inferfleet:pool:{chat}:rollout"),
    (names.swap_key("chat"), "inferfleet:pool:{chat}:swap"),
    (names.ended_key("chat"), "inferfleet:pool:{chat}:ended"),
    (names.ended_call_key("chat", "w1:1"), "inferfleet:pool:{chat}:ended:w1:1"),
    (names.announcements("chat"), "chat:urgent"),
    (names.warm_turns("chat", "w1"), "chat:warm:w1"),
    (names.warm_queue("chat", "w1"), "inferfleet.warm.chat:w1"),
    (names.job_queues("chat.v2"), "^inferfleet[.](jobs|warm)[.]chat[.]v2(:|$)"),
    (names.delay_queue("classic", 64), "inferfleet.delay.classic.64s"),
    (names.delay_header(64), "inferfleet-delay-64s"),
    (names.control_queue("w1"), "inferfleet.control.w1"),
    (names.job_key(JOB), f"inferfleet:job:{{{JOB}}}"),
    (names.journal_key(JOB), f"inferfleet:job:{{{JOB}}}:journal"),
    (names.result_key(JOB), f"inferfleet:job:{{{JOB}}}:result"),
    (names.request_key(JOB), f"inferfleet:job:{{{JOB}}}:request"),
    (names.response_key(JOB), f"inferfleet:job:{{{JOB}}}:response"),
    (names.reply_key("c1"), "inferfleet:reply:{c1}"),
    (names.session_key("s1"), "inferfleet:session:{s1}"),
    (names.lane_key("s1"), "inferfleet:session:{s1}:lane"),
    (names.payloads_key("s1"), "inferfleet:session:{s1}:payloads"),
    (names.turns_key("s1"), "inferfleet:session:{s1}:turns"),
    (names.state_key("s1"), "inferfleet:session:{s1}:state"),
    (names.left_key("s1"), "inferfleet:session:{s1}:left"),
    (names.session_call_key("s1", "t1"), "inferfleet:session:{s1}:call:t1"),
    (names.pool_key("chat"), "inferfleet:pool:{chat}"),
    (names.warm_prompt_key("chat", "ab12"), "inferfleet:pool:{chat}:warm:ab12"),
    (names.waiting_turns_key("chat"), "inferfleet:pool:{chat}:waiting_turns"),
    (names.open_key("chat", 4), "inferfleet:pool:{chat}:open:4"),
    (names.held_key("chat"), "inferfleet:pool:{chat}:held"),
    (names.sweep_key("chat"), "inferfleet:pool:{chat}:sweep"),
    (names.WORKERS_KEY, "inferfleet:workers"),
    (names.POOLS_KEY, "inferfleet:pools"),
    (names.idempotency_key("acme", "k1"), "inferfleet:idempotency:{acme:k1}"),
    (names.worker_key("w1"), "inferfleet:worker:w1"),
    (names.WEBHOOK_WATCHED_KEY, "inferfleet:{webhooks}:watched"),
    (names.WEBHOOK_QUEUE_KEY, "inferfleet:{webhooks}:queue"),
    (names.webhook_endpoints_key("acme"), "inferfleet:{webhooks}:tenant:acme"),
    (names.webhook_endpoint_key("we_1"), "inferfleet:{webhooks}:endpoint:we_1"),
    (names.webhook_events_key("we_1"), "inferfleet:{webhooks}:endpoint:we_1:events"),
    (names.webhook_due_key("we_1"), "inferfleet:{webhooks}:endpoint:we_1:due"),
    (names.LIMITS_PREFIX, "inferfleet:limit"),
    (names.shares_key("p1"), "inferfleet:pool:{p1}:shares"),
    (names.shares_call_key("p1", "w1"), "inferfleet:pool:{p1}:shares:w1"),
    (names.preferred_key("p1", "t1"), "inferfleet:pool:{p1}:preferred:t1"),
    (names.guarantee_key("k1"), "inferfleet:limit:{k1}:guarantee"),
    (names.places_key("k1"), "inferfleet:limit:{k1}:jobs"),
    (names.batch_key("b1"), "inferfleet:batch:b1"),
    (names.BATCHES_KEY, "inferfleet:batches"),
    (names.FLEET_HISTORY_KEY, "inferfleet:{fleet}:history"),
    (names.FLEET_RECORDER_KEY, "inferfleet:{fleet}:recorder"),
    (names.tenant_batches_key("acme"), "inferfleet:batches:acme"),
    (names.tenant_open_batches_key("acme"), "inferfleet:batches:acme:places"),
    (names.file_key("f1"), "inferfleet:file:f1"),
    (names.FILES_KEY, "inferfleet:files"),
    (names.tenant_files_key("acme"), "inferfleet:files:acme"),
    (names.RUN_MESSAGE_TYPE, "inferfleet.run.v1"),
    (names.run_key("r1"), "inferfleet:run:{r1}"),
    (names.run_steps_key("r1"), "inferfleet:run:{r1}:steps"),
    (names.run_inbox_key("r1"), "inferfleet:run:{r1}:inbox"),
    (names.AGENT_QUEUES_KEY, "inferfleet:agents"),
    (names.run_queue("q1"), "inferfleet.agents.q1"),
    (names.open_runs_key("q1"), "inferfleet:agents:{q1}:open"),
    (names.index_key("acme", "docs"), "inferfleet:index:{docs:acme}"),
    (names.index_deleted_key("i"), "i:deleted"),
    (names.index_vectors_key("i", "g1"), "i:vectors:g1"),
    (names.index_documents_key("i", "g1"), "i:documents:g1"),
    (names.index_document_key("i", "g1", "d1"), "i:document:g1:d1"),
    (names.tenant_indexes_key("acme"), "inferfleet:indexes:acme"),
]


@pytest.mark.parametrize(("name", "spelt"), SPELT)
def test_a_name_is_spelt_as_the_contract_has_it(name: str, spelt: str) -> None:
    assert name == spelt


def test_every_queue_exchange_and_key_is_spelt_here() -> None:
    functions = inspect.getmembers(names, inspect.isfunction)
    made = {function(*"xyz"[: len(inspect.signature(function).parameters)]) for _, function in functions}
    constants = {
        value for name, value in vars(names).items() if name.isupper() and str(value).startswith("inferfleet")
    }
    assert len(SPELT) == len(made | constants)


def test_all_keys_of_one_job_share_a_hash_tag_so_that_one_script_may_touch_them() -> None:
    keys = [names.job_key(JOB), names.journal_key(JOB), names.result_key(JOB), names.request_key(JOB)]
    assert {tag for key in keys for tag in re.findall(r"\{(.*?)\}", key)} == {JOB}


def test_all_keys_of_one_session_share_a_hash_tag() -> None:
    keys = [
        names.session_key("s1"),
        names.lane_key("s1"),
        names.payloads_key("s1"),
        names.turns_key("s1"),
        names.state_key("s1"),
        names.left_key("s1"),
        names.session_call_key("s1", "t1"),
    ]
    assert {tag for key in keys for tag in re.findall(r"\{(.*?)\}", key)} == {"s1"}
