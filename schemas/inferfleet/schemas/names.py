"""Every name that two processes must agree on: exchanges, queues, Redis keys.

These functions only build strings. The keys of one job share the hash tag ``{id}``, so they are in one Redis
Cluster slot.
"""

from __future__ import annotations

JOBS_EXCHANGE = "inferfleet.jobs"
"""Direct, durable. The routing key is the pool, its ``announcements``, or the ``warm_turns`` of a worker."""

DEAD_EXCHANGE = "inferfleet.dead"
"""Direct, durable. The routing key is the pool."""

CONTROL_EXCHANGE = "inferfleet.control"
"""Fanout: commands reach every worker."""

DELAYS_S = tuple(2**power for power in range(22))
"""For how many seconds messages wait in each of the queues of jobs that start later: the powers of two, up to
24 days. A message waits in those that are the bits of its delay."""

JOB_MESSAGE_TYPE = "inferfleet.job.v1"
"""The AMQP ``type`` property of a job message."""

RUN_MESSAGE_TYPE = "inferfleet.run.v1"
"""The AMQP ``type`` property of a message that names a run of an agent."""

PRIORITY_LEVELS = 10
"""``x-max-priority`` of a pool's queue. Jobs use 0 to 9."""

HEADER_CODE = "x-inferfleet-code"
"""On a dead letter: the failure code."""

HEADER_MESSAGE = "x-inferfleet-message"
"""On a dead letter: what went wrong, for a person."""

HEADER_ATTEMPTS = "x-inferfleet-attempts"
"""On a dead letter: the number of attempts."""

HEADER_WORKER = "x-inferfleet-worker"
"""On a dead letter: the worker that gave up."""

HEADER_DIED_AT = "x-inferfleet-died-at"
"""On a dead letter: when it was dead-lettered, as an ISO 8601 time."""

HEADER_LEFT_OUT = "x-inferfleet-left-out"
"""On a dead letter: the message's properties and headers that it could not carry, if there were any."""

WORKERS_KEY = "inferfleet:workers"
"""The sorted set of workers that have a heartbeat, by the time of their last one."""

LIMITS_PREFIX = "inferfleet:limit"
"""How the keys of the limits of API keys begin."""

POOLS_KEY = "inferfleet:pools"
"""The sorted set of pools, by the time at which a worker, a declaration or a job last named them."""

AGENT_QUEUES_KEY = "inferfleet:agents"
"""The sorted set of queues of agents' runs, by the time at which a run was last started in them."""

WEBHOOK_WATCHED_KEY = "inferfleet:{webhooks}:watched"
"""The sorted set of the jobs whose ends become webhook events, by the time in ms at which to look at them."""

WEBHOOK_QUEUE_KEY = "inferfleet:{webhooks}:queue"
"""The sorted set of the webhook endpoints that have events to receive, by the time in ms of the next try."""

BATCHES_KEY = "inferfleet:batches"
"""The sorted set of the batches that gateways have to work on, by the time in ms at which they have to
end: their deadline, or when they were cancelled."""

FLEET_HISTORY_KEY = "inferfleet:{fleet}:history"
"""The list of samples of the whole fleet in the last hour, as JSON, the oldest first."""

FLEET_RECORDER_KEY = "inferfleet:{fleet}:recorder"
"""The gateway that takes these samples; it expires when that gateway stops renewing it."""

FILES_KEY = "inferfleet:files"
"""The sorted set of all files of the gateways, by the time in ms at which they expire."""


def job_queue(pool: str) -> str:
    """Name the queue that holds a pool's waiting jobs."""
    return f"inferfleet.jobs.{pool}"


def dead_queue(pool: str) -> str:
    """Name the queue that holds a pool's dead letters."""
    return f"inferfleet.dead.{pool}"


def dead_lock(pool: str) -> str:
    """Name the exclusive queue that a client has while it reads a pool's dead letters."""
    return f"inferfleet.dead-lock.{pool}"


def delay_queue(queue_type: str, seconds: int | str) -> str:
    """Name the queue in which jobs that start later wait for so many seconds, and the exchange before it.

    Each type of queue has a set of its own, because the pools of one broker may have different ones.
    """
    return f"inferfleet.delay.{queue_type}.{seconds}s"


def delay_header(seconds: int) -> str:
    """Name the header that says whether a message has to wait in a ``delay_queue``: 1 if so, else 0."""
    return f"inferfleet-delay-{seconds}s"


def announcements(pool: str) -> str:
    """Return the routing key on the jobs exchange by which a pool's workers are told of urgent jobs."""
    return f"{pool}:urgent"


def warm_turns(pool: str, worker_id: str) -> str:
    """Return the routing key on the jobs exchange of the turns whose histories a worker has in its cache.

    No pool's name contains a colon, so it begins with ``<pool>:`` for one pool only.
    """
    return f"{pool}:warm:{worker_id}"


def warm_queue(pool: str, worker_id: str) -> str:
    """Name the queue of these turns."""
    return f"inferfleet.warm.{pool}:{worker_id}"


