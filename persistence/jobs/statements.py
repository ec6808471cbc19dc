"""The SQL of the queue outside the journal: claim, lease, stage, rescue, prune, count. Text only; run by `store`.

Every statement that writes several jobs locks them in the order of their ids or skips what is locked, so none of
them can deadlock with another. Times are the database's; only `now()` decides whether a lease has expired.
"""

from __future__ import annotations

from typing import LiteralString

from persistence.jobs.rows import CHANNEL, FEW, TURNS

JOB: LiteralString = """
    j.id, j.attempt, j.lease_token, j.worker, j.queue, j.args, j.task_id, nullif(j.user_key, ''), j.priority,
    j.max_attempts, extract(epoch FROM j.created_at)::float8, extract(epoch FROM j.scheduled_at)::float8,
    extract(epoch FROM j.lease_expires_at)::float8, j.trace_parent, j.rescues
"""

_HOLD: LiteralString = """
    UPDATE jobs j SET state = 'executing', attempt = j.attempt + 1,
        max_attempts = greatest(j.max_attempts, j.attempt + 1), attempted_at = now(), updated_at = now(),
        lease_token = gen_random_uuid(), lease_node = %(node)s, lease_boot = %(boot)s,
        home = %(node)s, lease_expires_at = now() + %(seconds)s * interval '1 second'
    FROM picked WHERE j.id = picked.id
"""

# The server where the task has lived until now hears that it lives elsewhere.
_TELL_HOME: LiteralString = f"""
    SELECT pg_notify('{CHANNEL}', 'moved ' || task_id || ' ' || home)::text AS sent
    FROM picked WHERE task_id IS NOT NULL AND home <> %(node)s
"""

# A paused queue is paused for every node at once, also for one that has not heard of it yet.
# The CTE is a fence: as a bare subquery the planner may run it again and lock more rows than the limit allows.
# `floors`: for each priority the turn at which to begin, behind the dead entries of what was claimed (see rows.TURNS).
CLAIM: LiteralString = f"""
WITH picked AS MATERIALIZED (
    SELECT line.id, line.task_id, line.home
    FROM unnest(%(floors)s::bigint[]) WITH ORDINALITY AS floors(turn, nth) CROSS JOIN LATERAL (
        SELECT id, task_id, home FROM jobs
        WHERE state = 'available' AND queue = %(queue)s AND priority = floors.nth - 1 AND turn >= floors.turn
        ORDER BY turn, id LIMIT %(demand)s FOR UPDATE SKIP LOCKED
    ) AS line
    WHERE NOT EXISTS (SELECT FROM job_queues WHERE name = %(queue)s AND paused)
    LIMIT %(demand)s
), held AS (
    {_HOLD}
    RETURNING {JOB}, j.turn
), told AS ({_TELL_HOME})
SELECT held.*, (SELECT count(sent) FROM told) FROM held
"""

# A queue with a limit over all nodes is claimed under its own row's lock. The lock is a statement of its own: only a
# later statement's snapshot sees what the previous holder of the lock has claimed.
LOCK_QUEUE: LiteralString = """
    SELECT FROM job_queues WHERE name = %(queue)s FOR UPDATE
"""

CLAIM_LIMITED: LiteralString = f"""
WITH gate AS (
    SELECT CASE WHEN paused THEN 0 ELSE %(global_limit)s::int END
               - (SELECT count(*) FROM jobs WHERE state = 'executing' AND queue = %(queue)s) AS free,
           least(%(allowed)s::float8, rate_tokens + %(allowed)s::float8 * coalesce(
               extract(epoch FROM clock_timestamp() - rate_at) / %(period)s::float8, 1.0)) AS tokens
    FROM job_queues WHERE name = %(queue)s
), picked AS MATERIALIZED (
    SELECT id, task_id, home FROM jobs WHERE state = 'available' AND queue = %(queue)s
    ORDER BY priority, turn, id
    LIMIT greatest(0, (SELECT least(%(demand)s, free, floor(tokens + 1e-9)) FROM gate)) FOR UPDATE SKIP LOCKED
), held AS (
    {_HOLD}
    RETURNING {JOB}
), told AS ({_TELL_HOME}
), spent AS (
    UPDATE job_queues SET rate_at = clock_timestamp(), updated_at = now(),
        rate_tokens = (SELECT tokens FROM gate) - (SELECT count(*) FROM held)
    WHERE name = %(queue)s AND %(allowed)s::float8 IS NOT NULL
)
SELECT gate.free, gate.tokens, held.*, (SELECT count(sent) FROM told) FROM gate LEFT JOIN held ON true
"""