def job_queues(pool: str) -> str:
    """Return a regular expression for the queues of a pool's jobs: its own, and those of warm turns."""
    return f"^inferfleet[.](jobs|warm)[.]{pool.replace('.', '[.]')}(:|$)"


def control_queue(worker_id: str) -> str:
    """Name a worker's own queue on the control exchange."""
    return f"inferfleet.control.{worker_id}"


def job_key(job_id: str) -> str:
    """Key of the job's record: a hash of short fields."""
    return f"inferfleet:job:{{{job_id}}}"


def request_key(job_id: str) -> str:
    """Key of the job's request: the body of its message, until the job has ended."""
    return f"inferfleet:job:{{{job_id}}}:request"


def result_key(job_id: str) -> str:
    """Key of the job's result: one JSON string, apart from the record so that the hash stays compact."""
    return f"inferfleet:job:{{{job_id}}}:result"


def journal_key(job_id: str) -> str:
    """Key of the job's journal: a stream."""
    return f"inferfleet:job:{{{job_id}}}:journal"


def response_key(job_id: str) -> str:
    """Key of what OpenAI's Responses API keeps of the request that became the job: one JSON string."""
    return f"inferfleet:job:{{{job_id}}}:response"


def idempotency_key(tenant: str, key: str) -> str:
    """Key that maps a caller's idempotency key to its job."""
    return f"inferfleet:idempotency:{{{tenant}:{key}}}"


def guarantee_key(key_id: str) -> str:
    """Key of what an API key has used of its guarantee: a hash with the time in ms until which it is used."""
    return f"{LIMITS_PREFIX}:{{{key_id}}}:guarantee"


def places_key(key_id: str) -> str:
    """Key of the sorted set of the jobs that count as unfinished for an API key, by the time in ms."""
    return f"{LIMITS_PREFIX}:{{{key_id}}}:jobs"


def reply_key(client_id: str) -> str:
    """Key of the stream with one line for each finished job of a client."""
    return f"inferfleet:reply:{{{client_id}}}"


def session_key(session_id: str) -> str:
    """Key of a session's record."""
    return f"inferfleet:session:{{{session_id}}}"


def lane_key(session_id: str) -> str:
    """Key of the list of turns that wait in a session's lane."""
    return f"inferfleet:session:{{{session_id}}}:lane"


def payloads_key(session_id: str) -> str:
    """Key of the hash with the messages of a session's unfinished turns, by job."""
    return f"inferfleet:session:{{{session_id}}}:payloads"


def turns_key(session_id: str) -> str:
    """Key of the list of a session's turns."""
    return f"inferfleet:session:{{{session_id}}}:turns"


def state_key(session_id: str) -> str:
    """Key of a session's state: one JSON value."""
    return f"inferfleet:session:{{{session_id}}}:state"


def left_key(session_id: str) -> str:
    """Key of the sorted set of the turns that have left a session's lane, by the time of leaving in ms."""
    return f"inferfleet:session:{{{session_id}}}:left"


def session_call_key(session_id: str, token: str) -> str:
    """Key that records for a while that a change of a session was made; ``token`` names the change."""
    return f"inferfleet:session:{{{session_id}}}:call:{token}"


def pool_key(pool: str) -> str:
    """Key of what is set for a pool: a hash.

    Its fields are ``queue_max_length``, ``paused``, ``required_identity`` and ``rollout``, each if set.
    """
    return f"inferfleet:pool:{{{pool}}}"


def rollout_key(pool: str) -> str:
    """Key of the rollout of a pool: a hash with its state, its revision, and the process that controls it."""
    return f"inferfleet:pool:{{{pool}}}:rollout"


def swap_key(pool: str) -> str:
    """Key of the lease of the command that swaps the models of a pool's workers; its value is who has it."""
    return f"inferfleet:pool:{{{pool}}}:swap"


def ended_key(pool: str) -> str:
    """Key of the counts of a pool's jobs that have ended: a hash."""
    return f"inferfleet:pool:{{{pool}}}:ended"


def ended_call_key(pool: str, call: str) -> str:
    """Key that records for a while that a worker has added to these counts; ``call`` names the addition."""
    return f"inferfleet:pool:{{{pool}}}:ended:{call}"


def shares_key(pool: str) -> str:
    """Key of what the tenants of a pool have been served lately: a hash, by tenant."""
    return f"inferfleet:pool:{{{pool}}}:shares"


def shares_call_key(pool: str, worker: str) -> str:
    """Key of the number of the last addition of a worker to what tenants have been served."""
    return f"{shares_key(pool)}:{worker}"


def preferred_key(pool: str, tenant: str) -> str:
    """Key of the sorted set of a tenant's unfinished jobs that got a higher priority, by the time in ms."""
    return f"inferfleet:pool:{{{pool}}}:preferred:{tenant}"


def warm_prompt_key(pool: str, beginning: str) -> str:
    """Key of the routing key of the worker that was the last to answer a prompt with this beginning."""
    return f"inferfleet:pool:{{{pool}}}:warm:{beginning}"


def waiting_turns_key(pool: str) -> str:
    """Key of the sorted set of a pool's turns that wait in lanes, by the time at which their lane expires."""
    return f"inferfleet:pool:{{{pool}}}:waiting_turns"


def open_key(pool: str, priority: int) -> str:
    """Key of the sorted set of a pool's unfinished jobs of a priority, by the time in ms of their submission.

    A job that is published again counts as submitted then, and one that starts later when it may start.
    """
    return f"inferfleet:pool:{{{pool}}}:open:{priority}"


def held_key(pool: str) -> str:
    """Key of the sorted set of the jobs whose messages are in a pool's workers, by how long that counts."""
    return f"inferfleet:pool:{{{pool}}}:held"


def sweep_key(pool: str) -> str:
    """Key of the hash that a pool's workers share to find jobs that have lost their messages."""
    return f"inferfleet:pool:{{{pool}}}:sweep"


def worker_key(worker_id: str) -> str:
    """Key of a worker's heartbeat: a hash that expires when the worker is gone."""
    return f"inferfleet:worker:{worker_id}"


def webhook_endpoints_key(tenant: str) -> str:
    """Key of the sorted set of a tenant's webhook endpoints, by the time in ms of their creation."""
    return f"inferfleet:{{webhooks}}:tenant:{tenant}"


def webhook_endpoint_key(endpoint_id: str) -> str:
    """Key of a webhook endpoint: a hash of short fields."""
    return f"inferfleet:{{webhooks}}:endpoint:{endpoint_id}"


def webhook_events_key(endpoint_id: str) -> str:
    """Key of the hash of the events that a webhook endpoint has not accepted, and how often each was sent."""
    return f"inferfleet:{{webhooks}}:endpoint:{endpoint_id}:events"


def webhook_due_key(endpoint_id: str) -> str:
    """Key of the sorted set of the same events, by the time in ms of their next try."""
    return f"inferfleet:{{webhooks}}:endpoint:{endpoint_id}:due"


def batch_key(batch_id: str) -> str:
    """Key of a batch of the gateways: a hash."""
    return f"inferfleet:batch:{batch_id}"


def tenant_batches_key(tenant: str) -> str:
    """Key of the sorted set of a tenant's batches, by their ids, which begin with the time."""
    return f"inferfleet:batches:{tenant}"


def tenant_open_batches_key(tenant: str) -> str:
    """Key of the sorted set of a tenant's batches that may be open: their number is limited."""
    return f"{tenant_batches_key(tenant)}:places"


def file_key(file_id: str) -> str:
    """Key of what is known of a file of the gateways: one JSON value, which expires with the file."""
    return f"inferfleet:file:{file_id}"


def tenant_files_key(tenant: str) -> str:
    """Key of the sorted set of a tenant's files, by their ids, which begin with the time."""
    return f"inferfleet:files:{tenant}"


def run_key(run_id: str) -> str:
    """Key of the record of an agent's run: a hash."""
    return f"inferfleet:run:{{{run_id}}}"


def run_steps_key(run_id: str) -> str:
    """Key of the list of a run's steps, as JSON."""
    return f"inferfleet:run:{{{run_id}}}:steps"


def run_inbox_key(run_id: str) -> str:
    """Key of the hash of what a run was told: answers of persons, ends of other runs, and to cancel it."""
    return f"inferfleet:run:{{{run_id}}}:inbox"


def run_queue(queue: str) -> str:
    """Name the RabbitMQ queue of the runs that can go on."""
    return f"inferfleet.agents.{queue}"


def open_runs_key(queue: str) -> str:
    """Key of the sorted set of a queue's unfinished runs, by the time in ms at which to look at them."""
    return f"inferfleet:agents:{{{queue}}}:open"


def index_key(tenant: str, name: str) -> str:
    """Key of the record of an index of documents: a hash."""
    return f"inferfleet:index:{{{name}:{tenant}}}"


def index_deleted_key(index: str) -> str:
    """Key of the sorted set of the deleted generations of an index of which something may be stored.

    ``index`` is the key of the index, here and below.
    """
    return f"{index}:deleted"


def index_vectors_key(index: str, generation: str) -> str:
    """Key of the vector set with the chunks of an index."""
    return f"{index}:vectors:{generation}"


def index_documents_key(index: str, generation: str) -> str:
    """Key of the sorted set of the digests of an index's documents: 1 if one has chunks, 0 if not."""
    return f"{index}:documents:{generation}"


def index_document_key(index: str, generation: str, digest: str) -> str:
    """Key of a document, with the texts of its chunks: a hash."""
    return f"{index}:document:{generation}:{digest}"


def tenant_indexes_key(tenant: str) -> str:
    """Key of the sorted set of the names of a tenant's indexes."""
    return f"inferfleet:indexes:{tenant}"