# --- servers ---

# What is answered is how the rows stood before: the own one tells whether somebody else uses this server's name.
BEAT: LiteralString = f"""
WITH was AS (
    SELECT boot, expires_at FROM servers WHERE name = %(node)s
), put AS (
    INSERT INTO servers (name, boot, expires_at, slots)
    VALUES (%(node)s, %(boot)s, now() + %(seconds)s * interval '1 second', %(slots)s)
    ON CONFLICT (name) DO UPDATE SET
        boot = excluded.boot, expires_at = excluded.expires_at, slots = excluded.slots, updated_at = now()
), forgotten AS (
    DELETE FROM servers WHERE expires_at < now() - interval '1 day' AND name <> %(node)s
), told AS (
    SELECT pg_notify('{CHANNEL}', 'joined ' || %(node)s)::text AS sent
    WHERE NOT EXISTS (SELECT FROM was WHERE boot = %(boot)s AND expires_at > now())
)
SELECT name, boot, expires_at > now(), extract(epoch FROM now() - updated_at)::float8, slots,
       (SELECT count(sent) FROM told)
FROM servers ORDER BY name
"""

LOOK_AROUND: LiteralString = """
    SELECT name, boot, expires_at > now(), extract(epoch FROM now() - updated_at)::float8, slots
    FROM servers ORDER BY name
"""

LEAVE: LiteralString = f"""
WITH gone AS (DELETE FROM servers WHERE name = %(node)s AND boot = %(boot)s RETURNING name)
SELECT pg_notify('{CHANNEL}', 'left ' || name) FROM gone
"""

# Of these jobs, those whose tasks live here: already, or from now on, because their home is lost. What a lost server
# was running is not touched here: it is rescued, and lives with who claims it.
ADOPT: LiteralString = """
WITH wanted AS (
    SELECT j.id, j.home FROM unnest(%(jobs)s::uuid[]) AS w(id) JOIN jobs j USING (id)
), orphans AS MATERIALIZED (
    SELECT j.id FROM jobs j JOIN wanted USING (id)
    WHERE j.home IS DISTINCT FROM %(node)s AND j.state <> 'executing'
      AND NOT EXISTS (SELECT FROM servers s WHERE s.name = j.home AND s.expires_at > now())
    ORDER BY j.id FOR UPDATE OF j
), taken AS (
    UPDATE jobs j SET home = %(node)s FROM orphans WHERE j.id = orphans.id RETURNING j.id
)
SELECT id FROM taken UNION ALL SELECT id FROM wanted WHERE home = %(node)s
"""

STRAYED: LiteralString = "SELECT id FROM jobs WHERE id = ANY(%(jobs)s) AND home <> %(node)s"

# --- leases ---

HEARTBEAT: LiteralString = f"""
WITH beat AS (
    SELECT * FROM jsonb_to_recordset(%s) AS b(n int, id uuid, token uuid, seconds float8) WHERE {FEW}
), mine AS MATERIALIZED (
    SELECT j.id, b.seconds FROM jobs j JOIN beat b ON b.id = j.id AND b.token = j.lease_token
    WHERE j.state = 'executing' ORDER BY j.id FOR UPDATE OF j
)
UPDATE jobs j SET lease_expires_at = now() + mine.seconds * interval '1 second'
FROM mine WHERE j.id = mine.id RETURNING j.id
"""

RELEASE: LiteralString = f"""
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%s) AS g(n int, id uuid, token uuid) WHERE {FEW}
), mine AS MATERIALIZED (
    SELECT j.id FROM jobs j JOIN given g ON g.id = j.id AND g.token = j.lease_token
    WHERE j.state = 'executing' ORDER BY j.id FOR UPDATE OF j
), released AS (
    UPDATE jobs j SET state = 'available', attempt = greatest(j.attempt - 1, 0), updated_at = now()
    FROM mine WHERE j.id = mine.id RETURNING j.queue
), told AS (
    SELECT pg_notify('{CHANNEL}', 'wake ' || queue)::text AS sent FROM (SELECT DISTINCT queue FROM released) AS woken
)
SELECT count(*), (SELECT count(sent) FROM told) FROM released
"""

# A lost node interrupted its jobs, they did not fail: the attempt does not count. But a job that was there each time a
# node died may be the reason: beyond `calm` losses it waits before it runs again, beyond `most` it is a dead letter, or
# its task's handler has to say no.
_TAKE_BACK: LiteralString = """
    UPDATE jobs j SET
        state = CASE WHEN j.rescues >= %(most)s AND j.task_id IS NULL THEN 'discarded'::job_state
                     WHEN j.rescues >= %(calm)s THEN 'scheduled' ELSE 'available' END,
        scheduled_at = CASE WHEN j.rescues >= %(calm)s THEN now() + interval '1 second' * (0.5 + random() / 2)
                            * least(2 ^ least(j.rescues - %(calm)s, 30), %(longest)s) ELSE j.scheduled_at END,
        discarded_at = CASE WHEN j.rescues >= %(most)s AND j.task_id IS NULL THEN now() END,
        attempt = greatest(j.attempt - 1, 0), rescues = j.rescues + 1, updated_at = now(),
        errors = CASE WHEN jsonb_array_length(j.errors) >= 50 THEN j.errors - 0 ELSE j.errors END
            || jsonb_build_object('at', extract(epoch FROM now()), 'attempt', j.attempt,
                                  'error', 'lost with node ' || coalesce(j.lease_node, '?'))
    FROM lost WHERE j.id = lost.id
"""

RECOVER: LiteralString = f"""
WITH lost AS MATERIALIZED (
    SELECT id FROM jobs WHERE state = 'executing' AND lease_node = %(node)s AND lease_boot <> %(boot)s
    ORDER BY id FOR UPDATE
)
{_TAKE_BACK}
"""

RESCUE: LiteralString = f"""
WITH lost AS MATERIALIZED (
    SELECT id FROM jobs WHERE state = 'executing' AND lease_expires_at < now() AND id <> ALL(%(held)s)
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), rescued AS (
    {_TAKE_BACK}
    RETURNING j.id, j.queue, j.state, coalesce(j.lease_node, '?')
), told AS (
    SELECT pg_notify('{CHANNEL}', 'wake ' || queue)::text AS sent
    FROM (SELECT DISTINCT queue FROM rescued WHERE state = 'available') AS woken
)
SELECT rescued.*, (SELECT count(sent) FROM told) FROM rescued
"""

STAGE: LiteralString = f"""
WITH due AS MATERIALIZED (
    SELECT id, queue, priority, user_key, scheduled_at FROM jobs
    WHERE state IN ('scheduled', 'retryable') AND scheduled_at <= now()
    ORDER BY scheduled_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), joining AS (SELECT *, 0::bigint AS floor FROM due
), turns AS ({TURNS}
), placed AS (
    SELECT due.id, turns.first - 1 + row_number() OVER (
        PARTITION BY queue, priority, user_key ORDER BY due.scheduled_at, due.id) AS turn
    FROM due JOIN turns USING (queue, priority, user_key)
), moved AS (
    UPDATE jobs j SET state = 'available', turn = placed.turn, updated_at = now()
    FROM placed WHERE j.id = placed.id RETURNING j.queue
), told AS (
    SELECT queue, pg_notify('{CHANNEL}', 'wake ' || queue)::text AS sent, jobs
    FROM (SELECT queue, count(*) AS jobs FROM moved GROUP BY queue) AS woken
)
SELECT queue, jobs, sent FROM told
"""

# Held back by hand, until it is released: then it is due at its time, or now.
SUSPEND: LiteralString = """
    UPDATE jobs SET state = 'suspended', updated_at = now()
    WHERE id = %s AND state IN ('available', 'scheduled', 'retryable') RETURNING id
"""
UNSUSPEND: LiteralString = """
    UPDATE jobs SET state = 'scheduled', updated_at = now() WHERE id = %s AND state = 'suspended' RETURNING id
"""

NEXT_DUE: LiteralString = """
    SELECT extract(epoch FROM min(scheduled_at) - now())::float8 FROM jobs WHERE state IN ('scheduled', 'retryable')
"""

PRUNE: LiteralString = """
WITH old AS (
    (SELECT id FROM jobs WHERE state = 'completed' AND completed_at < now() - %(completed)s * interval '1 second'
     ORDER BY completed_at LIMIT %(limit)s)
    UNION ALL
    (SELECT id FROM jobs WHERE state = 'cancelled' AND cancelled_at < now() - %(cancelled)s * interval '1 second'
     ORDER BY cancelled_at LIMIT %(limit)s)
    UNION ALL
    (SELECT id FROM jobs WHERE state = 'discarded' AND discarded_at < now() - %(discarded)s * interval '1 second'
     ORDER BY discarded_at LIMIT %(limit)s)
    LIMIT %(limit)s
)
DELETE FROM jobs j USING old
WHERE j.id = old.id AND j.state IN ('completed', 'cancelled', 'discarded')
"""

# Finished jobs are not counted, dead letters excepted: operators look for them. One query for each state, because each
# state has an index of its own: what is counted costs, not what is kept.
COUNTS: LiteralString = """
    SELECT queue, 'suspended', count(*), NULL::float8 FROM jobs WHERE state = 'suspended' GROUP BY queue
    UNION ALL
    SELECT queue, 'available', count(*), max(extract(epoch FROM now() - scheduled_at))::float8
    FROM jobs WHERE state = 'available' GROUP BY queue
    UNION ALL
    SELECT queue, state::text, count(*), NULL FROM jobs WHERE state IN ('scheduled', 'retryable') GROUP BY queue, state
    UNION ALL
    SELECT queue, 'executing', count(*), NULL FROM jobs WHERE state = 'executing' GROUP BY queue
    UNION ALL
    SELECT queue, 'discarded', count(*), NULL FROM jobs WHERE state = 'discarded' GROUP BY queue
"""

# The users with most to do are named, so that quotas are right; a crowd beyond them is summed up, so that reading the
# answer holds the loop for a few milliseconds whatever their number.
WAITING: LiteralString = """
WITH part AS (
    SELECT queue, priority, user_key, count(*) AS waiting, count(*) AS unfinished
    FROM jobs WHERE state = 'available' GROUP BY 1, 2, 3
    UNION ALL
    SELECT queue, priority, user_key, 0, count(*) FROM jobs WHERE state IN ('scheduled', 'retryable') GROUP BY 1, 2, 3
    UNION ALL
    SELECT queue, priority, user_key, 0, count(*) FROM jobs WHERE state = 'executing' GROUP BY 1, 2, 3
    UNION ALL
    SELECT queue, priority, user_key, 0, count(*) FROM jobs WHERE state = 'suspended' GROUP BY 1, 2, 3
), whole AS (
    SELECT queue, priority, user_key, sum(waiting)::int AS waiting, sum(unfinished)::int AS unfinished
    FROM part GROUP BY 1, 2, 3
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY queue ORDER BY unfinished DESC) > 2000 AS crowd FROM whole
)
SELECT queue, priority, user_key, waiting, unfinished, 1 FROM placed WHERE NOT crowd
UNION ALL
SELECT queue, priority, '', sum(waiting)::int, sum(unfinished)::int, count(*)::int
FROM placed WHERE crowd GROUP BY queue, priority
"""

NOW: LiteralString = "SELECT extract(epoch FROM now())::float8"

# Who comes second for a cron's time finds it taken.
TAKE_TURN: LiteralString = """
    INSERT INTO job_crons AS c (name, made_for) VALUES (%s, to_timestamp(%s))
    ON CONFLICT (name) DO UPDATE SET made_for = excluded.made_for, updated_at = now()
    WHERE c.made_for < excluded.made_for
"""

PACES: LiteralString = """
    SELECT queue, avg(extract(epoch FROM completed_at - attempted_at))::float8
    FROM (SELECT queue, attempted_at, completed_at FROM jobs WHERE state = 'completed'
          ORDER BY completed_at DESC LIMIT 200) AS lately
    GROUP BY queue
"""

SETTINGS: LiteralString = "SELECT name, paused, local_limit FROM job_queues"

SET: LiteralString = f"""
WITH put AS (
    INSERT INTO job_queues (name, paused, local_limit) VALUES (%s, %s, %s)
    ON CONFLICT (name) DO UPDATE SET paused = excluded.paused, local_limit = excluded.local_limit, updated_at = now()
    RETURNING name
)
SELECT pg_notify('{CHANNEL}', 'settings ' || name) FROM put
"""

ENSURE_QUEUE: LiteralString = "INSERT INTO job_queues (name) VALUES (%s) ON CONFLICT DO NOTHING"

RECORD: LiteralString = """
    SELECT id, state::text, queue, worker, args, task_id, nullif(user_key, ''), priority, attempt, max_attempts,
           rescues, snoozes, extract(epoch FROM scheduled_at)::float8, extract(epoch FROM created_at)::float8,
           extract(epoch FROM updated_at)::float8, lease_node, lease_token, errors, home
    FROM jobs
"""

GET: LiteralString = f"{RECORD} WHERE id = %s"

# Joined to a page's query as they are asked for; the dead letters of a queue, which operators look for, have an index.
OF_QUEUE: LiteralString = " AND queue = %(queue)s"
OF_STATE: LiteralString = " AND state = %(state)s"
OF_DEAD: LiteralString = " AND state = 'discarded'"
BEFORE: LiteralString = " AND id < %(after)s"
PAGE: LiteralString = f"{RECORD} WHERE true"
NEWEST: LiteralString = " ORDER BY id DESC LIMIT %(limit)s"
